"""A trait's Parquet parts on disk: each appears whole or not at all; damaged ones are set aside, small ones merged."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import ResourceError
from ..files import atomic_file, remove_leftovers, write_atomic
from .schemas import KINDS, Kind, check_columns

_PART = re.compile(r"part-(\d{8})(?:-(\d{8}))?\.parquet")
_PART_BYTES = 256 << 20
_MANY_PARTS = 512
_ROW_GROUP = {"responses": 1024, "verdicts": 8192, "activations": 64}
_ROW_GROUP_BYTES = 16 << 20

_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError)
"""What Arrow raises for damaged bytes; the last two where they make names of columns."""

pa.set_memory_pool(
    pa.system_memory_pool()
)  # the default one keeps what it once used, tens of MB in a long run


class Parts:
    """The parts of one trait. One writer at a time (see lock.py); readers need no lock."""

    def __init__(self, folder: Path, notice: Callable[[str], None] = lambda _: None) -> None:
        """`notice` hears of damaged parts."""
        self.folder = folder
        self.root = folder / "parquet"
        self._notice = notice
        self._next: dict[Kind, int] = {}
        self._owned = False

    def recover(self) -> None:
        """Clean up behind a killed run; call once, holding the lock. From then on damaged parts are moved aside."""
        self._owned = True
        subfolders = (
            "responses",
            "activations",
            "vectors",
            "plots",
            *(f"parquet/{kind}" for kind in KINDS),
        )
        for folder in (self.folder, self.root, *(self.folder / name for name in subfolders)):
            if folder.is_dir():
                remove_leftovers(folder)
        for kind in KINDS:
            merged = {path.name for path in self.paths(kind)}
            for path in self._listed(kind):
                if path.name not in merged:
                    path.unlink(missing_ok=True)  # its rows stand in a part it was merged into
        self._set_orphans_aside()
        for kind in (
            "responses",
            "verdicts",
        ):  # a long run that was killed: the next one starts faster
            if len(self._listed(kind)) > _MANY_PARTS:
                self.compact(kind)

    def _listed(self, kind: Kind) -> list[Path]:
        """All parts, in the order of their rows; a merged part comes before the parts it replaces."""
        found = ((_numbers(path), path) for path in (self.root / kind).glob("part-*.parquet"))
        return [
            path
            for (first, last), path in sorted(found, key=lambda pair: (pair[0][0], -pair[0][1]))
            if first
        ]

    def paths(self, kind: Kind) -> list[Path]:
        """The readable parts in the order they were written, without those that were merged into another.

        A damaged one is named and, by the lock's holder, moved aside.
        """
        paths = []
        covered = 0
        for path in self._listed(kind):
            if _numbers(path)[1] <= covered:
                continue
            try:
                check_columns(kind, pq.read_schema(path))
            except FileNotFoundError:  # merged just now by a run at work
                continue
            except _DAMAGE as error:
                self._set_aside(path, error)
            else:
                covered = _numbers(path)[1]
                paths.append(path)
        return paths

    def _set_aside(self, path: Path, error: Exception) -> None:
        """Deal with a damaged part. Raises ResourceError where it is not the file that is at fault."""
        if isinstance(error, MemoryError) or (
            isinstance(error, OSError) and error.errno is not None
        ):
            raise ResourceError(
                f"{path} cannot be read: {error}; what is stored is safe, run again"
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not self._owned:
            self._notice(
                f"{path} is damaged ({reason}); the next run moves it aside and does its samples again"
            )
            return
        target = self._quarantine(f"{path.parent.name}-{path.name}")
        path.rename(target)
        self._notice(
            f"{path} is damaged ({reason}); moved to {target}, its samples will be done again"
        )

    def _damaged(self, path: Path, error: Exception) -> ResourceError:
        """Deal with a part whose rows turn out to be damaged while they are used."""
        self._set_aside(path, error)
        return ResourceError(f"{path} is damaged; run traitmill generate again to redo its rows")

    def _quarantine(self, name: str) -> Path:
        """A free path in the quarantine."""
        target = self.root / "quarantine" / name
        target.parent.mkdir(exist_ok=True)
        number = 1
        while target.exists():
            number += 1
            target = target.with_name(f"{Path(name).stem}-{number}.parquet")
        return target

    def _set_orphans_aside(self) -> None:
        """Where responses were lost, what was said of them must not be taken for their successors'.

        A response is on disk before its verdict and its activation are, so a row without one is an orphan.
        """
        # Only an `ok` response is judged and captured: of a sample that failed and was done again, the failure may be
        # what is left.
        known = [np.zeros(0, "S32")]
        for _, table in self.read("responses", ["sample_id", "status"]):
            known.append(ids_of(table.filter(pc.equal(table["status"], "ok"))))
        stored = np.unique(np.concatenate(known))
        for kind in ("verdicts", "activations"):
            lost = 0
            for path, table in self.read(kind, ["sample_id"]):
                has_response = np.isin(ids_of(table), stored)
                if has_response.all():
                    continue
                whole = pq.read_table(path, partitioning=None)
                target = self._quarantine(f"orphans-{kind}-{path.name}")
                _write_part(target, kind, whole.filter(pa.array(~has_response)))
                if has_response.any():
                    _write_part(path, kind, whole.filter(pa.array(has_response)))
                else:
                    path.unlink()
                lost += int((~has_response).sum())
            if lost:
                self._notice(
                    f"{self.folder}: {lost} {kind} belong to responses that were lost, so they will be done again; "
                    f"the rows were moved to {self.root / 'quarantine'}"
                )

    def append(self, kind: Kind, table: pa.Table) -> Path:
        """Add one part. Raises ResourceError when the disk is full; earlier parts stay valid."""
        path = self._new_part(kind)
        _write_part(path, kind, table)
        return path

    def _new_part(self, kind: Kind) -> Path:
        if kind not in self._next:
            self._next[kind] = max((_numbers(path)[1] for path in self._listed(kind)), default=0)
        self._next[kind] += 1
        return self.root / kind / f"part-{self._next[kind]:08d}.parquet"

    # --- reading ---

    def read(
        self, kind: Kind, columns: Sequence[str], *, whole: bool = False
    ) -> Iterator[tuple[Path, pa.Table]]:
        """Some columns of every part. Raises FileNotFoundError when one was merged since the parts were listed.

        A damaged part is dealt with and left out; `whole`: ResourceError, to the lock's holder.
        """
        for path in self.paths(kind):
            try:
                yield path, _read(path, list(columns))
            except FileNotFoundError:
                raise
            except _DAMAGE as error:
                if whole and self._owned:
                    raise self._damaged(path, error) from error
                self._set_aside(path, error)

    def take(self, path: Path, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Some rows of a part. Raises ResourceError when its data is damaged."""
        try:
            return _take(path, rows, list(columns))
        except FileNotFoundError as error:
            raise ResourceError(
                f"{path} was merged by a run at work while it was read; run again"
            ) from error
        except _DAMAGE as error:
            raise self._damaged(path, error) from error

    # --- compaction ---

    def compact(self, kind: Kind) -> None:
        """Merge neighbouring small parts, a part-FIRST-LAST in place of parts FIRST to LAST.

        Its appearance is what replaces them: cut off before, nothing changed; cut off after, the next run only has to
        remove them. Needs as much free disk as one merged part, 256 MB at most.
        """
        groups: list[list[Path]] = []
        last, size = None, 0
        for path in self.paths(kind):
            schema, own = pq.read_schema(path), path.stat().st_size
            if last is None or not schema.equals(last) or size + own > _PART_BYTES:
                groups.append([])
                size = 0
            groups[-1].append(path)
            last, size = schema, size + own
        for paths in groups:
            if len(paths) > 1:
                self._merge(kind, paths)

    def _merge(self, kind: Kind, paths: list[Path]) -> None:
        schema = pq.read_schema(paths[0])
        first, last = _numbers(paths[0])[0], _numbers(paths[-1])[1]
        target = self.root / kind / f"part-{first:08d}-{last:08d}.parquet"
        with atomic_file(target) as file, _writer(file, kind, schema) as writer:
            size = _rows_per_group(kind, schema)
            for group in _regrouped(self._batches(paths, size), size):
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
                raise self._damaged(path, error) from error


