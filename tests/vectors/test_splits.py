"""Folds keep groups whole."""

from __future__ import annotations

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
