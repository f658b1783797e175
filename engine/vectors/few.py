"""Few rows: stacks of fits from Gram matrices.

Every fitted direction is a sum of rows, w = sum_i a_i x_i, whose weights a add up to zero. So a
method needs only the rows' Gram matrix K = X X' (`[n, n]`), whatever the hidden dimension: K is
computed once a layer and shared by all methods and by all held-out folds, whose Gram matrices are
blocks of it. A held-out row's projection is K a as well. At this size calls cost more than
arithmetic, so many sets of rows, of several layers, are fitted at once. Where rows are many, K is
too large: see tall.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from .ica import COMPONENTS, sources_of
from .krylov import leading
from .logistic import C
from .rows import contrast

ENTRIES = 1 << 20
"""Of the matrices of fits that are computed at once."""


class Sources(NamedTuple):
    """Independent components of m sets."""

    values: ndarray
    """`[m, p, k]`, unit variance; 0 beyond a set's own."""
    counts: ndarray
    """int `[m]`: components that a set has."""
    settled: ndarray
    """bool `[m]`."""


class Rows:
    """m sets of up to p rows: their Gram matrices, each centred on the set's mean."""

    def __init__(self, gram: ndarray, kept: ndarray, dim: int) -> None:
        self.kept = kept
        """bool `[m, p]`: the rows that a set has."""
        self.counts = kept.sum(axis=1)
        self.dim = dim
        """Hidden dimension of the rows."""
        both = kept[:, :, None] & kept[:, None]
        gram = np.where(both, gram, 0)
        means = gram.sum(axis=1) / self.counts[:, None]
        overall = means.sum(axis=1) / self.counts
        gram -= means[:, None]
        gram -= means[:, :, None]
        gram += overall[:, None, None]
        self.gram = np.where(both, gram, 0)
        """`[m, p, p]`, 0 in rows beyond a set's own."""

    @cached_property
    def sources(self) -> Sources:
        """Of at most 10 principal components, the leading eigenvectors of the Gram matrices."""
        principal, values = [], []
        for gram, n in zip(self.gram, self.counts, strict=True):
            variance, vectors = leading(gram, min(COMPONENTS, n - 1))
            principal.append(vectors)
            values.append(variance)
        each, settled = sources_of(principal, values, self.counts)
        counts = np.array([source.shape[1] for source in each])
        stack = np.zeros((*self.kept.shape, counts.max()))
        for place, source in enumerate(each):
            stack[place, :, : source.shape[1]] = source
        return Sources(stack, counts, settled)


@dataclass(frozen=True, eq=False)
class Sides:
    """k fits: what a method is fitted to."""

    rows: Rows
    of: ndarray
    """int `[k]`: the set of rows of each."""
    labels: ndarray
    """bool `[k, p]`: True is pos."""
    cells: ndarray
    """int `[m, p]`: one per instruction pair and question."""

    @cached_property
    def gram(self) -> ndarray:
        """`[k, p, p]`."""
        return np.asarray(self.rows.gram[self.of])

    @cached_property
    def sides(self) -> tuple[ndarray, ndarray]:
        """Rows of pos and of neg, bool `[k, p]` each."""
        kept = self.rows.kept[self.of]
        return self.labels & kept, ~self.labels & kept

    @cached_property
    def gap(self) -> ndarray:
        """Weights of the mean of pos minus the mean of neg, `[k, p]`."""
        return contrast(self.labels, self.rows.kept[self.of])

    def times(self, weights: ndarray) -> ndarray:
        """Return each fit's Gram matrix times its weights, `[k, p]` both."""
        return np.asarray((self.gram @ weights[:, :, None])[:, :, 0])

    def towards_pos(self, weights: ndarray) -> ndarray:
        """Return weights `[k, p]` signed so that the mean of pos is beyond the mean of neg."""
        along = np.einsum("ij,ij->i", self.gap, self.times(weights))
        return np.asarray(weights * np.where(along >= 0, 1, -1)[:, None])

    def unit(self, weights: ndarray) -> ndarray:
        """Return weights `[k, p]` of unit norm, signed towards pos."""
        square = np.einsum("ij,ij->i", weights, self.times(weights))
        norm = np.sqrt(np.maximum(square, 0))
        return self.towards_pos(weights / np.where(norm > 0, norm, 1)[:, None])

    def parts(self) -> Iterator[Sides]:
        """Yield the fits by as many as are computed at once."""
        some = max(1, ENTRIES // self.rows.gram[0].size)
        for start in range(0, len(self.of), some):
            part = slice(start, start + some)
            yield Sides(self.rows, self.of[part], self.labels[part], self.cells)


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """k directions as sums of rows."""

    weights: ndarray
    """float64 `[k, p]`, adding up to zero."""
    facts: Sequence[dict[str, Any]]
    """What each fit found: shrinkage, steps, convergence."""
    intercepts: Sequence[float | None]
    """Of probes, for rows centred as the Gram matrix is."""


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
