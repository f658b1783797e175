"""Tables of figures as Parquet files that notice any change of a bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Step, UsageError
from ..files import write_atomic

if TYPE_CHECKING:
    import polars as pl

_KEY = b"traitmill"


def write_table(path: Path, table: pl.DataFrame, facts: Mapping[str, Any]) -> None:
    """Write a table with `facts` in the file's metadata, whole or not at all."""
    import pyarrow.parquet as pq

    text = json.dumps(facts)
    content = json.dumps({"facts": text, "sha256": _digest(table, text)})
    arrow = table.to_arrow().replace_schema_metadata({_KEY: content})
    buffer = BytesIO()
    pq.write_table(arrow, buffer, write_page_checksum=True)
    write_atomic(path, buffer.getvalue())


def read_table(path: Path, step: Step) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return a table and its facts.

    Raise UsageError, naming the `step` that makes it, for a file that is missing or was changed.
    """
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UsageError(f"{path} is missing; make it", step)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            arrow = file.read(use_threads=False)
        arrow.validate(full=True)
        content = json.loads(arrow.schema.metadata[_KEY])
        table = pl.DataFrame(pl.from_arrow(arrow.replace_schema_metadata(None)))
        if content["sha256"] != _digest(table, content["facts"]):
            raise ValueError("its checksum differs")
        return table, dict(json.loads(content["facts"]))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        raise UsageError(f"{path} is damaged ({reason}); make it anew", step) from None


def _digest(table: pl.DataFrame, facts: str) -> str:
    kinds = ",".join(f"{name}:{kind}" for name, kind in table.schema.items())
    return hashlib.sha256("\n".join([kinds, facts, table.write_csv()]).encode()).hexdigest()
