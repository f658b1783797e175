"""What a projection came to, in few figures: means by role, differences of models, failures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import pyarrow.parquet as pq

from .table import Layout

_NAMED = 100


@dataclass(frozen=True, slots=True)
class Mean:
    """A vector's mean projection over the turns of a role, as a model reads them."""

    model: str
    role: str
    vector: str
    value: float
    n: int


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a model's projections are from the first model's, on the same turns."""

    model: str
    role: str
    vector: str
    value: float
    """The mean, in training spreads."""
    half_width: float | None
    """Half of its 95 % interval, turns taken as independent; None for one turn."""
    n: int


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a projection."""

    rows: int
    """Of the table: turns, and texts that could not be read."""
    n_failed: int
    failed: tuple[str, ...]
    """The first hundred of them, by model and row, with the reason."""
    means: tuple[Mean, ...]
    differences: tuple[Difference, ...]

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        found = json.loads(data)
        return cls(
            rows=found["rows"],
            n_failed=found["n_failed"],
            failed=tuple(found["failed"]),
            means=tuple(Mean(**each) for each in found["means"]),
            differences=tuple(Difference(**each) for each in found["differences"]),
        )


def summarise(table: Path, layout: Layout, differences: Sequence[Difference]) -> Summary:
    """Return the figures of a table, read a row group at a time."""
    sums: dict[tuple[str, str, str], tuple[float, int]] = {}
    failed: list[str] = []
    n_failed = rows = 0
    columns = ["model", "row", "role", "error", *layout.vectors]
    with pq.ParquetFile(table, page_checksum_verification=True) as file:
        for group in range(file.metadata.num_row_groups):
            rows_read = file.read_row_group(group, columns=columns, use_threads=False)
            for row in rows_read.to_pylist():
                rows += 1
                if row["error"] is not None:
                    n_failed += 1
                    if len(failed) < _NAMED:
                        failed.append(f"{row['model']}, row {row['row']}: {row['error']}")
                    continue
                for name in layout.vectors:
                    if row[name] is not None:
                        key = (row["model"], row["role"], name)
                        total, n = sums.get(key, (0.0, 0))
                        sums[key] = total + row[name], n + 1
    means = [Mean(*key, value=total / n, n=n) for key, (total, n) in sums.items()]
    return Summary(rows, n_failed, tuple(failed), tuple(means), tuple(differences))
