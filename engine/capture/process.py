"""The capture pass in a process of its own: its Python must not contend with the event loop that feeds vLLM."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import EngineDiedError
from ..models.hub import ModelRef
from ..records import Activation, Response
from ..settings import CaptureSettings, Execution
from ..storage.schemas import CaptureFailure

if TYPE_CHECKING:
    from .model import CaptureModel, CaptureResult, CaptureRow


@dataclass(frozen=True, slots=True)
class CaptureFacts:
    """What is known once the capture model is loaded."""

    n_layers: int
    layers: tuple[int, ...]
    hidden_dim: int
    dtype: str
    attention: str
    device: str
    arithmetic: str
    """One line: the batch budget and why."""
    placement: str = "alone"
    """How capture shared the machine with generation (placement.Mode), as the run decided."""

    def recorded(self, batch_size: int | None) -> dict[str, Any]:
        """What a manifest keeps of it, as plain JSON values."""
        from importlib.metadata import version

        names = ("n_layers", "hidden_dim", "dtype", "attention", "device", "placement")
        return {
            "layers": list(self.layers),
            **{name: getattr(self, name) for name in names},
            "batch_size": batch_size or "auto",
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }


def capture_row(response: Response) -> CaptureRow:
    """A stored or fresh response as the capture pass wants it: token ids, never text."""
    from .model import CaptureRow

    sample = response.sample
    return CaptureRow(
        trait=sample.trait,
        sample_id=sample.id,
        prompt_token_ids=sample.prompt_token_ids,
        response_token_ids=response.response_token_ids,
        n_pooled=response.n_pooled,
        logprobs=response.logprobs,
    )


def capture_records(
    result: CaptureResult, pools: Sequence[str], facts: CaptureFacts
) -> list[Activation | CaptureFailure]:
    """A row's result as the store wants it: one record for each of some pools."""
    if result.error:
        return [
            CaptureFailure(result.trait, result.sample_id, pool, result.error) for pool in pools
        ]
    return [
        Activation(result.trait, result.sample_id, pool, facts.layers, result.pools[pool])
        for pool in pools
    ]


class CaptureWorker:
    """A capture model in a spawned process, one batch at a time."""

    def __init__(
        self,
        ref: ModelRef,
        capture: CaptureSettings,
        execution: Execution,
        *,
        generation_dtype: str = "auto",
        token_budget: int | None = None,
        blocks: str | None = None,
    ) -> None:
        """`generation_dtype` decides how closely vLLM's log-probabilities must agree; `token_budget` fixes the batch
        budget where a GPU is shared, else it comes from free memory."""
        self._arguments = (
            ref.source,
            ref.hub_revision,
            capture,
            execution,
            generation_dtype,
            token_budget,
            blocks,
        )
        self._pool: ProcessPoolExecutor | None = None
        self._checked: dict[str, Any] = {}

    async def start(self) -> CaptureFacts:
        """Load the model. Raises AccessError, ResourceError, UsageError, EngineDiedError."""
        self._pool = ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_outlive_signals,
        )
        facts: CaptureFacts = await self._call(_load, *self._arguments)
        return facts

    async def capture(self, rows: Sequence[CaptureRow]) -> list[CaptureResult]:
        """Capture some rows; results in their order. Raises SelfCheckError, ResourceError, EngineDiedError."""
        results: list[CaptureResult]
        results, self._checked = await self._call(_capture, list(rows))
        return results

    @property
    def self_check(self) -> dict[str, Any]:
        """What the self-check looked at so far, and the worst it saw."""
        return self._checked

    async def _call(self, function: Any, *arguments: Any) -> Any:
        assert self._pool is not None, "start() first"  # noqa: S101 - a programming error, not a user's
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, function, *arguments
            )
        except BrokenProcessPool as error:
            raise EngineDiedError(
                "the capture process died (out of memory?); what was stored is safe: run the same command again, "
                "with a smaller --batch_size if it dies again"
            ) from error

    async def close(self) -> None:
        """Stop the process."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True)


_model: CaptureModel | None = None
"""The worker process's model."""


def _outlive_signals() -> None:
    """What ends a terminal's job or a batch system's reaches this process too, whose end the run decides."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _load(
    source: str,
    revision: str | None,
    capture: CaptureSettings,
    execution: Execution,
    generation_dtype: str,
    token_budget: int | None,
    blocks: str | None,
) -> CaptureFacts:
    global _model  # noqa: PLW0603 - the process exists for this one model
    from .model import CaptureModel

    _model = CaptureModel(
        source,
        capture,
        revision=revision,
        device=execution.capture_device,
        self_check=execution.self_check,
        generation_dtype=generation_dtype,
        token_budget=token_budget,
        max_rows=execution.batch_size,
        threads=len(os.sched_getaffinity(0)),
        blocks=blocks,
    )
    return CaptureFacts(
        n_layers=_model.n_layers,
        layers=tuple(_model.layers),
        hidden_dim=_model.hidden_dim,
        dtype=_model.dtype,
        attention=_model.attention,
        device=_model.device,
        arithmetic=_model.arithmetic,
    )


def _loaded() -> CaptureModel:
    assert _model is not None, "_load() first"  # noqa: S101 - a programming error, not a user's
    return _model


def _capture(rows: list[CaptureRow]) -> tuple[list[CaptureResult], dict[str, Any]]:
    return _loaded().capture(rows), _loaded().check_summary()
