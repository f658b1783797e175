"""The probe is the optimum of scikit-learn's logistic regression."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support import planted
from tests.vectors.helpers import cosine, rows_of
from traitmill.engine.outputs import load_activations
from traitmill.engine.vectors import fit_vectors
from traitmill.engine.vectors.few import solve

pytestmark = pytest.mark.usefixtures("space")


@pytest.fixture
def folder(tmp_path):
    return planted.write_trait(tmp_path / "exp" / "poem", signal=2.0)


@pytest.mark.parametrize("scale", [1.0, 30000.0])
def test_probe_is_the_optimum_of_logistic_regression(folder, scale):
    from sklearn.linear_model import LogisticRegression

    activations = load_activations(folder)
    values = np.array(activations.values)
    values[:, :, 7] *= scale  # one massive dimension, as large models have
    activations = replace(activations, values=values)
    vectors = fit_vectors(activations, ["probe"])
    for layer in vectors.layers:
        x, y = rows_of(activations, layer)
        oracle = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000, solver="newton-cholesky").fit(
            x, y
        )
        assert cosine(vectors.vector("probe", layer), oracle.coef_[0]) >= 0.999999
        assert np.linalg.norm(oracle.coef_[0]) == pytest.approx(
            vectors.metadata["probe", layer]["norm"], rel=1e-5
        )
        assert vectors.metadata["probe", layer]["bias"] == pytest.approx(
            oracle.intercept_[0], rel=1e-4, abs=1e-5
        )
        assert vectors.metadata["probe", layer]["settings"]["converged"]


def test_probe_of_more_rows_than_dimensions(tmp_path):
    from sklearn.linear_model import LogisticRegression

    folder = planted.write_trait(
        tmp_path / "exp" / "poem", signal=1.0, dim=10, n_per_side=60, n_layers=1
    )
    activations = load_activations(folder)
    x, y = rows_of(activations, 0)
    oracle = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000, solver="newton-cholesky").fit(x, y)
    assert (
        cosine(fit_vectors(activations, ["probe"]).vector("probe", 0), oracle.coef_[0]) >= 0.999999
    )


@pytest.mark.parametrize("size", [3, 120])
def test_a_system_that_rounding_has_made_singular_has_a_solution(size):
    right, systems = np.ones((2, size, 1)), np.stack([np.ones((size, size)), np.eye(size)])
    np.testing.assert_allclose(systems @ solve(systems, right), right, rtol=1e-6)
