"""Which coefficients are tried, and how far out coherence holds."""

from __future__ import annotations

import math

import pytest

from traitmill.engine.errors import UsageError
from traitmill.engine.steering.conditions import (
    PROMPT,
    UNSTEERED,
    Condition,
    check_coefficients,
    conditions,
    largest_coherent,
    refined,
)

MEASURED = {-1.0: 20.0, -0.5: 80.0, -0.25: 90.0, 0.25: 95.0, 0.5: 60.0, 1.0: 99.0}


def test_the_middle_of_where_coherence_breaks_is_tried_next() -> None:
    assert refined(MEASURED, 75) == [-0.75, 0.375]
    assert refined(MEASURED, 0) == []
    assert refined({0.5: 10.0, 1.0: 5.0}, 75) == [0.25]


def test_nothing_is_tried_next_where_unsteered_answers_do_not_hold_either() -> None:
    assert refined({0.05: 47.0, 0.1: 30.0, -0.05: 50.0, 0.0: 57.0}, 75) == []
    assert refined({0.05: 80.0, 0.1: 30.0, -0.05: 50.0, 0.0: 74.0}, 75) == [0.075]
    assert refined({0.05: 47.0, 0.0: 90.0}, 75) == [0.025]


def test_where_coherence_is_not_known_nothing_is_tried_next() -> None:
    assert refined({0.5: math.nan, 1.0: 90.0}, 75) == []
    assert refined({0.25: 80.0, 0.5: math.nan, 1.0: 10.0}, 75) == []
    assert refined({0.25: 80.0, 0.5: 10.0, 1.0: math.nan}, 75) == [0.375]


def test_a_coefficient_holds_only_where_every_smaller_one_does() -> None:
    assert largest_coherent(MEASURED, 75) == 0.25
    assert largest_coherent(MEASURED, 60) == 1.0
    assert largest_coherent(MEASURED, 75, sign=-1) == -0.5
    assert largest_coherent({0.5: 10.0}, 75) == 0
    assert largest_coherent({0.25: 80.0, 0.5: math.nan, 1.0: 80.0}, 75) == 0.25


def test_random_vectors_stand_once_beside_each_positive_coefficient_of_a_layer() -> None:
    grid = {("a", 3): (0.5, -0.5), ("b", 3): (-0.5, 0.5, 1.0)}
    found = conditions(grid, "all", ablate=False)
    assert found[:2] == (UNSTEERED, PROMPT)
    steered = [(c.method, c.coefficient) for c in found if c.kind == "steered"]
    assert steered == [("a", -0.5), ("a", 0.5), ("b", -0.5), ("b", 0.5), ("b", 1.0)]
    random = [c for c in found if c.kind == "random"]
    assert random == [Condition("random", "random", 3, c, "all") for c in (0.5, 1.0)]


@pytest.mark.parametrize("given", [[], [0.0], [math.inf], [math.nan], [101.0]])
def test_coefficients_that_add_nothing_or_no_number_are_refused(given: list[float]) -> None:
    with pytest.raises(UsageError, match="`coefficients` must be a list of numbers other than 0"):
        check_coefficients(given)
    assert check_coefficients([0.5, 0, -1, 0.5]) == (-1.0, 0.5)
