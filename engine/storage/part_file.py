"""One Parquet file of records: how its rows are grouped, written whole, and read in part."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import write_atomic
from .schemas import Kind, with_later

_ROW_GROUP = {"responses": 1024, "verdicts": 8192, "activations": 64}
_ROW_GROUP_BYTES = 16 << 20


def write_part(path: Path, kind: Kind, table: pa.Table) -> None:
    """Write a part file, whole or not at all. Raise ResourceError when the disk is full."""
    buffer = io.BytesIO()  # small, and plain writes give plain errors
    with open_writer(buffer, kind, table.schema) as writer:
        writer.write_table(table, row_group_size=rows_per_group(kind, table.schema))
    write_atomic(path, buffer.getvalue())


def open_writer(sink: Any, kind: Kind, schema: pa.Schema) -> pq.ParquetWriter:
    plain = kind == "activations"  # floats neither repeat nor compress
    compression = "none" if plain else "zstd"
    return pq.ParquetWriter(
        sink,
        schema,
        compression=compression,
        use_dictionary=not plain,
        write_statistics=not plain,
        write_page_checksum=True,
    )


def rows_per_group(kind: Kind, schema: pa.Schema) -> int:
    if kind != "activations":
        return _ROW_GROUP[kind]
    width = max(1, int(schema.field("values").type.byte_width))
    return max(1, min(_ROW_GROUP[kind], _ROW_GROUP_BYTES // width))


def read_columns(path: Path, columns: list[str]) -> pa.Table:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = with_later(file.read(columns=columns, use_threads=False), columns)
    if missing := set(columns) - set(table.column_names):
        raise pa.ArrowInvalid(f"no column {', '.join(sorted(missing))}")
    return table.select(columns)


def take_rows(path: Path, rows: np.ndarray, columns: list[str]) -> pa.Table:
    """Return some rows of a part in the order given, reading only the row groups they stand in."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        groups = range(file.metadata.num_row_groups)
        sizes = np.array([file.metadata.row_group(group).num_rows for group in groups])
        starts = np.concatenate([[0], np.cumsum(sizes)])
        group_of = np.searchsorted(starts, rows, side="right") - 1
        wanted = np.unique(group_of)
        table = file.read_row_groups(wanted.tolist(), columns=columns, use_threads=False)
    local_starts = np.concatenate([[0], np.cumsum(sizes[wanted])])
    local = rows - starts[group_of] + local_starts[np.searchsorted(wanted, group_of)]
    return with_later(table, columns).select(columns).take(local)


def regrouped(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of `size` rows; none that comes in is larger."""
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
