"""Records on their way to the store: in a journal at once, in part files off the event loop.

A verdict or an activation never stands in a part file without the text it is of: what is written of
a trait is always preceded by its responses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ResourceError, TraitmillError
from ..records import Activation, Response, Verdict
from ..storage import KINDS, Kind, response_row, row_table, verdict_row

if TYPE_CHECKING:
    import pyarrow as pa

    from .trait_run import TraitRun

T = TypeVar("T")

_VERDICT_SECONDS = 1.0
_MAX_ROWS: dict[Kind, int] = {"responses": 1000, "verdicts": 50, "activations": 64}
_TICK_S = 0.1


@dataclass(slots=True)
class _Buffer:
    since: float
    records: list[Any] = field(default_factory=list)


class Writer:
    """Buffers records and appends them to their trait's parts on one writer thread."""

    def __init__(
        self, flush_seconds: float, on_error: Callable[[TraitRun, TraitmillError], None]
    ) -> None:
        """`on_error(run, error)` is called where a folder cannot be written; the records are
        dropped."""
        self._seconds: dict[Kind, float] = {
            "responses": flush_seconds,
            "verdicts": min(_VERDICT_SECONDS, flush_seconds),
            "activations": flush_seconds,
        }
        self.on_error = on_error
        self._buffers: dict[tuple[TraitRun, Kind], _Buffer] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._full = asyncio.Event()
        self._writing = asyncio.Lock()

    def add_response(self, run: TraitRun, response: Response) -> None:
        """Take a response; a kill from now on does not lose it."""
        self._add_row(run, "responses", response_row(response))

    def add_verdict(self, run: TraitRun, verdict: Verdict) -> None:
        """Take a verdict; a kill from now on does not lose it."""
        self._add_row(run, "verdicts", verdict_row(verdict))

    def add_activation(self, run: TraitRun, activation: Activation) -> None:
        """Take an activation; it is on disk after the next flush."""
        self._buffer(run, "activations", activation)

    def _add_row(self, run: TraitRun, kind: Kind, row: dict[str, Any]) -> None:
        try:
            run.journals[kind].add(row)
        except TraitmillError as error:
            self.on_error(run, error)
        except OSError as error:
            self.on_error(run, _unwritable(run, error))
        else:
            self._buffer(run, kind, row)

    def _buffer(self, run: TraitRun, kind: Kind, record: Any) -> None:
        buffer = self._buffers.setdefault((run, kind), _Buffer(time.monotonic()))
        buffer.records.append(record)
        if len(buffer.records) >= _MAX_ROWS[kind]:
            self._full.set()

    async def work(self) -> None:
        """Flush what is due, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._full.wait()
            self._full.clear()
            now = time.monotonic()
            for (run, kind), buffer in list(self._buffers.items()):
                old = now - buffer.since >= self._seconds[kind]
                if old or len(buffer.records) >= _MAX_ROWS[kind]:
                    await self._flush(run, [kind])

    async def flush(self, run: TraitRun | None = None) -> None:
        """Write everything in hand, of one trait or of all."""
        for owner in dict.fromkeys(owner for owner, _ in self._buffers):
            if run is None or owner is run:
                await self._flush(owner, KINDS)
        async with self._writing:  # wait for a write under way
            pass

    @asynccontextmanager
    async def paused(self, run: TraitRun) -> AsyncIterator[None]:
        """Flush a trait; while the block runs nothing is written, and no index changes."""
        await self.flush(run)
        async with self._writing:
            yield

    async def _flush(self, run: TraitRun, kinds: Iterable[Kind]) -> None:
        # A write that has begun is brought to its end, index and all, even when cancelled.
        await asyncio.shield(asyncio.ensure_future(self._write(run, kinds)))

    async def _write(self, run: TraitRun, kinds: Iterable[Kind]) -> None:
        async with self._writing:
            # Taken at one moment, and responses first: should a crash take a text, a rerun may
            # write another, and no verdict of the first may be left.
            taken: list[tuple[Kind, list[Any], Path | None]] = []
            for kind in dict.fromkeys(("responses", *kinds)):
                buffer = self._buffers.pop((run, kind), None)
                if buffer is not None:
                    journal = run.journals[kind].rotate() if kind in run.journals else None
                    taken.append((kind, buffer.records, journal))
            if run.error is not None:
                return
            try:
                for kind, records, journal in taken:
                    path, table = await self.on_thread(_append, run, kind, records, journal)
                    run.state.note(kind, path, table)
            except TraitmillError as error:
                self.on_error(run, error)
            except OSError as error:
                self.on_error(run, _unwritable(run, error))

    async def on_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function on the writer thread, after what is being written."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)

    async def finish(self) -> None:
        """Write everything in hand, then stop the writer thread."""
        try:
            await self.flush()
        finally:
            self._thread.shutdown(wait=True)


def _unwritable(run: TraitRun, error: OSError) -> ResourceError:
    return ResourceError(
        f"{error.filename or run.folder.path} cannot be written: {error.strerror or error}"
    )


def _append(
    run: TraitRun, kind: Kind, records: list[Any], journal: Path | None
) -> tuple[Path, pa.Table]:
    """Write one part, after the facts that it needs; then its journal is not needed any more."""
    if kind == "activations":
        run.save_capture()
        table = run.state.activation_rows(records)
    else:
        if kind == "verdicts":
            run.save_judge()
        table = row_table(kind, records)
    path = run.state.parts[kind].append(table)
    if journal is not None:
        journal.unlink(missing_ok=True)
    return path, table
