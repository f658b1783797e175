"""The probe of few rows, of a stack of fits: Newton's method from Gram matrices."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from .few import Sides, Sums
from .logistic import C

TOLERANCE = 1e-6
"""Relative; rounding in the Gram matrix allows no less where one dimension is 30,000 times the
others."""
STEPS = 50
HALVINGS = 29
STACKED = 100
"""Size up to which a stack of systems is solved faster than one after the other by Cholesky."""


def solve(matrices: ndarray, right: ndarray) -> ndarray:
    """Return the solutions `[k, p, r]` of positive definite systems `[k, p, p]`."""
    if matrices.shape[1] <= STACKED:
        with suppress(np.linalg.LinAlgError):
            return np.asarray(np.linalg.solve(matrices, right))
    return np.stack([_solved(matrix, each) for matrix, each in zip(matrices, right, strict=True)])


def _solved(matrix: ndarray, right: ndarray) -> ndarray:
    from scipy.linalg.lapack import dposv

    solution, failed = dposv(matrix, right, lower=1)[1:]
    if not failed:
        return np.asarray(solution)
    # Of values so large that rounding hides its smallest eigenvalues: they are at least so large.
    values, vectors = np.linalg.eigh(matrix)
    values = np.maximum(values, values[-1] * len(values) * np.finfo(float).eps)
    return np.asarray(vectors @ (vectors.T @ right / values[:, None]))


class _Fits(NamedTuple):
    """Points of Newton's method, or steps from them, of k fits."""

    weights: ndarray
    """`[k, p]`."""
    latent: ndarray
    """The Gram matrix times the weights, `[k, p]`."""
    intercepts: ndarray
    """`[k, 1]`."""

    @property
    def odds(self) -> ndarray:
        return np.asarray(self.latent + self.intercepts)

    def among(self, chosen: ndarray) -> _Fits:
        return _Fits(*(each[chosen] for each in self))

    def plus(self, step: _Fits, size: ndarray) -> _Fits:
        return _Fits(*(each + size * more for each, more in zip(self, step, strict=True)))

    def loss(self, signs: ndarray) -> ndarray:
        """Return `[k]`; signs `[k, p]` are 0 for rows that a fit does not have."""
        misfit = (np.abs(signs) * np.logaddexp(0, -signs * self.odds)).sum(axis=1)
        return np.asarray(np.einsum("ij,ij->i", self.weights, self.latent) / 2 + C * misfit)


def probes(sides: Sides) -> Sums:
    """Minimise a'Ka/2 + C sum log(1 + exp(-s (Ka + b))), s = +1 for pos and -1 for neg.

    Newton's method with step halving. At the optimum a = C (y - p), and stopping asks for that.
    """
    from scipy.special import expit

    pos, neg = sides.sides
    signs = pos.astype(float) - neg
    k, p = signs.shape
    point = _Fits(np.zeros((k, p)), np.zeros((k, p)), np.zeros((k, 1)))
    steps, converged = np.zeros(k, int), np.zeros(k, bool)
    live = np.arange(k)
    while True:
        mine, sign = point.among(live), signs[live]
        residual = C * sign * expit(-sign * mine.odds)
        gap = np.abs(mine.weights - residual).max(axis=1)
        done = gap <= TOLERANCE * np.abs(residual).max(axis=1)
        converged[live[done]] = True
        going = ~done & (steps[live] < STEPS)
        live, mine, sign = live[going], mine.among(going), sign[going]
        if not len(live):
            break
        steps[live] += 1
        step = _newton_step(sides.gram[live], mine, residual[going], sign)
        for whole, part in zip(point, _descended(mine, step, sign), strict=True):
            whole[live] = part
    facts = [
        {"C": C, "newton_steps": int(n), "converged": bool(ok)}
        for n, ok in zip(steps, converged, strict=True)
    ]
    return Sums(point.weights, facts, [float(each) for each in point.intercepts[:, 0]])


def _descended(point: _Fits, step: _Fits, signs: ndarray) -> _Fits:
    """Return the points after a step each, halved until the loss does not grow."""
    most = point.loss(signs) * (1 + 1e-12)
    size = np.ones((len(most), 1))
    for _ in range(HALVINGS):
        worse = point.plus(step, size).loss(signs) > most
        if not worse.any():
            break
        size[worse] /= 2
    return point.plus(step, size)


def _newton_step(gram: ndarray, point: _Fits, residual: ndarray, signs: ndarray) -> _Fits:
    """Return the full steps (Rasmussen & Williams 2006, algorithm 3.1, with a free intercept).

    The matrix to solve, I + W^(1/2) K W^(1/2), is well conditioned however separable the rows are.
    """
    from scipy.special import expit

    odds = point.odds
    variance = np.maximum(expit(odds) * expit(-odds), 1e-300)
    root = np.sqrt(C * variance) * np.abs(signs)
    matrix = root[:, :, None] * gram
    matrix *= root[:, None]
    diagonal = np.arange(gram.shape[1])
    matrix[:, diagonal, diagonal] += 1
    target = root * odds
    np.divide(residual, root, out=residual, where=root > 0)
    solved = solve(matrix, np.stack([target + residual, root], axis=2))
    along, ones = (root * solved[:, :, column] for column in range(2))
    shift = along.sum(axis=1, keepdims=True) / ones.sum(axis=1, keepdims=True)
    weights = along - shift * ones - point.weights
    latent = (gram @ weights[:, :, None])[:, :, 0]
    return _Fits(weights, latent, shift - point.intercepts)
