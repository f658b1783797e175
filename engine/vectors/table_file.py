"""Tables of figures as Parquet files that notice the change of any bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Step, UsageError
from ..files import write_atomic

if TYPE_CHECKING:
    import polars as pl

_KEY = "traitmill"
_SEAL = b'"sha256": "'
_BLANK = b"0" * 64


def write_table(path: Path, table: pl.DataFrame, facts: Mapping[str, Any]) -> None:
    """Write a table with `facts` in the file's metadata, whole or not at all.

    The facts get a `sha256`: of the whole file, with zeros in place of those 64 digits.
    """
    import pyarrow.parquet as pq

    text = json.dumps({**facts, "sha256": _BLANK.decode()})
    arrow = table.to_arrow()
    buffer = BytesIO()
    with pq.ParquetWriter(
        buffer, arrow.schema, compression="zstd", write_page_checksum=True
    ) as writer:
        writer.write_table(arrow)
        writer.add_key_value_metadata({_KEY: text})
    data = buffer.getvalue()
    start, end = _sealed(data)
    write_atomic(path, data[:start] + _digest(data) + data[end:])


def read_table(
    path: Path, columns: Sequence[str], step: Step
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return a table and its facts.

    Raise UsageError, naming the `step` that makes it, for a file that is missing, was changed or
    has other columns. Nothing is parsed before the whole file's checksum holds: damaged Parquet can
    make a reader panic.
    """
    import polars as pl
    import pyarrow.parquet as pq

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} is missing; make it", step) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); make it anew", step) from None
    start, end = _sealed(data)
    if data[start:end] != _digest(data):
        raise UsageError(f"{path} cannot be read: its checksum differs; make it anew", step)
    with pq.ParquetFile(BytesIO(data), page_checksum_verification=True) as file:
        table = pl.DataFrame(pl.from_arrow(file.read()))
        facts = json.loads(file.metadata.metadata[_KEY.encode()])
    if table.columns != list(columns):
        raise UsageError(f"{path} cannot be read: it holds another table; make it anew", step)
    return table, facts


def _sealed(data: bytes) -> tuple[int, int]:
    """Return where the checksum stands in a file: the last place, since metadata is its footer."""
    start = data.rfind(_SEAL) + len(_SEAL)
    return start, start + len(_BLANK)


def _digest(data: bytes) -> bytes:
    start, end = _sealed(data)
    return hashlib.sha256(data[:start] + _BLANK + data[end:]).hexdigest().encode()
