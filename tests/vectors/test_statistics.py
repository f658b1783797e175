"""Figures of weighted rows and their intervals, against scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from tests.vectors.helpers import within_folds
from traitmill.engine.statistics import (
    balanced_accuracy,
    cohens_d,
    effective_groups,
    estimate,
    fold_auroc,
    once,
    wilson,
)


def test_weighted_figures_are_those_of_repeated_rows():
    rng = np.random.default_rng(1)
    labels, scores = rng.random(50) < 0.5, rng.standard_normal(50).round(1)
    folds, counts = rng.integers(0, 3, 50), rng.integers(0, 4, 50)
    weights = counts[None].astype(np.float32)
    y, s, f = (np.repeat(values, counts) for values in (labels, scores, folds))
    assert fold_auroc(scores, labels, folds, weights)[0] == pytest.approx(
        within_folds(s, y, f), rel=1e-5
    )
    assert balanced_accuracy(scores, labels, weights)[0] == pytest.approx(
        balanced_accuracy_score(y, s > 0), rel=1e-5
    )
    pooled = ((s[y] - s[y].mean()) ** 2).sum() + ((s[~y] - s[~y].mean()) ** 2).sum()
    expected = (s[y].mean() - s[~y].mean()) / np.sqrt(pooled / (len(y) - 2))
    assert cohens_d(scores, labels, weights)[0] == pytest.approx(expected, rel=1e-5)


def test_intervals_hold_their_value_and_wilsons():
    from scipy.stats import binomtest

    oracle = binomtest(17, 20).proportion_ci(method="wilson")
    assert wilson(17 / 20, 20) == pytest.approx((oracle.low, oracle.high))
    assert estimate(1.0, np.ones(100), 20).low < 0.9
    _, low, high = estimate(0.7, np.linspace(0.75, 0.85, 101))
    assert low == 0.7
    assert high == pytest.approx(0.8475)


def test_groups_of_unequal_size_count_for_fewer():
    labels = np.repeat([True, False], [6, 4])
    assert (
        effective_groups(labels, np.array([0, 0, 0, 1, 1, 1, 0, 1, 2, 3])) == 2
    )  # pos: two of three rows each
    assert effective_groups(~labels, np.array([0, 0, 0, 0, 0, 1, 0, 1, 2, 3])) == pytest.approx(
        36 / 26
    )


def test_once_counts_every_row():
    assert once(4).tolist() == [[1, 1, 1, 1]]
