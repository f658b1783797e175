"""The figures of an evaluation as they come, one a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import polars as pl

COLUMNS = ("trait", "pool", "measure", "split", "method", "layer", "other", "value", "low", "high")


class Measures:
    """Rows of `Evaluation.table`. A figure that is not a number is null there."""

    def __init__(self, trait: str, pool: str) -> None:
        self._head = (trait, pool)
        self._rows: list[tuple[Any, ...]] = []

    def add(
        self,
        measure: str,
        split: str = "",
        method: str = "",
        layer: int | None = None,
        other: str = "",
        *,
        value: float | None,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        numbers = (
            None if x is None or not np.isfinite(x) else float(x) for x in (value, low, high)
        )
        self._rows.append((*self._head, measure, split, method, layer, other, *numbers))

    def add_range(
        self,
        measure: str,
        split: str,
        method: str,
        layer: int,
        values: np.ndarray,
        percentiles: list[float],
    ) -> None:
        """The mean of some values and two of their percentiles; null where there are no values."""
        low, high = np.percentile(values, percentiles) if len(values) else (None, None)
        self.add(
            measure,
            split,
            method,
            layer,
            value=values.mean() if len(values) else None,
            low=low,
            high=high,
        )

    def frame(self) -> pl.DataFrame:
        import polars as pl

        kinds = [pl.String] * 5 + [pl.Int32, pl.String] + [pl.Float64] * 3
        return pl.DataFrame(self._rows, schema=dict(zip(COLUMNS, kinds, strict=True)), orient="row")
