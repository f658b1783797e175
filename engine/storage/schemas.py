"""Records as Arrow tables: the schemas of the part files, the way there and back, and a part file's
rows written whole and read in part."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import write_atomic
from ..records import RESPONSE_STATUSES, VERDICT_STATUSES, Activation, Response, Sample, Verdict

Kind = Literal["responses", "verdicts", "activations"]
KINDS: tuple[Kind, ...] = ("responses", "verdicts", "activations")
STATUSES: dict[Kind, tuple[str, ...]] = {
    "responses": RESPONSE_STATUSES,
    "verdicts": VERDICT_STATUSES,
    "activations": ("ok", "failed", "absent"),
}
Row = dict[str, Any]

RESPONSE_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("polarity", pa.string()),
        ("instruction_index", pa.int32()),
        ("question_index", pa.int32()),
        ("rollout", pa.int32()),
        ("instruction", pa.string()),
        ("question", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("response_token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("seed", pa.int64()),
        ("status", pa.string()),
        ("logprobs", pa.list_(pa.float32())),
        ("error", pa.string()),
        ("thought", pa.string()),
        ("thought_token_ids", pa.list_(pa.int32())),
        ("thought_span", pa.list_(pa.int32())),
    ]
)
_LATER = ("thought", "thought_token_ids", "thought_span")
"""Columns that older part files of responses lack: they are read as nulls, no thought."""
VERDICT_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("judge_key", pa.string()),
        ("status", pa.string()),
        ("score", pa.float64()),
        ("mode", pa.string()),
        ("model", pa.string()),
        ("raw", pa.string()),
        ("attempts", pa.int32()),
        ("input_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("hidden_tokens", pa.int32()),
        ("error", pa.string()),
    ]
)
"""Activations have no fixed schema: the width of their values is the shape of their set."""
_OF_SAMPLE = (
    "polarity",
    "instruction_index",
    "question_index",
    "rollout",
    "instruction",
    "question",
    "prompt",
    "prompt_token_ids",
    "seed",
)
_OF_RESPONSE = (
    "response",
    "response_token_ids",
    "finish_reason",
    "status",
    "logprobs",
    "error",
    *_LATER,
)


def check_schema(kind: Kind, schema: pa.Schema) -> None:
    """Raise ArrowInvalid for a part file whose columns are not those of its kind."""
    if kind == "responses":
        older = pa.schema([field for field in RESPONSE_SCHEMA if field.name not in _LATER])
        good = schema.equals(RESPONSE_SCHEMA) or schema.equals(older)
    elif kind == "verdicts":
        good = schema.equals(VERDICT_SCHEMA)
    else:
        width = schema.field("values").type
        good = pa.types.is_fixed_size_binary(width) and schema.equals(_activation_schema(width))
    if not good:
        raise pa.ArrowInvalid(f"its columns are not those of {kind}")


def with_later(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return a table with those of `columns` that an older part file of responses lacks."""
    for name in set(_LATER).intersection(columns).difference(table.column_names):
        field = RESPONSE_SCHEMA.field(name)
        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


def _activation_schema(width: pa.DataType) -> pa.Schema:
    return pa.schema(
        [
            ("sample_id", pa.string()),
            ("capture_key", pa.string()),
            ("pool", pa.string()),
            ("layers", pa.list_(pa.int32())),
            ("dim", pa.int32()),
            ("status", pa.string()),
            ("values", width),
            ("error", pa.string()),
        ]
    )


def _clean(value: Any) -> Any:
    """Return the value as Arrow takes it: lone surrogates as escapes, tuples as lists."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return list(value) if isinstance(value, tuple) else value


def response_row(response: Response) -> Row:
    """Return a row of the responses schema, as plain JSON values."""
    sample = response.sample
    row = {name: _clean(getattr(sample, name)) for name in _OF_SAMPLE}
    row |= {name: _clean(getattr(response, name)) for name in _OF_RESPONSE}
    return row | {"sample_id": sample.id}


def verdict_row(verdict: Verdict) -> Row:
    """Return a row of the verdicts schema, as plain JSON values."""
    return {name: _clean(getattr(verdict, name)) for name in VERDICT_SCHEMA.names}


def row_table(kind: Kind, rows: Sequence[Row]) -> pa.Table:
    """Return rows of responses or verdicts as a table."""
    schema = RESPONSE_SCHEMA if kind == "responses" else VERDICT_SCHEMA
    return pa.Table.from_pylist(list(rows), schema=schema)


def activation_table(
    capture_key: str,
    layers: Sequence[int],
    dim: int,
    rows: Sequence[tuple[Activation, str]],
) -> pa.Table:
    """Return one row for each (activation, pool); values are null where capture failed, or the
    response has no token of the pool."""
    values: list[bytes | None] = []
    statuses = []
    for activation, pool in rows:
        found = activation.pools.get(pool)
        statuses.append("failed" if activation.error else "absent" if found is None else "ok")
        values.append(None if found is None else np.ascontiguousarray(found, "<f4").tobytes())
    count, width = len(rows), pa.binary(4 * len(layers) * dim)
    columns = {
        "sample_id": [activation.sample_id for activation, _ in rows],
        "capture_key": [capture_key] * count,
        "pool": [pool for _, pool in rows],
        "layers": [list(layers)] * count,
        "dim": [dim] * count,
        "status": statuses,
        "values": values,
        "error": [_clean(activation.error) for activation, _ in rows],
    }
    return pa.table(columns, schema=_activation_schema(width))


def response_of(trait: str, row: Row) -> Response:
    """Return the response that a row of the responses schema holds."""
    logprobs = row["logprobs"]
    if logprobs is not None:
        logprobs = tuple(logprobs)
    sample = Sample(
        trait=trait,
        id=row["sample_id"],
        polarity=row["polarity"],
        instruction_index=row["instruction_index"],
        question_index=row["question_index"],
        rollout=row["rollout"],
        instruction=row["instruction"],
        question=row["question"],
        prompt=row["prompt"],
        prompt_token_ids=tuple(row["prompt_token_ids"]),
        seed=row["seed"],
    )
    return Response(
        sample=sample,
        status=row["status"],
        response=row["response"],
        response_token_ids=tuple(row["response_token_ids"]),
        finish_reason=row["finish_reason"],
        logprobs=logprobs,
        error=row["error"],
        thought=row["thought"] or "",
        thought_token_ids=tuple(row["thought_token_ids"] or ()),
        thought_span=tuple(row["thought_span"] or (0, 0)),
    )


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
