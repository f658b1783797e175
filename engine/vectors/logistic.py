"""Regularised logistic regression of many rows, several fits at a time.

Each fit minimises |w|^2 / 2 + C sum_i |s_i| log(1 + exp(-s_i (w . x_i + b))), s_i +1 for pos, -1
for neg and 0 for a row left out. Newton's method; its steps come from conjugate gradients, since
one pass over the rows serves all fits, where a Hessian of its own for each would cost as much as
hundreds of passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from .krylov import Apply, ApplyTo, conjugate_gradients

C = 1.0
STEPS = 50
CHUNK = 4096
"""Rows weighted at a time."""
BLOCK = 256
"""Rows multiplied twice at a time, while they are in the processor's cache."""
REFACTOR = 15
"""Conjugate steps of one fit that cost about as much as a preconditioner."""
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


class Design:
    """Rows `[n, dim]` with a constant column, which is not regularised."""

    def __init__(self, rows: ndarray) -> None:
        self.rows, self.dim = rows, rows.shape[1]
        self.single = rows.astype(np.float32)
        """The same in half the memory, for steps whose errors the next one mends."""

    def like(self, values: ndarray) -> ndarray:
        """Return the rows in the precision of some values."""
        return self.rows if values.dtype == np.float64 else self.single

    def times(self, weights: ndarray) -> ndarray:
        """Return `[n, k]` of `[dim + 1, k]`, in the precision of the weights."""
        return np.asarray(self.like(weights) @ weights[:-1] + weights[-1])

    def back(self, values: ndarray) -> ndarray:
        """Return `[dim + 1, k]` of `[n, k]`, in the precision of the values."""
        return np.concatenate([self.like(values).T @ values, values.sum(axis=0)[None]])

    def curved(self, bend: ndarray, along: ndarray) -> ndarray:
        """Return `back(bend * times(along))` in float32; a block of rows is read once for both."""
        total = np.zeros_like(along)
        for start in range(0, len(self.rows), BLOCK):
            part = slice(start, start + BLOCK)
            rows = self.single[part]
            pulled = bend[part] * (rows @ along[:-1] + along[-1])
            total[:-1] += rows.T @ pulled
            total[-1] += pulled.sum(axis=0)
        return total

    def regularised(self, weights: ndarray) -> ndarray:
        """Return weights with the intercept's set to 0."""
        kept = weights.copy()
        kept[-1] = 0
        return kept

    def hessian(self, curvature: ndarray) -> ndarray:
        """Return `[dim + 1, dim + 1]` of a loss of curvature `[n]`, summed in its precision."""
        total = np.zeros((self.dim + 1, self.dim + 1))
        source = self.like(curvature)
        for start in range(0, len(self.rows), CHUNK):
            part = slice(start, start + CHUNK)
            root = np.sqrt(curvature[part])[:, None]
            rows = np.concatenate([source[part] * root, root], axis=1)
            total += rows.T @ rows
        index = np.arange(self.dim)
        total[index, index] += 1
        return total

    def solver(self, curvature: ndarray) -> Apply:
        """Return the inverse of the Hessian of a curvature `[n]`, to float32."""
        try:
            return solver(self.hessian(curvature.astype(np.float32)))
        except np.linalg.LinAlgError:  # rounding left it no positive definite matrix
            return solver(self.hessian(curvature))

    def solver_at(self, weights: ndarray) -> Apply:
        """Return that of all rows at weights `[dim + 1]`."""
        return self.solver(curvature(self.times(weights[:, None]), np.ones(1))[:, 0])

    def flat_hessian(self, moment: ndarray) -> ndarray:
        """Return that at weights of 0, of centred rows with a moment `[dim, dim]`."""
        total = np.zeros((self.dim + 1, self.dim + 1))
        total[:-1, :-1] = C / 4 * moment
        index = np.arange(self.dim)
        total[index, index] += 1
        total[-1, -1] = C / 4 * len(self.rows)
        return total


