"""A vLLM engine whose requests may each have a vector added to the residual stream."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..errors import EngineDiedError, UsageError
from ..records import Response, Sample
from .reasons import died, first_line
from .vllm_engine import VllmEngine

_LOOK_S = 1.0
_WITHOUT_END = 1 << 31
"""No context is as long."""


@dataclass(frozen=True, slots=True)
class Shift:
    """coefficient * vector, added to the state leaving the vector's block at some positions.

    Where it `ablates`, instead, that share of the vector's direction is taken out of the state that
    leaves any block: 1 leaves nothing along it. Position 0 is the prompt's first token. A
    response's own tokens begin at the prompt's length; its first token is sampled from the state
    before, the prompt's last.
    """

    vector: int
    """Its number among those that the engine has loaded."""
    coefficient: float
    first: int = 0
    end: int | None = None
    """The first position that is left alone again; None is none."""
    ablates: bool = False


class SteeredEngine(VllmEngine):
    """A VllmEngine that can steer. It runs eagerly, since hooks run in no captured graph.

    A vector is added in float32 where the block's output is, then rounded as that is.
    """

    extension = "traitmill.engine.generation.steering.SteeringExtension"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._names = itertools.count()
        self._vectors: list[tuple[int, np.ndarray]] = []
        self._digest = ""
        self._keeps_directions: str | None = None
        """Why no direction can be taken out, empty where one can; None until it is known."""

    def _arguments(self) -> Any:
        arguments = super()._arguments()
        arguments.worker_extension_cls = self.extension
        arguments.enforce_eager = True
        return arguments

    async def load_vectors(self, vectors: Sequence[tuple[int, np.ndarray]]) -> None:
        """Take (layer, `[hidden_dim]`) pairs in place of those before, while no request runs.

        Raise UsageError where the model's blocks, or vLLM's place for requests, are not found.
        """
        self._vectors = [(layer, np.ascontiguousarray(v, np.float32)) for layer, v in vectors]
        packed = [(layer, vector.tobytes()) for layer, vector in self._vectors]
        self._digest = hashlib.sha256(repr(packed).encode()).hexdigest()
        refused = await self._of_workers("load_steering", packed)
        for reason in filter(None, refused):
            raise UsageError(f"{self._ref.name} cannot be steered: {reason}")
        if self._keeps_directions is None:
            found = await self._of_workers("learn_stream")
            self._keeps_directions = next(filter(None, found), "")

    async def steered(self, sample: Sample, shift: Shift | None) -> Response:
        """Generate one response under a shift; None is none. Errors as `generate` has them.

        Raise EngineDiedError where a position that was to be moved was not.
        """
        run = partial(self._run_shifted, shift=shift)
        return await self._response(sample, run, checked=False)

    async def logprobs(
        self, prompt: Sequence[int], response: Sequence[int], shift: Shift | None
    ) -> tuple[float, ...] | None:
        """Return the log-probabilities (temperature 1) of a given text's tokens under a shift.

        None where the context is full.
        """
        return await self._logprobs(prompt, response, partial(self._run_shifted, shift=shift))

    async def _run_shifted(
        self, prompt_token_ids: Sequence[int], parameters: Any, *, shift: Shift | None
    ) -> Any:
        if shift is None:
            return await self._run(prompt_token_ids, parameters, adapted=True)
        if shift.ablates and self._keeps_directions:
            raise UsageError(
                f"no direction can be taken out of {self._ref.name}: {self._keeps_directions}; "
                "steer it without `ablate`"
            )
        name, end = f"s{next(self._names)}", shift.end or _WITHOUT_END
        asked = [name, shift.vector, float(shift.coefficient), shift.first, end, shift.ablates]
        from .steering import ASKED

        parameters.extra_args = {ASKED: asked}
        salt = self._salt(asked)
        answer = await self._run(prompt_token_ids, parameters, salt=salt, adapted=True)
        # The last token sampled was never read.
        read = len(prompt_token_ids) + len(answer.outputs[0].token_ids) - 1
        low, high = max(shift.first, answer.num_cached_tokens or 0), min(end, read)
        taken = await self._of_workers("take_steered", name, shift.ablates)
        for worker in taken:
            _check(low, high, worker)
        return answer

    async def _of_workers(self, method: str, *arguments: Any) -> list[Any]:
        """Return what each worker answers. Raise EngineDiedError.

        A process that dies before it answers is looked for: vLLM would wait for it without end.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        call = asyncio.ensure_future(self._engine.collective_rpc(method, args=arguments))
        try:
            while not (await asyncio.wait([call], timeout=_LOOK_S))[0]:
                if any(process.exitcode is not None for process in self._processes):
                    raise self._died(f"it ended before it answered {method}")
            return list(call.result())
        except EngineDeadError as error:
            raise self._died(first_line(error)) from error
        finally:
            call.cancel()

    def _died(self, otherwise: str) -> EngineDiedError:
        return died(self._last_error(), self._processes, otherwise)

    def _salt(self, asked: list[Any]) -> str:
        """Return what keeps a request's cached states from those of any other steering.

        vLLM shares the states of equal tokens; steered and unsteered ones are not equal.
        """
        return repr([self._digest, *asked[1:]])


def _check(low: int, high: int, moved: Sequence[int]) -> None:
    """Raise EngineDiedError where positions `low` to `high` - 1 are not among those moved.

    More may have been: a step begun before the end of a response was known.
    """
    first, end, count = moved
    if low < high and not (first <= low and end >= high and count == end - first):
        raise EngineDiedError(
            f"vLLM moved {count} positions ({first} to {end - 1}) of a request that was to be "
            f"steered at {low} to {high - 1}; nothing of it is kept: report this with the versions "
            "of `traitmill doctor`"
        )
