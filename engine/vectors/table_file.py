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
from ..threads import after_fork

if TYPE_CHECKING:
    import polars as pl

_SEAL = b'"sha256": "'
_BLANK = b"0" * 64


def write_table(path: Path, table: pl.DataFrame, facts: Mapping[str, Any]) -> None:
    """Write a table, with `facts` as JSON under the key `traitmill` of the file's metadata.

    The facts get a `sha256`: of the whole file, with zeros in place of those 64 digits.
    """
    import pyarrow.parquet as pq

    after_fork(f"to write {path.name}")
    text = json.dumps({**facts, "sha256": _BLANK.decode()})
    arrow, buffer = table.to_arrow(), BytesIO()
    options = {"compression": "zstd", "write_page_checksum": True}
    with pq.ParquetWriter(buffer, arrow.schema, **options) as writer:
        writer.write_table(arrow)
        writer.add_key_value_metadata({"traitmill": text})
    before, _, after = _parts(buffer.getvalue())
    write_atomic(path, before + _digest(before, after) + after)


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

    after_fork(f"to read {path.name}")
    try:
        before, digest, after = _parts(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{path} is missing; make it", step) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); make it anew", step) from None
    if digest != _digest(before, after):
        raise UsageError(f"{path} cannot be read: its checksum differs; make it anew", step)
    data = BytesIO(before + digest + after)
    with pq.ParquetFile(data, page_checksum_verification=True) as file:
        table = pl.DataFrame(pl.from_arrow(file.read(use_threads=False)))
        facts = json.loads(file.metadata.metadata[b"traitmill"])
    if table.columns != list(columns):
        raise UsageError(f"{path} cannot be read: it holds another table; make it anew", step)
    return table, facts


def _parts(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return a file around its checksum: the last place of that key, as metadata is the footer."""
    start = data.rfind(_SEAL) + len(_SEAL)
    end = start + len(_BLANK)
    return data[:start], data[start:end], data[end:]


def _digest(before: bytes, after: bytes) -> bytes:
    return hashlib.sha256(before + _BLANK + after).hexdigest().encode()
