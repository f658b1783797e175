"""The figures of an evaluation as they come, one a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

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
        *figure: float | None,
        split: str = "",
        method: str = "",
        layer: int | None = None,
        other: str = "",
    ) -> None:
        """Add a row; `figure` is a value, or a value with its interval."""
        numbers: list[float | None] = [None, None, None]
        for index, number in enumerate(figure):
            if number is not None and np.isfinite(number):
                numbers[index] = float(number)
        self._rows.append((*self._head, measure, split, method, layer, other, *numbers))

    def add_range(
        self, measure: str, values: ndarray, percentiles: Sequence[float], **where: Any
    ) -> None:
        """Add the mean of some values and two of their percentiles; null where there are none."""
        figure: list[float] = []
        if len(values):
            figure = [values.mean(), *np.percentile(values, percentiles)]
        self.add(measure, *figure, **where)

    def frame(self) -> pl.DataFrame:
        import polars as pl

        kinds = [pl.String] * 5 + [pl.Int32, pl.String] + [pl.Float64] * 3
        schema = dict(zip(COLUMNS, kinds, strict=True))
        return pl.DataFrame(self._rows, schema=schema, orient="row")
