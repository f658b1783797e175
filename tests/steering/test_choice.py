"""Which vector is tried where none is named: figures by hand."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from traitmill.engine.errors import UsageError
from traitmill.engine.steering.making import default_layer, default_method
from traitmill.engine.vectors import Evaluation, Recommendation

Figures = dict[tuple[str, int], tuple[float | None, float | None]]
"""By method and layer: the held-out AUROC, and the upper end of its interval."""


def evaluation(figures: Figures, best: tuple[str, int] | None = ("gradient", 9)) -> Evaluation:
    rows = [
        {"measure": measure, "split": split, "method": m, "layer": n, "value": value, "high": high}
        for (m, n), (value, high) in figures.items()
        for measure, split in (("auroc", "question"), ("cohens_d", "question"))
    ]
    other = {**rows[0], "split": "instruction", "method": "mean_diff", "layer": 5, "value": 1.0}
    chosen = best and Recommendation(method=best[0], layer=best[1], split="question", reason="")
    table = pl.DataFrame([*rows, other], schema_overrides={"value": pl.Float64, "high": pl.Float64})
    return Evaluation("t", "response_mean", table, chosen or None, (), "0" * 64)


def by_layer(method: str, **values: tuple[float | None, float | None]) -> Figures:
    return {(method, int(name[1:])): value for name, value in values.items()}


@pytest.mark.parametrize(
    ("figures", "layer"),
    [
        ({f"l{n}": (1.0, 1.0) for n in range(11)}, 5),
        ({f"l{n}": (1.0, 1.0) for n in range(10)}, 4),
        # Of the early ones none reads as well: 7 is the first that does.
        ({f"l{n}": (0.6 if n < 7 else 1.0, 0.7 if n < 7 else 1.0) for n in range(11)}, 7),
        # The middle is below the best, but its interval reaches it.
        ({f"l{n}": (0.9 + n / 100, 1.0) for n in range(11)}, 5),
        # One layer stands alone above the intervals of all others.
        ({f"l{n}": (0.99, 0.99) if n == 9 else (0.8, 0.9) for n in range(11)}, 9),
        # An interval that could not be measured reaches as far as the figure; the embeddings are
        # no block.
        ({"l-1": (1.0, 1.0), "l0": (0.9, None), "l1": (0.8, None), "l2": (None, None)}, 0),
    ],
)
def test_the_layer_is_the_middlemost_that_reads_as_well(figures: Any, layer: int) -> None:
    found = by_layer("mean_diff", **figures)
    assert default_layer(evaluation(found), "mean_diff") == layer


def test_the_difference_of_means_is_taken_where_it_was_fitted() -> None:
    probe = by_layer("probe", l3=(1.0, 1.0))
    found = evaluation({**probe, **by_layer("mean_diff", l4=(0.7, 0.8))}, ("probe", 3))
    assert default_method(found) == "mean_diff"
    # Of another split there is a figure of mean_diff: it was not what chose.
    assert default_method(evaluation(probe, ("probe", 3))) == "probe"


def test_without_anything_held_out_the_user_is_to_name_it() -> None:
    found = evaluation(by_layer("probe", l3=(1.0, 1.0)), None)
    with pytest.raises(UsageError, match="name `methods` and `layers`"):
        default_method(found)
    with pytest.raises(UsageError, match="name `layers`"):
        default_layer(found, "probe")
    with pytest.raises(UsageError, match="no layer of mean_diff can be chosen"):
        default_layer(evaluation(by_layer("probe", l3=(1.0, 1.0)), ("probe", 3)), "mean_diff")