def _numbers(path: Path) -> tuple[int, int]:
    """The first and the last of the parts whose rows a part holds; (0, 0) for other files."""
    match = _PART.fullmatch(path.name)
    return (int(match[1]), int(match[2] or match[1])) if match else (0, 0)


def ids_of(table: pa.Table) -> np.ndarray:
    return np.asarray(table["sample_id"].to_numpy(), dtype="S32")


def _write_part(path: Path, kind: Kind, table: pa.Table) -> None:
    buffer = io.BytesIO()  # small, and plain writes give plain errors
    with _writer(buffer, kind, table.schema) as writer:
        writer.write_table(table, row_group_size=_rows_per_group(kind, table.schema))
    write_atomic(path, buffer.getvalue())


def _writer(sink: Any, kind: Kind, schema: pa.Schema) -> pq.ParquetWriter:
    plain = kind == "activations"  # floats neither repeat nor compress
    return pq.ParquetWriter(
        sink,
        schema,
        compression="none" if plain else "zstd",
        use_dictionary=not plain,
        write_statistics=not plain,
        write_page_checksum=True,
    )


def _rows_per_group(kind: Kind, schema: pa.Schema) -> int:
    if kind != "activations":
        return _ROW_GROUP[kind]
    width = int(schema.field("values").type.byte_width)
    return max(1, min(_ROW_GROUP[kind], _ROW_GROUP_BYTES // width))


def _read(path: Path, columns: list[str]) -> pa.Table:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read(columns=columns, use_threads=False)
    if missing := set(columns) - set(table.column_names):
        raise pa.ArrowInvalid(f"no column {', '.join(sorted(missing))}")
    return table.select(columns)


def _take(path: Path, rows: np.ndarray, columns: list[str]) -> pa.Table:
    """Some rows of a part, in the order given, reading only the row groups they stand in."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        group_of = np.searchsorted(starts, rows, side="right") - 1
        groups = np.unique(group_of)
        local_start = np.concatenate([[0], np.cumsum([sizes[g] for g in groups])])[:-1]
        table = file.read_row_groups(groups.tolist(), columns=columns, use_threads=False)
    return table.take(rows - starts[group_of] + local_start[np.searchsorted(groups, group_of)])


def _regrouped(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of `size` rows; none that comes in is larger."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        if rows >= size:
            merged = pa.concat_tables(held)
            yield merged.slice(0, size)
            held, rows = [merged.slice(size)], rows - size
    if rows:
        yield pa.concat_tables(held)
