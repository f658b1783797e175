"""The part files of a record set: each appears whole or not at all, small ones are merged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import ResourceError
from ..files import atomic_file
from .schemas import (
    Kind,
    check_schema,
    open_writer,
    read_columns,
    regrouped,
    rows_per_group,
    take_rows,
    write_part,
)

_PART = re.compile(r"part-(\d{8})(?:-(\d{8}))?\.parquet")
_PART_BYTES = 256 << 20
_MANY_PARTS = 512
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, pa.lib.ArrowException)
"""What Arrow raises for damaged bytes; ValueError and KeyError where they make names of columns."""

# Arrow's default pool keeps what it once used: tens of MB in a long run.
pa.set_memory_pool(pa.system_memory_pool())


def untold(_line: str) -> None:
    """Tell nobody. A function with a name, since what holds it can be pickled."""


class PartSet:
    """One record set: a folder of part files of one kind. One writer at a time; readers take no
    lock."""

    def __init__(
        self,
        folder: Path,
        kind: Kind,
        quarantine: Path,
        notice: Callable[[str], None],
        *,
        owned: bool,
    ) -> None:
        """`owned`: the trait's lock is held by a run that can make rows again.

        Then damaged parts are moved to `quarantine` and told to `notice`; else they are listed in
        `damaged` and left where they are.
        """
        self.folder, self.kind, self.owned = folder, kind, owned
        self.damaged: list[str] = []
        self._quarantine, self._notice = quarantine, notice
        self._last = -1
        """Number of the last part, -1 while it is not known."""

    # --- listing ---

    def _listed(self) -> list[Path]:
        """Return all parts in the order of their rows; a merged one before those it replaces."""
        found = [(_numbers(path), path) for path in self.folder.glob("part-*.parquet")]
        found.sort(key=lambda pair: (pair[0][0], -pair[0][1]))
        return [path for (first, _), path in found if first]

    def paths(self) -> list[Path]:
        """Return the readable parts in the order they were written, merged-away ones left out."""
        paths = []
        covered = 0
        for path in self._listed():
            if _numbers(path)[1] <= covered:
                continue
            try:
                check_schema(self.kind, pq.read_schema(path))
            except FileNotFoundError:  # merged just now by a run at work
                continue
            except _DAMAGE as error:
                self._deal_with(path, error)
            else:
                covered = _numbers(path)[1]
                paths.append(path)
        return paths

    def n_rows(self) -> int:
        """Return how many rows the readable parts hold, repeats included."""
        return sum(pq.read_metadata(path).num_rows for path in self.paths())

    # --- damage ---

    def _deal_with(self, path: Path, error: Exception) -> None:
        """Set a damaged part aside, or list it. Raise ResourceError for other faults."""
        # A path that Arrow cannot spell says nothing of what the file holds.
        fault_elsewhere = isinstance(error, MemoryError | UnicodeEncodeError)
        if fault_elsewhere or (isinstance(error, OSError) and error.errno):
            raise ResourceError(
                f"{path} cannot be read: {error}; what is stored is safe, run again"
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not self.owned:
            line = f"{path} is damaged ({reason})"
            if line not in self.damaged:
                self.damaged.append(line)
            return
        target = self.quarantine_path(f"{self.kind}-{path.name}")
        path.rename(target)
        self._notice(
            f"{path} is damaged ({reason}); moved to {target}, its samples will be done again"
        )

    def quarantine_path(self, name: str) -> Path:
        """Return a free path in the quarantine."""
        target = self._quarantine / name
        target.parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while target.exists():
            number += 1
            target = target.with_name(f"{Path(name).stem}-{number}.parquet")
        return target

    def _unreadable(self, path: Path, error: Exception) -> ResourceError:
        self._deal_with(path, error)
        return ResourceError(f"{path} is damaged; generate again to redo its rows")

    # --- writing ---

    def append(self, table: pa.Table) -> Path:
        """Write one part. Raise ResourceError when the disk is full; earlier parts stay valid."""
        if self._last < 0:
            self._last = max((_numbers(path)[1] for path in self._listed()), default=0)
        self._last += 1
        path = self.folder / f"part-{self._last:08d}.parquet"
        write_part(path, self.kind, table)
        return path

    def recover(self) -> None:
        """Finish a merge that was cut off, and merge where a long run left very many parts."""
        kept = {path.name for path in self.paths()}
        for path in self._listed():
            if path.name not in kept:
                path.unlink(missing_ok=True)  # its rows stand in the part it was merged into
        if self.kind != "activations" and len(kept) > _MANY_PARTS:
            self.compact()

    def compact(self) -> None:
        """Merge neighbouring small parts: a part-FIRST-LAST takes the place of FIRST to LAST.

        Its appearance is what replaces them: cut off before, nothing changed; cut off after,
        `recover` removes them. Needs as much free disk as one merged part, 256 MB at most.
        """
        groups: list[list[Path]] = []
        last, size = None, 0
        for path in self.paths():
            schema, own = pq.read_schema(path), path.stat().st_size
            if last is None or not schema.equals(last) or size + own > _PART_BYTES:
                groups.append([])
                size = 0
            groups[-1].append(path)
            last, size = schema, size + own
        for paths in groups:
            if len(paths) > 1:
                self._merge(paths)

    def _merge(self, paths: list[Path]) -> None:
        schema = pq.read_schema(paths[0])
        first, last = _numbers(paths[0])[0], _numbers(paths[-1])[1]
        target = self.folder / f"part-{first:08d}-{last:08d}.parquet"
        with atomic_file(target) as file, open_writer(file, self.kind, schema) as writer:
            size = rows_per_group(self.kind, schema)
            for group in regrouped(self._batches(paths, size), size):
                writer.write_table(group)
        for path in paths:
            path.unlink()

    def _batches(self, paths: Iterable[Path], size: int) -> Iterator[pa.Table]:
        for path in paths:
            try:
                with pq.ParquetFile(path, page_checksum_verification=True) as file:
                    for batch in file.iter_batches(batch_size=size, use_threads=False):
                        yield pa.Table.from_batches([batch])
            except _DAMAGE as error:
                raise self._unreadable(path, error) from error

    # --- reading ---

    def read(self, columns: Sequence[str]) -> Iterator[tuple[Path, pa.Table]]:
        """Yield some columns of every readable part.

        Raise FileNotFoundError when a part was merged since the parts were listed.
        """
        for path in self.paths():
            try:
                table = read_columns(path, list(columns))
            except FileNotFoundError:
                raise
            except _DAMAGE as error:
                self._deal_with(path, error)
            else:
                yield path, table

    def take(self, path: Path, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Return some rows of a part. Raise ResourceError when its data is damaged."""
        try:
            return take_rows(path, rows, list(columns))
        except FileNotFoundError as error:
            raise ResourceError(f"{path} was merged while it was read; run again") from error
        except _DAMAGE as error:
            raise self._unreadable(path, error) from error


