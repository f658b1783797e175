"""Folds keep groups whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from traitmill.engine.vectors.splits import make_split


@pytest.mark.parametrize("seed", range(5))
def test_no_group_stands_in_two_folds_and_draws_take_whole_groups(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, rng.integers(5, 20), 120)
    split = make_split("question", rng.random(120) < 0.5, groups, seed)
    for group in np.unique(groups):
        assert len(set(split.folds[groups == group])) == 1
    np.testing.assert_array_equal(split.draws.groups, np.unique(groups, return_inverse=True)[1])
    assert (split.draws.counts.sum(axis=1) == split.n_groups).all()
    assert len(set(split.folds)) == 5


def test_groups_of_one_side_alone_are_dealt_out_so_that_folds_can_compare_them():
    labels = np.repeat([True, False], 20)
    groups = np.repeat(np.arange(10), 4)  # five of pos, five of neg
    for seed in range(20):
        split = make_split("question", labels, groups, seed)
        assert split.compared.all()
        assert (split.n_groups, split.effective) == (10, 5)


def test_groups_of_both_sides_are_dealt_out_by_chance_alone():
    labels, groups = np.tile([True, False], 40), np.repeat(np.arange(20), 4)
    split = make_split("question", labels, groups, 3)
    expected = np.random.default_rng([3, 20]).permutation(20) % 5
    np.testing.assert_array_equal(split.folds, expected[groups])


def test_what_no_fold_compares_counts_for_nothing():
    """Two folds of five hold both sides: by all ten groups an interval would be far too narrow."""
    labels = np.repeat([True, False], 20)
    groups = np.repeat(np.arange(10), 4)
    split = make_split("question", labels, groups, 0)
    lone = np.array([0, 1, 2, 3, 3, 0, 1, 4, 4, 4])[groups]
    split = replace(split, folds=lone)
    np.testing.assert_array_equal(split.compared, np.isin(groups, [0, 1, 5, 6]))
    assert (split.n_groups, split.smaller_side, split.effective) == (4, 8, 2)
    scores = np.random.default_rng(0).standard_normal((1, 40))
    [figure] = split.figures(scores)["auroc"]
    assert (figure.low, figure.high) != (0.0, 1.0)
    assert figure.high - figure.low > 0.3
