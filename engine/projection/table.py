"""The table of projections: one row a turn, written in parts, merged when all are there."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import atomic_file, csv_line, write_atomic

TABLE, CSV = "projections.parquet", "projections.csv"
OURS = ("model", "row", "turn", "role", "n_tokens", "text", "error")
_BY_TOKEN = ".by_token"  # noqa: S105 - the end of a column's name
_TYPES = {
    "row": pa.int64(),
    "turn": pa.int32(),
    "n_tokens": pa.int32(),
    "token_ids": pa.list_(pa.int32()),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of a table of projections."""

    inputs: tuple[str, ...]
    """Those of the input, as it names them."""
    vectors: tuple[str, ...]

    @property
    def carried(self) -> tuple[str, ...]:
        """Those of the input as they stand in the table: `input.` before a name that is ours, as
        often as it takes to be like no other."""
        ours = {*OURS, "token_ids", *self.vectors, *self.by_token}
        taken, found = ours | set(self.inputs), []
        for name in self.inputs:
            new = name
            while name in ours and new in taken:
                new = f"input.{new}"
            taken.add(new)
            found.append(new)
        return tuple(found)

    @property
    def by_token(self) -> tuple[str, ...]:
        """The columns of each token's projections."""
        return tuple(f"{name}{_BY_TOKEN}" for name in self.vectors)

    @property
    def schema(self) -> pa.Schema:
        fields = [(name, _TYPES.get(name, pa.string())) for name in OURS]
        fields += [(name, pa.string()) for name in self.carried]
        fields += [(name, pa.float64()) for name in self.vectors]
        fields.append(("token_ids", _TYPES["token_ids"]))
        fields += [(name, pa.list_(pa.float32())) for name in self.by_token]
        return pa.schema(fields)

    @property
    def flat(self) -> tuple[str, ...]:
        """The columns that a CSV holds: all but those of tokens."""
        return (*OURS, *self.carried, *self.vectors)


def part_path(folder: Path, model: int, chunk: int) -> Path:
    """Return where a chunk's part of a model stands."""
    return folder / "parts" / f"model{model}-{chunk:06d}.parquet"


def is_whole(path: Path, layout: Layout) -> bool:
    """Return whether a part stands there whole: it appears at once, so that its schema tells."""
    with suppress(OSError, pa.ArrowException):
        return bool(pq.read_schema(path).equals(layout.schema))
    return False


def write_rows(path: Path, layout: Layout, rows: Sequence[dict[str, Any]]) -> None:
    """Write a part, whole or not at all. Columns that a row lacks are null."""
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(list(rows), schema=layout.schema)
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    write_atomic(path, buffer.getvalue())


def read_part(path: Path) -> pa.Table:
    """Return a part's rows; a damaged page is an error."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(use_threads=False)


def merge(folder: Path, layout: Layout, parts: Sequence[Path]) -> None:
    """Write projections.parquet from all parts, one at a time, a row group each."""
    with (
        atomic_file(folder / TABLE) as sink,
        pq.ParquetWriter(
            sink, layout.schema, compression="zstd", write_page_checksum=True
        ) as writer,
    ):
        for path in parts:
            rows = read_part(path)
            writer.write_table(rows, row_group_size=len(rows))


def write_flat(folder: Path, layout: Layout) -> None:
    """Write projections.csv from projections.parquet, a row group at a time."""
    with pq.ParquetFile(folder / TABLE, page_checksum_verification=True) as file:
        groups = range(file.num_row_groups)
        columns = list(layout.flat)
        flat = (file.read_row_group(group, columns=columns, use_threads=False) for group in groups)
        _write_csv(folder / CSV, layout.flat, (rows.select(layout.flat) for rows in flat))


def _write_csv(path: Path, names: Sequence[str], tables: Iterable[pa.Table]) -> None:
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        text.write(csv_line(names))
        for table in tables:
            for row in zip(*(table[name].to_pylist() for name in names), strict=True):
                text.write(csv_line(map(_csv_cell, row)))
        text.flush()
        text.detach()


def _csv_cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


@dataclass(slots=True)
class Gap:
    """How one model's projections differ from another's on the same turns."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, difference: float) -> None:
        self.n += 1
        self.total += difference
        self.squares += difference**2

    @property
    def mean(self) -> float:
        return self.total / self.n

    @property
    def half_width(self) -> float | None:
        """Half of a 95 % interval of the mean, turns taken as independent; None for one."""
        if self.n < 2:
            return None
        from scipy.stats import t

        variance = max(0.0, self.squares / self.n - self.mean**2) * self.n / (self.n - 1)
        return float(t.ppf(0.975, self.n - 1) * np.sqrt(variance / self.n))


def compare(
    path: Path, layout: Layout, models: Sequence[str], table: Path
) -> dict[tuple[str, str, str], Gap]:
    """Write comparison.csv from the table: one row a turn, each vector's projection by every
    model, and how far each further model's is from the first's.

    Return the gaps by model, role and vector. A turn that a model could not read has empty cells.
    """
    gaps: dict[tuple[str, str, str], Gap] = {}
    head = ["row", "turn", "role", "text", *layout.carried]
    for name in layout.vectors:
        head += [f"{name} {model}" for model in models]
        head += [f"{name} {model} - {models[0]}" for model in models[1:]]
    with (
        atomic_file(path) as file,
        pq.ParquetFile(table, page_checksum_verification=True) as stored,
    ):
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        text.write(csv_line(head))
        chunks = stored.num_row_groups // len(models)  # each model's, one model after the other
        for chunk in range(chunks):
            groups = [chunk + chunks * number for number in range(len(models))]
            columns = list(layout.flat)
            rows = [
                stored.read_row_group(group, columns=columns, use_threads=False) for group in groups
            ]
            for cells in _compared(rows, layout, models, gaps):
                text.write(csv_line(map(_csv_cell, cells)))
        text.flush()
        text.detach()
    return gaps


def _compared(
    tables: Sequence[pa.Table],
    layout: Layout,
    models: Sequence[str],
    gaps: dict[tuple[str, str, str], Gap],
) -> Iterator[list[Any]]:
    by_turn: dict[tuple[int, int | None], list[dict[str, Any] | None]] = {}
    for number, table in enumerate(tables):
        for row in table.select(layout.flat).to_pylist():
            found = by_turn.setdefault((row["row"], row["turn"]), [None] * len(tables))
            found[number] = row
    for (_, turn), found in by_turn.items():
        first = next(row for row in found if row is not None)
        if turn is None:
            continue
        cells = [first[name] for name in ("row", "turn", "role", "text", *layout.carried)]
        for name in layout.vectors:
            values = [row[name] if row is not None else None for row in found]
            differences = []
            for model, value in zip(models[1:], values[1:], strict=True):
                difference = None
                if value is not None and values[0] is not None:
                    difference = value - values[0]
                    gaps.setdefault((model, first["role"], name), Gap()).add(difference)
                differences.append(difference)
            cells += [*values, *differences]
        yield cells
