"""Logistic regression by Newton's method in the space of rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from .rows import Direction, Sides

PROBE_C = 1.0
PROBE_TOLERANCE = 1e-6
"""Relative; rounding in the Gram matrix allows no less where one dimension is 30,000 times the
others."""
PROBE_STEPS = 50


class _Fit(NamedTuple):
    """A point of Newton's method, or a step from one."""

    weights: ndarray
    latent: ndarray
    """The Gram matrix times the weights."""
    intercept: float

    def plus(self, step: _Fit, size: float) -> _Fit:
        return _Fit(
            self.weights + size * step.weights,
            self.latent + size * step.latent,
            self.intercept + size * step.intercept,
        )

    def loss(self, sign: ndarray) -> float:
        misfit = np.logaddexp(0, -sign * (self.latent + self.intercept)).sum()
        return float(self.weights @ self.latent / 2 + PROBE_C * misfit)


def fit_probe(sides: Sides) -> Direction:
    """Minimise a'Ka/2 + C sum log(1 + exp(-s (Ka + b))), s = +1 for pos and -1 for neg.

    Newton's method with step halving. At the optimum a = C (y - p), and stopping asks for that.
    """
    from scipy.special import expit

    sign = np.where(sides.labels, 1.0, -1.0)
    point = _Fit(np.zeros(len(sign)), np.zeros(len(sign)), 0.0)
    steps = 0
    while True:
        residual = PROBE_C * sign * expit(-sign * (point.latent + point.intercept))
        gap = np.abs(point.weights - residual).max()
        converged = bool(gap <= PROBE_TOLERANCE * np.abs(residual).max())
        if converged or steps == PROBE_STEPS:
            break
        steps += 1
        step, best = _newton_step(sides.rows.gram, point, residual), point.loss(sign)
        for size in 0.5 ** np.arange(30):
            trial = point.plus(step, size)
            if trial.loss(sign) <= best * (1 + 1e-12):
                break
        point = trial
    facts = {"C": PROBE_C, "newton_steps": steps, "converged": converged}
    return Direction(point.weights, point.intercept, facts)


def _newton_step(gram: ndarray, point: _Fit, residual: ndarray) -> _Fit:
    """Return the full step (Rasmussen & Williams 2006, algorithm 3.1, with a free intercept).

    The matrix to solve, I + W^(1/2) K W^(1/2), is well conditioned however separable the rows are.
    """
    from scipy.linalg import cho_factor, cho_solve
    from scipy.special import expit

    odds = point.latent + point.intercept
    root = np.sqrt(PROBE_C * np.maximum(expit(odds) * expit(-odds), 1e-300))
    matrix = root[:, None] * gram * root
    diagonal = np.arange(len(gram))
    matrix[diagonal, diagonal] += 1
    right = np.stack([root * odds + residual / root, root], axis=1)
    factor = cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
    along, ones = (root[:, None] * cho_solve(factor, right, check_finite=False)).T
    target = along.sum() / ones.sum()
    weights = along - target * ones - point.weights
    return _Fit(weights, gram @ weights, target - point.intercept)
