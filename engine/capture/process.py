"""The capture pass in a process of its own: its Python must not contend with the event loop.

Arrays are handed to the parent in memory that both see, never pickled. The parent makes the memory,
so that it lives exactly as long as somebody looks at it, however the worker ends. It has no name
and is none of /dev/shm, which a container keeps small: the worker opens it among the parent's files
in /proc.
"""

from __future__ import annotations

import asyncio
import mmap
import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..errors import EngineDiedError
from ..records import Activation, Response
from ..settings import CaptureSettings, Execution
from ..threads import wait_briefly

if TYPE_CHECKING:
    from .model import CaptureModel


@dataclass(frozen=True, slots=True)
class CaptureFacts:
    """What is known once the capture model is loaded."""

    n_layers: int
    layers: tuple[int, ...]
    """Captured; -1 is the embedding output."""
    hidden_dim: int
    dtype: str
    attention: str
    device: str
    arithmetic: str
    """One line: the batch budget and why."""


class CaptureProcess:
    """A capture model in a spawned process; calls are answered one after the other."""

    def __init__(
        self,
        source: str,
        revision: str | None,
        capture: CaptureSettings,
        execution: Execution,
        *,
        adapter: str | None = None,
        generation_dtype: str = "auto",
        token_budget: int | None = None,
    ) -> None:
        """Take what loads the model: a folder, or a hub name with its revision; and the folder of a
        LoRA adapter over it.

        `generation_dtype` decides how closely vLLM's log-probabilities must agree; `token_budget`
        fixes the batch budget where a GPU is shared, else it comes from free memory.
        """
        self._arguments = (
            source,
            revision,
            adapter,
            capture,
            execution,
            generation_dtype,
            token_budget,
        )
        self._pool: ProcessPoolExecutor | None = None
        self._facts: CaptureFacts | None = None
        self._pools = capture.pools
        self._checked: dict[str, Any] = {}

    async def start(self) -> CaptureFacts:
        """Load the model. Raise AccessError, ResourceError, UsageError or EngineDiedError."""
        wait_briefly()
        self._pool = ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_outlive_signals,
        )
        facts: CaptureFacts = await self._call(_load, *self._arguments)
        self._facts = facts
        return facts

    async def capture(self, responses: Sequence[Response]) -> list[Activation]:
        """Capture some responses, in their order.

        Raise SelfCheckError, ResourceError or EngineDiedError.
        """
        if self._facts is None:
            raise EngineDiedError("the capture process has not been started")
        results: list[Result]
        layers, dim = len(self._facts.layers), self._facts.hidden_dim
        with Tray(len(responses), self._pools, layers, dim) as tray:
            results, self._checked = await self._call(_capture, list(responses), tray.place)
            return tray.take(results)

    @property
    def self_check(self) -> dict[str, Any]:
        """What the self-check looked at so far, and the worst it saw."""
        return self._checked

    async def _call(self, function: Any, *arguments: Any) -> Any:
        if self._pool is None:
            raise EngineDiedError("the capture process has not been started")
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, function, *arguments
            )
        except BrokenProcessPool as error:
            died = (
                "the capture process died (out of memory?); what was stored is safe: run the same "
                "command again, with a smaller `batch_size` if it dies again"
            )
            if self._facts is None:
                died = (
                    "the capture process died while it started: out of memory, or in a script its "
                    'calls do not stand under if __name__ == "__main__":'
                )
            raise EngineDiedError(died) from error

    async def close(self) -> None:
        """End the process at once, a call under way or not: it holds nothing that is not stored."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            # kill_workers comes with 3.14.
            for process in list((pool._processes or {}).values()):  # noqa: SLF001
                process.kill()
            await asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True)


_model: CaptureModel | None = None
"""The child's model."""


def _outlive_signals() -> None:
    """Leave it to the run to end this process: a terminal signals the whole process group."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _load(
    source: str,
    revision: str | None,
    adapter: str | None,
    capture: CaptureSettings,
    execution: Execution,
    generation_dtype: str,
    token_budget: int | None,
) -> CaptureFacts:
    global _model  # noqa: PLW0603 - the process exists for this one model
    from .model import CaptureModel

    _model = CaptureModel(
        source,
        capture,
        revision=revision,
        adapter=adapter,
        device=execution.capture_device,
        self_check=execution.self_check,
        generation_dtype=generation_dtype,
        token_budget=token_budget,
        max_rows=execution.batch_size,
        threads=len(os.sched_getaffinity(0)),
        blocks=execution.blocks,
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


def _capture(responses: list[Response], place: Place) -> tuple[list[Result], dict[str, Any]]:
    if _model is None:
        raise EngineDiedError("the capture model is not loaded")
    return place.put(_model.capture(responses)), _model.check_summary()


@dataclass(frozen=True, slots=True)
class Result:
    """An activation whose pools lie in a tray."""

    trait: str
    sample_id: str
    pools: tuple[str, ...]
    error: str


class Tray:
    """The parent's side: room for the pools of so many rows, float32 `[pools, layers, dim]` each.

    A context manager: at its end the memory is left to those who hold views of it.
    """

    def __init__(self, rows: int, pools: Sequence[str], layers: int, dim: int) -> None:
        self._pools = tuple(pools)
        self._shape = (rows, len(self._pools), layers, dim)
        self._file = os.memfd_create("traitmill-capture")
        os.ftruncate(self._file, max(1, 4 * int(np.prod(self._shape))))
        self.place = Place(f"/proc/{os.getpid()}/fd/{self._file}", self._pools, self._shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def take(self, results: Sequence[Result]) -> list[Activation]:
        """Return activations whose pools are views of the memory, one a row in its order."""
        seen = mmap.mmap(self._file, max(1, 4 * int(np.prod(self._shape))))
        values = np.frombuffer(seen, np.float32, int(np.prod(self._shape))).reshape(self._shape)
        return [
            Activation(
                result.trait,
                result.sample_id,
                {
                    pool: found
                    for pool, found in zip(self._pools, values[row], strict=True)
                    if pool in result.pools
                },
                result.error,
            )
            for row, result in enumerate(results)
        ]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker puts what its parent has room for."""

    path: str
    pools: tuple[str, ...]
    shape: tuple[int, ...]
    """[rows, pools, layers, dim]."""

    def put(self, found: Sequence[Activation]) -> list[Result]:
        """Write the pools of as many rows as there is room for; return what else is to be said."""
        file = os.open(self.path, os.O_RDWR)
        try:
            with mmap.mmap(file, max(1, 4 * int(np.prod(self.shape)))) as memory:
                values = np.frombuffer(memory, np.float32, int(np.prod(self.shape)))
                rows = values.reshape(self.shape)
                for row, activation in enumerate(found):
                    for pool, name in enumerate(self.pools):
                        if name in activation.pools:
                            rows[row, pool] = activation.pools[name]
                del rows, values  # a mapping that is looked at cannot be closed
        finally:
            os.close(file)
        return [Result(each.trait, each.sample_id, tuple(each.pools), each.error) for each in found]
