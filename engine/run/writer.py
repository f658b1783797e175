"""Records on their way to the store: buffered by trait and kind, written as parts off the event loop, in order.

At most `flush_seconds` of responses and activations and one second (or 50 rows) of verdicts are in memory only; what
is written of a trait is always preceded by its responses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import ResourceError, TraitmillError
from ..files import write_atomic
from ..records import Activation, Response, Verdict
from ..storage.run_record import MANIFEST
from ..storage.schemas import (
    KINDS,
    CaptureFailure,
    Kind,
    activation_table,
    response_table,
    verdict_table,
)
from .job import TraitJob

T = TypeVar("T")
Record = Response | Verdict | list[Activation | CaptureFailure]
"""One response's record; a capture's record is the list of its pools."""

VERDICT_SECONDS = 1.0
_MAX_ROWS: dict[Kind, int] = {"responses": 1000, "verdicts": 50, "activations": 64}
_TICK_S = 0.1


@dataclass(slots=True)
class _Buffer:
    since: float
    records: list[Any] = field(default_factory=list)


class Recorder:
    """Buffers records and appends them to their trait's store on one writer thread."""

    def __init__(
        self, flush_seconds: float, on_error: Callable[[TraitJob, TraitmillError], None]
    ) -> None:
        """`on_error(job, error)` hears of a trait whose folder cannot be written; its records are dropped."""
        self._seconds: dict[Kind, float] = {
            "responses": flush_seconds,
            "verdicts": min(VERDICT_SECONDS, flush_seconds),
            "activations": flush_seconds,
        }
        self.on_error = on_error
        self._buffers: dict[tuple[TraitJob, Kind], _Buffer] = {}
        self._manifests: set[TraitJob] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._full = asyncio.Event()
        self._writing = asyncio.Lock()

    def add(self, job: TraitJob, kind: Kind, record: Record) -> None:
        """Take a record; it is on disk after the next flush."""
        buffer = self._buffers.get((job, kind))
        if buffer is None:
            buffer = self._buffers[job, kind] = _Buffer(time.monotonic())
        buffer.records.append(record)
        if len(buffer.records) >= _MAX_ROWS[kind]:
            self._full.set()

    def write_manifest(self, job: TraitJob) -> None:
        """Have a trait's manifest written before any record that is flushed later."""
        self._manifests.add(job)
        self._full.set()

    async def run(self) -> None:
        """Flush what is due, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(
                    _TICK_S
                ):  # wait_for may lose a cancellation before Python 3.12
                    await self._full.wait()
            self._full.clear()
            now = time.monotonic()
            for (job, kind), buffer in list(self._buffers.items()):
                if (
                    len(buffer.records) >= _MAX_ROWS[kind]
                    or now - buffer.since >= self._seconds[kind]
                ):
                    await self._flush(job, kind)

    async def flush(self, job: TraitJob | None = None) -> None:
        """Write everything in hand (of one trait, or of all)."""
        for owner in dict.fromkeys([*self._manifests, *(owner for owner, _ in self._buffers)]):
            if job is None or owner is job:
                await self._flush(owner, *KINDS)
        async with self._writing:  # wait for a write under way
            pass

    @asynccontextmanager
    async def paused(self, job: TraitJob) -> AsyncIterator[None]:
        """Flush a trait; while the block runs nothing is written, and no index changes."""
        await self.flush(job)
        async with self._writing:
            yield

    async def _flush(self, job: TraitJob, *kinds: Kind) -> None:
        # A write that has begun is brought to its end, index and all, even when whoever asked for it is cancelled.
        await asyncio.shield(asyncio.ensure_future(self._write(job, kinds)))

    async def _write(self, job: TraitJob, kinds: Iterable[Kind]) -> None:
        async with self._writing:
            # A verdict or an activation never stands on disk without the text it is of: should a crash take the text,
            # a rerun may write another. So all are taken at one moment, and written responses first.
            manifest = job.view.manifest.as_bytes() if job in self._manifests else None
            self._manifests.discard(job)
            taken = {
                kind: self._buffers.pop((job, kind), None)
                for kind in dict.fromkeys(("responses", *kinds))
            }
            if job.error is not None:
                return
            try:
                if manifest is not None:
                    await self._on_thread(write_atomic, job.folder / MANIFEST, manifest)
                for kind, buffer in taken.items():
                    if buffer is not None:
                        _note(
                            job,
                            kind,
                            await self._on_thread(_append, job, kind, buffer.records),
                            buffer.records,
                        )
            except TraitmillError as error:
                self.on_error(job, error)
            except OSError as error:
                self.on_error(
                    job, ResourceError(f"{job.folder} cannot be written: {error.strerror or error}")
                )

    async def _on_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def close(self) -> None:
        """Stop the writer thread (flush first)."""
        self._thread.shutdown(wait=True)


def _append(job: TraitJob, kind: Kind, records: list[Any]) -> Path:
    if kind == "responses":
        table = response_table(records)
    elif kind == "verdicts":
        table = verdict_table(records)
    else:
        table = activation_table(
            job.view.manifest.capture_key, [pool for record in records for pool in record]
        )
    return job.view.store.parts.append(kind, table)


def _note(job: TraitJob, kind: Kind, path: Path, records: list[Any]) -> None:
    """Bring the job's indexes up to date with a part just written."""
    view = job.view
    if kind == "activations":
        flat = [pool for record in records for pool in record]
        for pool, index in view.activations.items():
            rows = [row for row, record in enumerate(flat) if record.pool == pool]
            statuses = ["failed" if isinstance(flat[row], CaptureFailure) else "ok" for row in rows]
            index.add(
                path,
                np.array(rows, np.int64),
                _positions(job, [flat[row].sample_id for row in rows]),
                statuses,
            )
        return
    index = view.responses if kind == "responses" else view.verdicts
    ids = [record.sample.id if kind == "responses" else record.sample_id for record in records]
    scores = [verdict.score for verdict in records] if kind == "verdicts" else []
    index.add(
        path,
        np.arange(len(records)),
        _positions(job, ids),
        [record.status for record in records],
        scores,
    )


def _positions(job: TraitJob, ids: list[str]) -> np.ndarray:
    """Looked up when the part is there: a round added to the plan meanwhile moves positions, ids stay."""
    return job.view.plan.positions(np.array(ids, "S32"))
