"""Rows that are equal tie in every held-out figure, wherever they stand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support import planted
from traitmill.engine.outputs import load_activations
from traitmill.engine.vectors import METHODS, fit_vectors
from traitmill.engine.vectors.held_out import held_out
from traitmill.engine.vectors.splits import make_split


@pytest.mark.parametrize(("dim", "n_per_side"), [(576, 25), (576, 99), (2304, 101), (64, 51)])
def test_equal_rows_score_the_same(tmp_path, dim, n_per_side):
    folder = planted.write_trait(
        tmp_path / "exp" / "t", dim=dim, n_per_side=n_per_side, n_layers=1, n_questions=20
    )
    activations = load_activations(folder)
    rng = np.random.default_rng(5)
    base = rng.standard_normal((2, dim)).astype(np.float32) * 3.3
    kind = rng.integers(0, 2, 2 * n_per_side)
    activations = replace(activations, values=base[kind][:, None])
    vectors = fit_vectors(activations, list(METHODS))
    split = make_split("question", activations.labels, activations.questions, 0)
    [held] = held_out(activations, vectors, [split], 0)
    for scores in held.own.reshape(-1, len(kind)):
        for test in split.tests():
            for each in (0, 1):
                assert len(set(scores[test & (kind == each)])) <= 1