def _numbers(path: Path) -> tuple[int, int]:
    """Return the first and last of the parts whose rows a part holds; (0, 0) for others."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return 0, 0
    return int(match[1]), int(match[2] or match[1])


def split_off(parts: PartSet, known: np.ndarray, before: Callable[[], None] = lambda: None) -> int:
    """Quarantine rows of samples that are not `known` (`S32`, sorted); return how many.

    `before` is called before a row is moved.
    """
    lost = 0
    for path, table in parts.read(["sample_id"]):
        good = np.isin(ids_of(table), known)
        if good.all():
            continue
        before()
        with pq.ParquetFile(path) as file:
            whole = file.read(use_threads=False)
        target = parts.quarantine_path(f"orphans-{parts.kind}-{path.name}")
        write_part(target, parts.kind, whole.filter(pa.array(~good)))
        if good.any():
            write_part(path, parts.kind, whole.filter(pa.array(good)))
        else:
            path.unlink()
        lost += int((~good).sum())
    return lost


def ok_ids(parts: PartSet) -> np.ndarray:
    """Return the ids of samples with an `ok` row, `S32`, sorted."""
    found = [np.zeros(0, "S32")]
    for _, table in parts.read(["sample_id", "status"]):
        found.append(ids_of(table.filter(pc.equal(table["status"], "ok"))))
    return np.unique(np.concatenate(found))


def ids_of(table: pa.Table) -> np.ndarray:
    """Return the sample ids of a table, `S32`."""
    return np.asarray(table["sample_id"].to_numpy(), dtype="S32")
