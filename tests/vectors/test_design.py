"""Steps where a Hessian is the identity are those of a dense float64 solution."""

from __future__ import annotations

import numpy as np
import pytest
from numpy import ndarray

from traitmill.engine.vectors.design import Around, Design, around
from traitmill.engine.vectors.krylov import BLOCK, rows_at_once, thin_product
from traitmill.engine.vectors.logistic import FINEST

FITS = 6


def ordinary(rng: np.random.Generator, n: int = 300, dim: int = 40) -> ndarray:
    rows = rng.standard_normal((n, dim)) * np.geomspace(0.3, 3, dim)
    return rows - rows.mean(axis=0)


def massive(rng: np.random.Generator, n: int = 300, dim: int = 40) -> ndarray:
    """Three dimensions a thousand times as large, that move together."""
    rows, moves = ordinary(rng, n, dim), 1000 * rng.standard_normal(n)
    for i in range(3):
        rows[:, i] += moves * (1 + 0.37 * i)
    return rows - rows.mean(axis=0)


def dense(rows: ndarray, curvature: ndarray) -> ndarray:
    """The Hessian of |w|^2 / 2 and a loss of that curvature, without regularised intercept."""
    whole = np.column_stack([rows, np.ones(len(rows))])
    return whole.T @ (curvature[:, None] * whole) + np.diag([1.0] * rows.shape[1] + [0.0])


def steps(like: Around, bend: ndarray, right: ndarray) -> ndarray:
    return like.solve(bend, like.inwards(right), 1e-6)[0]


def apart(found: ndarray, rows: ndarray, bend: ndarray, right: ndarray) -> float:
    """The largest error of a step against the dense one, in the norm of its own Hessian."""
    worst = 0.0
    for step, curvature, gradient in zip(found.T, bend.T, right.T, strict=True):
        hessian = dense(rows, curvature)
        exact = np.linalg.solve(hessian, gradient)
        error = step - exact
        worst = max(worst, float(np.sqrt(error @ hessian @ error / (exact @ hessian @ exact))))
    return worst


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("make", [ordinary, massive])
def test_a_step_is_that_of_the_dense_hessian(make, many):
    rng = np.random.default_rng(0)
    rows = make(rng)
    usual = rng.uniform(0.1, 0.25, len(rows))
    fits = FITS if many else 1
    bend = usual[:, None] * rng.uniform(0.3, 1.2, (len(rows), fits))
    bend *= rng.random(bend.shape) > 0.2  # rows left out
    right = dense(rows, usual) @ rng.standard_normal((rows.shape[1] + 1, fits))
    like = around(Design(rows), usual, many)
    assert not like.rounded
    assert apart(steps(like, bend, right), rows, bend, right) < FINEST


def test_steps_where_curvatures_are_far_below_the_usual():
    """Fits that separate the sides by far: of the identity only rounding is left."""
    rng = np.random.default_rng(0)
    rows = 1000 * ordinary(rng)
    usual = np.full(len(rows), 0.25)
    bend = 1e-8 * rng.random((len(rows), FITS))
    right = dense(rows, bend.mean(axis=1)) @ rng.standard_normal((rows.shape[1] + 1, FITS))
    found = steps(around(Design(rows), usual, many=True), bend, right)
    assert apart(found, rows, bend, right) < 1e-2  # what a Newton step leaves to the next


def test_a_hessian_that_float32_cannot_sum_is_summed_in_float64():
    rng = np.random.default_rng(0)
    one = 1e6 * rng.standard_normal((300, 1))
    rows = np.concatenate([one, one + 10 * rng.standard_normal((300, 4))], axis=1)
    design, usual = Design(rows), np.full(300, 0.1)
    with pytest.raises(np.linalg.LinAlgError):
        Around(design, usual, design.hessian(usual.astype(np.float32)))
    bend, right = np.repeat(usual[:, None], 20, axis=1), rng.standard_normal((6, 20))
    along = np.einsum("ij,ij->j", right, steps(around(design, usual, True), bend, right))
    assert (along > 0).all()


@pytest.mark.parametrize("columns", [1, 3, 70])
def test_a_product_in_blocks_is_the_product(columns):
    rng = np.random.default_rng(0)
    matrix, few = rng.standard_normal((700, 900)), rng.standard_normal((900, columns))
    np.testing.assert_allclose(thin_product(matrix, few), matrix @ few, rtol=1e-10, atol=1e-10)
    assert (rows_at_once(few) == BLOCK) == (columns == 70)