def curvature(odds: ndarray, signs: ndarray) -> ndarray:
    """Return the second derivative of the loss by the log-odds, both `[n, k]`."""
    from scipy.special import expit

    return np.asarray(C * np.abs(signs) * expit(odds) * expit(-odds))


def solver(matrix: ndarray) -> Apply:
    """Return the product with a positive definite matrix's inverse, in float32.

    The matrix is overwritten.
    """
    from scipy.linalg import cho_factor, cho_solve
    from scipy.linalg.blas import strsv

    factor, lower = cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
    single = factor.astype(np.float32, order="F")

    def solve(right: ndarray) -> ndarray:
        values = right.astype(np.float32)
        if right.shape[1] == 1:  # the routine for many takes ten times as long
            half = strsv(single, values[:, 0], lower=lower)
            found = strsv(single, half, lower=lower, trans=1)[:, None]
        else:
            found = cho_solve((single, lower), values, check_finite=False)
        return np.asarray(found.astype(right.dtype))

    return solve


def for_all(product: Apply) -> ApplyTo:
    """Return one product for all columns."""
    return lambda values, _columns: product(values)


def among(product: ApplyTo, chosen: ndarray) -> ApplyTo:
    """Return a product for chosen columns, int `[any]`, which are counted anew."""
    return lambda values, columns: product(values, chosen[columns])


def fit_logistic(
    design: Design, signs: ndarray, precondition: ApplyTo, start: ndarray, tolerance: ndarray
) -> Fitted:
    """Return the optimum for signs `[n, k]`.

    `precondition` is the inverse of a Hessian like those of the fits, `start` `[dim + 1, k]`. Stop
    where an error of the optimum, in the norm of the Hessian, is below the tolerance, `[k]`, times
    the weights' own. Gradients are in float64, and so is the optimum; steps towards it are found in
    float32.
    """
    from scipy.special import expit

    weights, odds = start.astype(np.float64), design.times(start.astype(np.float64))
    k = signs.shape[1]
    steps, far = np.zeros(k, int), np.ones(k, bool)
    fresh = k > 1  # one preconditioner serves several fits no better than the first
    for _ in range(STEPS + 1):
        live = np.flatnonzero(far)
        mine, at, sign = weights[:, live], odds[:, live], signs[:, live]
        gradient = design.regularised(mine) - design.back(C * sign * expit(-sign * at))
        bend = curvature(at, sign)
        left = np.sqrt(np.einsum("ij,ij->j", gradient, precondition(gradient, live)))
        size = np.sqrt((mine[:-1] ** 2).sum(axis=0) + (bend * at**2).sum(axis=0))
        left = left / np.maximum(size, 1e-300)
        going = left > tolerance[live]
        far[live[~going]] = False
        if not going.any():
            break
        live, sign, bend = live[going], sign[:, going], bend[:, going]
        precision = np.clip(np.sqrt(left[going]), FINEST, COARSEST)
        step, tried = _step(design, gradient[:, going], bend, among(precondition, live), precision)
        moved = design.times(step)
        lengths = _lengths(mine[:, going], at[:, going], step, moved, sign)
        weights[:, live] += lengths * step
        odds[:, live] += lengths * moved
        steps[live] += 1
        if tried > REFACTOR and not fresh:
            precondition, fresh = for_all(design.solver(bend[:, 0])), True
    return Fitted(weights, np.minimum(steps, STEPS), ~far)


def _step(
    design: Design, gradient: ndarray, bend: ndarray, precondition: ApplyTo, precision: ndarray
) -> tuple[ndarray, int]:
    """Return Newton's steps `[dim + 1, k]` in float64, and how many conjugate steps they took."""
    bend = bend.astype(np.float32)
    # Of unit size, since a gradient near the optimum is below what float32 can hold of its square.
    scale = np.maximum(np.linalg.norm(gradient, axis=0), 1e-300)

    def apply(along: ndarray, columns: ndarray) -> ndarray:
        return np.asarray(design.regularised(along) + design.curved(bend[:, columns], along))

    right = (-gradient / scale).astype(np.float32)
    step, tried = conjugate_gradients(apply, precondition, right, precision)
    return step.astype(np.float64) * scale, tried


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
