"""Figures of weighted rows and their intervals, against scikit-learn and scipy."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from tests.vectors.helpers import within_folds
from traitmill.engine import statistics
from traitmill.engine.statistics import (
    Weights,
    balanced_accuracy,
    cohens_d,
    effective_groups,
    estimate,
    estimates,
    fold_auroc,
    grouped_mean,
    once,
    wilson,
)


def test_weighted_figures_are_those_of_repeated_rows():
    rng = np.random.default_rng(1)
    labels, scores = rng.random(50) < 0.5, rng.standard_normal((3, 2, 50)).round(1)
    folds, counts = rng.integers(0, 3, 50), rng.integers(0, 4, (2, 50))
    weights = Weights(np.arange(50), counts.astype(float))
    measures = (fold_auroc, balanced_accuracy, cohens_d)
    folded = {fold_auroc: (labels, folds)}
    found = [each(scores, *folded.get(each, (labels,)), weights) for each in measures]
    for i, j, draw in np.ndindex(3, 2, 2):
        y, s, f = (np.repeat(each, counts[draw]) for each in (labels, scores[i, j], folds))
        pooled = ((s[y] - s[y].mean()) ** 2).sum() + ((s[~y] - s[~y].mean()) ** 2).sum()
        gap = (s[y].mean() - s[~y].mean()) / np.sqrt(pooled / (len(y) - 2))
        expected = (within_folds(s, y, f), balanced_accuracy_score(y, s > 0), gap)
        assert [each[i, j, draw] for each in found] == pytest.approx(expected, rel=1e-9)


def test_intervals_hold_their_value_and_wilsons():
    from scipy.stats import binomtest

    oracle = binomtest(17, 20).proportion_ci(method="wilson")
    assert wilson(17 / 20, 20) == pytest.approx((oracle.low, oracle.high))
    assert estimate(1.0, np.ones(100), 20).low < 0.9
    _, low, high = estimate(0.7, np.linspace(0.75, 0.85, 101))
    assert low == 0.7
    assert high == pytest.approx(0.8475)
    draws = np.stack([np.linspace(0, 1, 101), np.full(101, np.nan), np.linspace(0.3, 0.4, 101)])
    draws[2, ::2] = np.nan  # a draw without a pair says nothing
    assert estimates(np.full(3, 0.5), draws) == [estimate(0.5, each) for each in draws]
    assert estimate(0.5, draws[1]) == (0.5, 0.5, 0.5)
    assert estimate(0.5, draws[2]).low == pytest.approx(np.quantile(draws[2, 1::2], 0.025))


def test_groups_of_unequal_size_count_for_fewer():
    labels = np.repeat([True, False], [6, 4])
    assert (
        effective_groups(labels, np.array([0, 0, 0, 1, 1, 1, 0, 1, 2, 3])) == 2
    )  # pos: two of three rows each
    assert effective_groups(~labels, np.array([0, 0, 0, 0, 0, 1, 0, 1, 2, 3])) == pytest.approx(
        36 / 26
    )


def test_rows_of_one_group_weigh_the_same_in_every_figure():
    rng = np.random.default_rng(2)
    labels, scores, folds = (
        rng.random(60) < 0.5,
        rng.standard_normal(60).round(1),
        np.arange(60) % 2,
    )
    groups, counts = rng.integers(0, 7, 60), rng.integers(0, 4, (5, 7)).astype(float)
    by_group, by_row = Weights(groups, counts), Weights(np.arange(60), counts[:, groups])
    for figure in (balanced_accuracy, cohens_d):
        np.testing.assert_allclose(
            figure(scores, labels, by_group), figure(scores, labels, by_row), rtol=1e-12
        )
    np.testing.assert_allclose(
        fold_auroc(scores, labels, folds, by_group),
        fold_auroc(scores, labels, folds, by_row),
        rtol=1e-12,
    )


def test_the_auroc_is_the_share_of_pairs_however_few_groups_are_counted_at_once(monkeypatch):
    rng = np.random.default_rng(5)
    labels, folds = rng.random(80) < 0.5, np.arange(80) % 2
    groups, counts = np.arange(80) % 11, rng.integers(0, 4, (6, 11)).astype(float)
    scores = (rng.standard_normal((3, 80)) + labels).round(1)
    weights, expected = counts[:, groups], np.empty((3, 6))
    pairs = labels[:, None] & ~labels & (folds[:, None] == folds)
    for row, score in enumerate(scores):
        won = (score[:, None] > score) + (score[:, None] == score) / 2
        for draw, weight in enumerate(weights):
            each = np.outer(weight, weight) * pairs
            expected[row, draw] = (each * won).sum() / each.sum()
    for entries in (statistics.ENTRIES, 1, 130):
        monkeypatch.setattr(statistics, "ENTRIES", entries)
        found = fold_auroc(scores, labels, folds, Weights(groups, counts))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_auroc_of_many_rows_and_groups_takes_little_memory():
    n, n_groups = 8000, 2000
    labels, groups = np.arange(n) < n // 2, np.arange(n) % n_groups
    scores = np.random.default_rng(0).integers(0, 101, n) + 20.0 * labels
    tracemalloc.start()
    fold_auroc(scores, labels, np.zeros(n, int), Weights(groups, np.ones((5, n_groups))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The groups' pairs are 32 MB; rows times groups would be 128 MB, several times over.
    assert peak < 120e6


def test_once_counts_every_row():
    assert once(4).total(np.array([1.0, 2.0, 3.0, 5.0])).tolist() == [11]


def test_a_grouped_mean_is_students_over_the_groups() -> None:
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(7), [1, 2, 3, 1, 4, 2, 5])
    values = rng.normal(5, 2, len(groups)) + groups
    means = [values[groups == group].mean() for group in range(7)]
    found = grouped_mean(values, groups)
    expected = ttest_1samp(means, 0).confidence_interval(0.95)
    assert found.value == pytest.approx(np.mean(means))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    one = grouped_mean(values[:1], groups[:1])
    assert (one.value, one.low, one.high) == (values[0], -np.inf, np.inf)
    assert np.isnan(grouped_mean(values[:0], groups[:0])).all()
