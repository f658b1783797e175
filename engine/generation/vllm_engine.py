"""Sample → Response on vLLM's AsyncLLM: continuous batching, token ids in and out."""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import EngineDiedError, UsageError
from ..models import ModelRef, Thought
from ..records import Response, ResponseStatus, Sample
from ..settings import Execution, Sampling
from ..threads import wait_briefly
from .arguments import engine_arguments
from .checked import is_checked
from .detokenizer import Detokenizer
from .device import require_cpu_build
from .environment import require_main_guard, set_environment
from .reasons import died, first_line, said_of_start
from .sizing import EngineSize
from .thinking import write, write_behind_thought

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from vllm import AsyncEngineArgs

Run = Callable[[Sequence[int], Any], Awaitable[Any]]
"""Asks vLLM: a prompt's token ids and SamplingParams in, its answer out."""
_SHUTDOWN_S = 1.0
"""Nothing of an engine's is worth waiting for once its last answer is here."""
_KILLED_S = 10.0
"""For the kernel to end a killed process that holds gigabytes."""
_starting = threading.Lock()
"""Held during a start: processes that come meanwhile are those of one engine."""


class VllmEngine:
    """One vLLM engine in processes of its own, fed from this event loop."""

    def __init__(
        self,
        ref: ModelRef,
        sampling: Sampling,
        execution: Execution,
        size: EngineSize,
        *,
        on_gpu: bool,
        last_error: Callable[[], str] = lambda: "",
        thought: Thought | None = None,
        ends: Sequence[int] = (),
        compiled: bool = True,
        stat_loggers: Sequence[Any] = (),
    ) -> None:
        """`thought` is how the model thinks before it responds, None where it does not; `ends` are
        tokens that end its turn beside those that its files name.

        `compiled`: whether there is enough to generate that compiling is worth its time, on a GPU.
        `stat_loggers` are vLLM's own interface to its scheduler's numbers, for benchmarks.
        """
        self._ref = ref
        self._sampling = sampling
        self._execution = execution
        self.size = size
        self._on_gpu = on_gpu
        self._last_error = last_error
        self._thought, self._ends = thought, list(ends)
        self._compiled = compiled
        self._stat_loggers = list(stat_loggers)
        self._engine: Any = None
        self._detokenizer: Detokenizer | None = None
        self._processes: list[BaseProcess] = []
        self._others: set[BaseProcess] | None = None
        """Children of this process before the start; None until it has begun."""
        self._abandoned = False
        self._numbers = itertools.count()

    @property
    def max_in_flight(self) -> int:
        """Requests to keep with the engine: twice what runs, so that each is replaced at once."""
        return 2 * self.size.max_num_seqs

    def start(self) -> None:
        """Load the model (blocking, minutes for large ones). Raise EngineDiedError, AccessError."""
        require_main_guard()
        wait_briefly()
        if not self._on_gpu:
            require_cpu_build()
        set_environment(on_gpu=self._on_gpu, workers=self._execution.tensor_parallel_size)
        logging.getLogger("vllm").propagate = False
        from vllm import AsyncLLMEngine

        with _starting:
            if self._abandoned:
                return
            self._others = set(multiprocessing.active_children())
            with said_of_start(self._ref.name, self._last_error):
                self._engine = AsyncLLMEngine.from_engine_args(
                    self._arguments(), stat_loggers=self._stat_loggers or None
                )
            self._processes = self._started()
        if self._abandoned:
            self._engine.shutdown(_SHUTDOWN_S)

    def abandon(self) -> None:
        """End a start that nobody waits for any more; what it has begun yet ends at once."""
        self._abandoned = True
        for process in self._started():
            process.kill()

    def _started(self) -> list[BaseProcess]:
        if self._others is None:
            return []
        # Capture's process may be started at the same time.
        started = set(multiprocessing.active_children()) - self._others
        return [process for process in started if process.name.startswith("EngineCore")]

    @property
    def _own_nucleus(self) -> bool:
        """Whether top-p is left to `top_p`, exact and many times faster than vLLM's on a CPU."""
        return not self._on_gpu and self._sampling.top_p < 1 and not self._sampling.top_k

    def _arguments(self) -> AsyncEngineArgs:
        return engine_arguments(
            self._ref,
            self._sampling,
            self._execution,
            self.size,
            on_gpu=self._on_gpu,
            own_nucleus=self._own_nucleus,
            compiled=self._compiled,
        )

    async def generate(self, sample: Sample) -> Response:
        """Generate one response; a sample's own trouble is its status. Raise EngineDiedError."""
        run = partial(self._run, adapted=True)
        return await self._response(sample, run, checked=is_checked(sample))

    async def _response(self, sample: Sample, run: Run, *, checked: bool) -> Response:
        prompt, new = sample.prompt_token_ids, self._sampling.max_new_tokens
        room, allowance = self.size.max_model_len - len(prompt), self._sampling.max_thinking_tokens
        ask = partial(self._ask, run)
        if self._thought is not None:
            allowance = min(allowance, room - new - self._thought.most_spaces)
        if room < 1 or (allowance < 1 and self._thought is not None):
            context = self._ref.context_length or self.size.max_model_len
            error = f"prompt of {len(prompt)} tokens, context of {context}"
            return Response(sample, "overlong", error=error)
        from vllm.exceptions import VLLMClientError

        try:
            if self._thought is None:
                written = await write(ask, self._text, sample, min(new, room))
            else:
                written = await write_behind_thought(
                    ask, self._text, sample, self._thought, allowance=allowance, limit=new
                )
            logprobs = None
            if checked and written.finished:
                before = (*prompt, *written.thought_token_ids)
                logprobs = await self._logprobs(before, written.response_token_ids, run)
        except (ValueError, VLLMClientError) as error:  # vLLM refuses this one request
            return Response(sample, "failed", error=first_line(error))
        status: ResponseStatus = "ok" if written.response.strip() else "empty"
        return Response(
            sample,
            status if written.finished else "unfinished",
            response=written.response,
            response_token_ids=written.response_token_ids,
            finish_reason=written.finish_reason,
            logprobs=logprobs,
            thought=written.thought,
            thought_token_ids=written.thought_token_ids,
            thought_span=written.thought_span,
        )

    async def _ask(
        self, run: Run, token_ids: Sequence[int], limit: int, seed: int, thought: Thought | None
    ) -> Any:
        """Return what follows some tokens; with `thought`, up to its end."""
        from vllm import SamplingParams

        end: dict[str, Any] = {"detokenize": False, "stop_token_ids": self._ends}
        if thought is not None and thought.closing_id is None:
            # Looked for in the text, so vLLM makes it; the tag may hold special tokens.
            end |= {"stop": [thought.tags.closing], "skip_special_tokens": False}
            end["detokenize"] = True
        elif thought is not None:
            end["stop_token_ids"] = [thought.closing_id, *self._ends]
        parameters = SamplingParams(
            temperature=self._sampling.temperature,
            top_p=1.0 if self._own_nucleus else self._sampling.top_p,
            top_k=self._sampling.top_k,
            max_tokens=limit,
            seed=seed,
            **end,
        )
        answer = await run(token_ids, parameters)
        return answer.outputs[0]

    def _text(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        if self._detokenizer is None:
            self._detokenizer = Detokenizer(self._engine.get_tokenizer())
        return self._detokenizer.text(prompt, ids)

    async def _logprobs(
        self, prompt: Sequence[int], response: Sequence[int], run: Run
    ) -> tuple[float, ...] | None:
        """Return the log-probabilities (temperature 1) of a response's tokens after a prompt.

        None where the context is full. Asked of the finished text: asked while it is sampled, each
        step would compute them for all that run.
        """
        if len(prompt) + len(response) >= self.size.max_model_len:
            return None
        from vllm import SamplingParams

        parameters = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False
        )
        answer = await run([*prompt, *response], parameters)
        steps = zip(answer.prompt_logprobs[len(prompt) :], response, strict=True)
        return tuple(float(step[token].logprob) for step, token in steps)

    async def next_logprobs(
        self, prompt_token_ids: Sequence[int], token_ids: Sequence[int]
    ) -> dict[int, float]:
        """Return the log-probabilities of named tokens right after a prompt, without an adapter: a
        model and its fine-tune are judged alike.

        Raise UsageError if the prompt is too long.
        """
        if len(prompt_token_ids) >= self.size.max_model_len:
            raise UsageError(
                f"judge prompt of {len(prompt_token_ids)} tokens, context of "
                f"{self.size.max_model_len}"
            )
        from vllm import SamplingParams

        parameters = SamplingParams(
            temperature=0.0, max_tokens=1, logprob_token_ids=list(token_ids), detokenize=False
        )
        answer = await self._run(prompt_token_ids, parameters)
        found = answer.outputs[0].logprobs[0]
        return {token: float(found[token].logprob) for token in token_ids}

    async def _run(
        self,
        prompt_token_ids: Sequence[int],
        parameters: Any,
        *,
        salt: str = "",
        adapted: bool = False,
    ) -> Any:
        """Return vLLM's answer, of the adapted model or its base. States are cached apart for each
        `salt`."""
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        parameters.output_kind = RequestOutputKind.FINAL_ONLY
        parameters.skip_clone = True  # nobody else has them
        # Rendered: what is not is sent through a thread of vLLM's, for a tokenizer's sake.
        prompt = tokens_input(list(prompt_token_ids), cache_salt=salt or None)
        try:
            async for output in self._engine.generate(
                prompt,
                parameters,
                f"r{next(self._numbers)}",
                lora_request=self._lora() if adapted else None,
            ):
                return output
        except (EngineDeadError, EngineGenerateError) as error:
            raise died(self._last_error(), self._processes, first_line(error)) from error
        raise EngineDiedError(
            "the generation engine ended a request without an answer; run the command again"
        )

    def _lora(self) -> Any:
        """Return vLLM's name for the adapter, None where there is none."""
        from vllm.lora.request import LoRARequest

        adapter = self._ref.adapter
        return adapter and LoRARequest(adapter.name, 1, adapter.folder)

    async def close(self) -> None:
        """End the engine's processes, and wait for them: vLLM leaves killed ones as zombies."""
        if self._engine is None:
            return
        engine, self._engine = self._engine, None
        if engine.output_handler and not engine.get_num_unfinished_requests():
            engine.output_handler.cancel()  # else it may log the end of the processes as a fault
        await asyncio.to_thread(engine.shutdown, _SHUTDOWN_S)
        for process in self._processes:
            await asyncio.to_thread(process.join, _KILLED_S)
