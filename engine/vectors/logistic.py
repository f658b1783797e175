"""Regularised logistic regression of many rows, several fits at a time.

Each fit minimises |w|^2 / 2 + C sum_i |s_i| log(1 + exp(-s_i (w . x_i + b))), s_i +1 for pos, -1
for neg and 0 for a row left out. Newton's method; its steps come from conjugate gradients, since
one pass over the rows serves all fits, where a Hessian of its own for each would cost as much as
hundreds of passes. They are sought where a Hessian like those of the fits is the identity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from .design import Around, Design, around

C = 1.0
STEPS = 50
REFACTOR = 15
"""Conjugate steps of one fit that cost about as much as a Hessian and its factor."""
COARSEST, FINEST = 0.25, 1e-3
"""Between these lies the precision of a Newton step; the finest is within reach of float32."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """The optimum of each of k fits."""

    weights: ndarray
    """float64 `[dim + 1, k]`, the intercept last."""
    steps: ndarray
    """int `[k]`."""
    converged: ndarray
    """bool `[k]`."""


def curvature(odds: ndarray, signs: ndarray) -> ndarray:
    """Return the second derivative of the loss by the log-odds, both `[n, k]`."""
    from scipy.special import expit

    return np.asarray(C * np.abs(signs) * expit(odds) * expit(-odds))


def around_probe(design: Design, weights: ndarray, many: bool) -> Around:
    """Return the design by the Hessian of a fit to all rows, weights `[dim + 1]`."""
    odds = design.times(weights[:, None])
    return around(design, curvature(odds, np.ones(1))[:, 0], many)


def fit_logistic(
    design: Design, signs: ndarray, like: Around, start: ndarray, tolerance: float
) -> Fitted:
    """Return the optimum for signs `[n, k]`.

    `like` is the design by a Hessian like those of the fits, `start` `[dim + 1, k]`. Stop where an
    error of the optimum, in the norm of that Hessian, is below the tolerance times the weights'
    own. Gradients are in float64, and so is the optimum; steps towards it are found in float32.
    """
    from scipy.special import expit

    weights, odds = start.astype(np.float64), design.times(start.astype(np.float64))
    k = signs.shape[1]
    steps, far = np.zeros(k, int), np.ones(k, bool)
    for _ in range(STEPS + 1):
        live = np.flatnonzero(far)
        mine, at, sign = weights[:, live], odds[:, live], signs[:, live]
        descent = design.back(C * sign * expit(-sign * at))
        descent[:-1] -= mine[:-1]
        right, bend = like.inwards(descent), curvature(at, sign)
        size = np.sqrt((mine[:-1] ** 2).sum(axis=0) + (bend * at**2).sum(axis=0))
        left = np.linalg.norm(right, axis=0) / np.maximum(size, 1e-300)
        going = left > tolerance
        far[live[~going]] = False
        if not going.any():
            break
        live, sign, bend = live[going], sign[:, going], bend[:, going]
        precision = np.clip(np.sqrt(left[going]), FINEST, COARSEST)
        step, tried = like.solve(bend, right[:, going], precision)
        moved = design.times(step)
        lengths = _lengths(mine[:, going], at[:, going], step, moved, sign)
        weights[:, live] += lengths * step
        odds[:, live] += lengths * moved
        steps[live] += 1
        if k == 1 and tried > REFACTOR:  # several fits are served by one no better than the first
            like = around(design, bend[:, 0], many=False)
    return Fitted(weights, np.minimum(steps, STEPS), ~far)


def _lengths(
    weights: ndarray, odds: ndarray, step: ndarray, moved: ndarray, signs: ndarray
) -> ndarray:
    """Return how far to go along each step, `[k]`: halved from 1 until the loss does not grow."""

    def loss(length: ndarray) -> ndarray:
        norm = ((weights[:-1] + length * step[:-1]) ** 2).sum(axis=0) / 2
        misfit = np.logaddexp(0, -signs * (odds + length * moved))
        return np.asarray(norm + C * (np.abs(signs) * misfit).sum(axis=0))

    length = np.ones(weights.shape[1])
    least = loss(0 * length)
    for _ in range(30):
        worse = loss(length) > least * (1 + 1e-12)
        if not worse.any():
            break
        length[worse] /= 2
    return length
