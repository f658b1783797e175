"""Rows beyond the width: the same vectors and figures as from the rows' Gram matrix."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.support import planted
from tests.vectors.helpers import cosine
from traitmill.engine.outputs import Activations, load_activations
from traitmill.engine.vectors import METHODS, Vectors, evaluate_vectors, fit_vectors, rows, tall
from traitmill.engine.vectors.krylov import DIRECT, leading_of_large
from traitmill.engine.vectors.rows import LayerRows
from traitmill.engine.vectors.tall import Scatters, TallRows

WIDTH = 200


def skewed(folder, n_per_side: int) -> Activations:
    """A trait of 2 layers with ten strong sources that are not normal, which ICA can settle on."""
    folder = planted.write_trait(folder, dim=WIDTH, n_per_side=n_per_side, n_layers=2, signal=3.0)
    activations = load_activations(folder)
    rng = np.random.default_rng(1)
    n = 2 * n_per_side
    sources = rng.exponential(1, (n, 10)) ** 1.5 * np.linspace(6, 12, 10)
    directions = np.linalg.qr(rng.standard_normal((WIDTH, 10)))[0].T
    values = np.array(activations.values) + (sources @ directions)[:, None]
    return replace(activations, values=values.astype(np.float32))


def in_space(monkeypatch, tall: float, activations: Activations) -> tuple[Vectors, pl.DataFrame]:
    monkeypatch.setattr(rows, "FIT_TALL", tall)
    monkeypatch.setattr(rows, "FOLDS_TALL", tall)
    vectors = fit_vectors(activations, list(METHODS))
    return vectors, evaluate_vectors(activations, vectors).table


@pytest.mark.parametrize(("n_per_side", "direct"), [(90, DIRECT), (110, DIRECT), (110, 0)])
def test_both_spaces_give_the_same_vectors_and_figures(tmp_path, monkeypatch, n_per_side, direct):
    monkeypatch.setattr(tall, "DIRECT", direct)  # 0: sums of folds in float32
    activations = skewed(tmp_path / "exp" / "poem", n_per_side)
    one, figures = in_space(monkeypatch, math.inf, activations)
    other, of_other = in_space(monkeypatch, 0, activations)
    for (method, layer), facts in one.metadata.items():
        assert cosine(one.vector(method, layer), other.vector(method, layer)) >= 0.999999, method
        found = other.metadata[method, layer]
        for name in ("norm", "bias", "accuracy", "separation"):
            assert found[name] == pytest.approx(facts[name], rel=1e-5, abs=1e-6), (method, name)
    named = ["measure", "split", "method", "layer", "other"]
    both = figures.join(of_other, on=named, suffix="_width", nulls_equal=True)
    assert len(both) == len(figures) == len(of_other)
    for row in both.iter_rows(named=True):
        for name in ("value", "low", "high"):
            expected = row[name] and pytest.approx(row[name], rel=2e-3, abs=2e-3)
            assert row[f"{name}_width"] == expected, row


def test_t18_rows_beyond_the_width_never_meet_pairwise(tmp_path, monkeypatch):
    activations = load_activations(
        planted.write_trait(tmp_path / "exp" / "poem", dim=24, n_per_side=60, n_layers=1)
    )

    def refuse(self):
        raise AssertionError("a Gram matrix of many rows")

    monkeypatch.setattr(LayerRows, "gram", property(refuse))
    vectors = fit_vectors(activations, list(METHODS))
    assert evaluate_vectors(activations, vectors).recommendation
    few = replace(activations, values=np.repeat(activations.values, 20, axis=2))
    with pytest.raises(AssertionError, match="many rows"):
        fit_vectors(few)


@pytest.mark.parametrize("rank", [30, 3 * DIRECT])
def test_leading_eigenvectors_are_those_of_a_full_search(rank):
    rng = np.random.default_rng(0)
    size = DIRECT + 100
    factor = rng.standard_normal((size, rank)) * np.geomspace(100, 1, rank)
    matrix = factor @ factor.T
    values, vectors = leading_of_large(matrix, 10)
    expected, oracle = np.linalg.eigh(matrix)
    np.testing.assert_allclose(values, expected[-10:], rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(vectors * oracle[:, -10:], axis=0)), 1, atol=1e-9)


def test_leading_eigenvectors_of_fewer_directions_than_wanted():
    factor = np.random.default_rng(0).standard_normal((DIRECT + 100, 4))
    values, vectors = leading_of_large(factor @ factor.T, 10)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(10), atol=1e-9)
    np.testing.assert_allclose(values[-4:], np.linalg.eigvalsh(factor.T @ factor), rtol=1e-9)
    np.testing.assert_allclose(values[:-4], 0, atol=1e-9)


@pytest.mark.parametrize(("direct", "precision"), [(DIRECT, 1e-9), (0, 1e-4)])
@pytest.mark.parametrize("without", [(), (1,), (0, 2), (5,), (4, 6)])
def test_sums_outside_some_folds_are_those_of_the_rows_left(
    monkeypatch, without, direct, precision
):
    monkeypatch.setattr(tall, "DIRECT", direct)
    rng = np.random.default_rng(0)
    centred = rng.standard_normal((90, 7)) + 1
    folds = np.stack([rng.integers(0, 4, 90), rng.integers(4, 7, 90)])
    sets = Scatters(TallRows(LayerRows(0, centred, np.zeros(7), tall=True), folds), [(), without])
    left = centred[[not set(without) & set(both) for both in folds.T.tolist()]]
    expected = (len(left) - 1) * np.cov(left.T)
    of_many = sets.times(np.eye(7), np.ones(7, int))
    np.testing.assert_allclose(of_many, expected, rtol=precision, atol=precision * 90)
    np.testing.assert_allclose(sets.whole(1), expected, rtol=precision, atol=precision * 90)
    np.testing.assert_allclose(sets.means[:, 1], left.mean(axis=0))
    np.testing.assert_allclose(sets.squares[1], (expected**2).sum(), rtol=precision)
    np.testing.assert_allclose(sets.traces[1], np.trace(expected))


def test_large_dimensions_that_move_together_are_fitted(tmp_path: Path) -> None:
    """Their moment's rounding in float32 is beyond its small eigenvalues."""
    n, dim = 300, 450
    folder = planted.write_trait(tmp_path / "exp/t", dim=dim, n_per_side=n // 2, n_layers=1)
    activations = load_activations(folder)
    rng, values = np.random.default_rng(0), np.array(activations.values)
    moves = rng.standard_normal(n)
    for i in range(6):
        values[:, 0, i] = 1000 * (3 + moves * (1 + 0.37 * i)) + rng.standard_normal(n)
    found = replace(activations, values=values.astype(np.float32))
    vectors = fit_vectors(found, ["probe"])
    table = evaluate_vectors(found, vectors).table
    auroc = table.filter(pl.col("measure") == "auroc", pl.col("split") == "question")
    assert auroc["value"].is_not_null().all()
    assert (auroc.filter(pl.col("method") == "probe")["value"] > 0.8).all()
