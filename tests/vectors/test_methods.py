"""Methods against independent solutions and planted directions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support import planted
from tests.vectors.helpers import cosine, rows_of
from traitmill.engine.errors import UsageError
from traitmill.engine.outputs import load_activations
from traitmill.engine.vectors import METHODS, check_methods, fit_vectors
from traitmill.engine.vectors.few import Rows, Sides
from traitmill.engine.vectors.methods import ledoit_wolf

pytestmark = pytest.mark.usefixtures("space")


@pytest.fixture
def folder(tmp_path):
    return planted.write_trait(tmp_path / "exp" / "poem", signal=2.0)


@pytest.mark.parametrize("method", list(METHODS))
def test_a_planted_direction_is_recovered(tmp_path, method):
    folder = planted.write_trait(
        tmp_path / "exp" / "poem", signal=60, n_per_side=60, question_spread=0
    )
    vectors = fit_vectors(load_activations(folder), [method])
    for layer in vectors.layers:
        assert cosine(vectors.vector(method, layer), planted.planted_direction(48, layer)) >= 0.99
        assert vectors.metadata[method, layer]["accuracy"] == 1.0


def test_gradient_is_the_maximum_that_ascent_reaches_from_any_start(folder):
    from scipy.optimize import minimize
    from sklearn.covariance import ledoit_wolf as oracle

    activations = load_activations(folder)
    x, y = rows_of(activations, 1)
    residuals = x - np.where(y[:, None], x[y].mean(axis=0), x[~y].mean(axis=0))
    covariance, _ = oracle(residuals, assume_centered=True)
    gap = x[y].mean(axis=0) - x[~y].mean(axis=0)
    found = fit_vectors(activations, ["gradient"]).vector("gradient", 1)
    assert np.linalg.norm(found) == pytest.approx(1)

    def objective(w):
        spread, reach = w @ covariance @ w, w @ gap
        return -(reach**2) / spread, -2 * reach * gap / spread + 2 * reach**2 * (
            covariance @ w
        ) / spread**2

    for seed in range(3):
        start = np.random.default_rng(seed).standard_normal(len(gap))
        end = minimize(
            objective,
            start,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 5000, "ftol": 0, "gtol": 1e-10},
        )
        assert abs(cosine(end.x, found)) >= 0.9999
    assert found @ gap > 0


def test_shrinkage_is_that_of_scikit_learn():
    from sklearn.covariance import ledoit_wolf as oracle

    x = np.random.default_rng(3).standard_normal((2, 30, 50)) * np.linspace(0.1, 3, 50)
    x[1, 20:] = 0  # rows that a set does not have
    sets = (x[0], x[1, :20])
    found = ledoit_wolf(x @ np.swapaxes(x, 1, 2), np.array([30, 20]), 50)
    expected = [oracle(rows, assume_centered=True)[1] for rows in sets]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_mean_diff_and_pca_are_their_formulas(folder):
    activations = load_activations(folder)
    vectors = fit_vectors(activations, ["mean_diff", "pca"])
    for layer in vectors.layers:
        x, y = rows_of(activations, layer)
        np.testing.assert_allclose(
            vectors.vector("mean_diff", layer), x[y].mean(0) - x[~y].mean(0), rtol=1e-4, atol=1e-5
        )
        pairs = list(zip(activations.instructions, activations.questions, strict=True))
        differences = [
            x[[p == q and s for q, s in zip(pairs, y, strict=True)]].mean(0)
            - x[[p == q and not s for q, s in zip(pairs, y, strict=True)]].mean(0)
            for p in sorted(set(pairs))
        ]
        assert (
            abs(cosine(np.linalg.svd(np.array(differences))[2][0], vectors.vector("pca", layer)))
            >= 0.99999
        )


def test_ica_picks_the_component_that_carries_the_trait_and_points_it_to_pos():
    rng = np.random.default_rng(0)
    n, dim = 300, 40
    y = np.repeat([True, False], n // 2)
    mixing = np.linalg.qr(rng.standard_normal((dim, 3)))[0].T
    sources = np.column_stack(
        [
            rng.uniform(-9, 9, n),
            rng.laplace(0, 4, n),
            np.where(y, 3.0, -3.0) + rng.uniform(-1, 1, n),
        ]
    )
    x = sources @ mixing + 0.05 * rng.standard_normal((n, dim))
    rows = Rows((x @ x.T)[None], np.ones((1, n), bool), dim)
    sides = Sides(rows, np.zeros(1, int), y[None], np.zeros((1, n), int))
    assert cosine(METHODS["ica"].fit(sides).weights[0] @ x, mixing[2]) >= 0.99


@pytest.mark.parametrize("seed", range(12))
def test_every_stored_vector_points_to_pos_where_a_few_dimensions_dominate(tmp_path, seed):
    activations = load_activations(
        planted.write_trait(tmp_path / "exp" / "poem", signal=1.0, seed=seed)
    )
    values = np.array(activations.values)
    values[:, :, :3] *= 30
    activations = replace(activations, values=values)
    vectors = fit_vectors(activations, list(METHODS))
    for (method, layer), metadata in vectors.metadata.items():
        x, y = rows_of(activations, layer)
        along = x @ vectors.vector(method, layer).astype(float)
        assert along[y].mean() >= along[~y].mean(), method
        assert metadata["separation"] >= 0


@pytest.mark.parametrize("method", list(METHODS))
def test_swapping_the_sides_turns_the_vector_round(folder, method):
    activations = load_activations(folder)
    turned = replace(activations, labels=~activations.labels)
    one, other = fit_vectors(activations, [method]), fit_vectors(turned, [method])
    np.testing.assert_allclose(one.values, -other.values, rtol=1e-4, atol=1e-6)


def test_constant_activations_give_finite_vectors(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "flat", n_layers=1)
    flat = np.ones((80, 1, 48), np.float32)
    activations = replace(load_activations(folder), values=flat)
    vectors = fit_vectors(activations, list(METHODS))
    assert np.isfinite(vectors.values).all()


def test_unknown_methods_are_named_with_the_nearest():
    with pytest.raises(UsageError, match="'prob' is unknown; did you mean probe"):
        check_methods(["mean_diff", "prob"])
    with pytest.raises(UsageError, match="names none; choose from mean_diff, probe"):
        check_methods([])
    assert check_methods(["probe", "pca", "probe"]) == ("probe", "pca")


def test_random_vectors_are_a_baseline_and_no_method():
    with pytest.raises(UsageError, match="'random' is unknown"):
        check_methods(["random"])
