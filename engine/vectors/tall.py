"""Rows of a layer that are many: fits from sums over rows, `[hidden_dim, hidden_dim]`.

Cost grows with the number of rows as a pass over them does. The sums are kept by fold, so that
those of the rows outside some folds are the total without these folds' own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy import ndarray

from .krylov import Apply, leading_of_large
from .logistic import solver
from .rows import ICA_COMPONENTS, LayerRows, sources_of

CHUNK = 4096
"""Rows summed at a time."""
Folds = tuple[int, ...]


class TallRows:
    """All rows at one layer, divided into folds."""

    def __init__(self, at: LayerRows, folds: ndarray, precision: float) -> None:
        self.centred = at.centred
        """float64 `[n, hidden_dim]`."""
        self.folds = folds
        """int `[n]`, numbered from 0."""
        self.precision = precision
        """Relative, of what is found by iteration."""
        self.design = at.design

    @cached_property
    def moments(self) -> ndarray:
        """Of each fold X'X, float64 `[folds, hidden_dim, hidden_dim]`."""
        dim = self.centred.shape[1]
        found = np.zeros((int(self.folds.max()) + 1, dim, dim))
        for fold in range(len(found)):
            mine = np.flatnonzero(self.folds == fold)
            for start in range(0, len(mine), CHUNK):
                rows = self.centred[mine[start : start + CHUNK]]
                found[fold] += rows.T @ rows
        return found

    @cached_property
    def moment(self) -> ndarray:
        """X'X of all rows."""
        return np.asarray(self.moments.sum(axis=0))

    @cached_property
    def lengths(self) -> ndarray:
        """Squared norm of each row, `[n]`."""
        return np.asarray(np.einsum("ij,ij->i", self.centred, self.centred))

    @cached_property
    def flat_solver(self) -> Apply:
        """The inverse of the probe's Hessian of all rows at weights of 0."""
        return solver(self.design.flat_hessian(self.moment))

    @cached_property
    def start(self) -> ndarray | None:
        """Leading directions of all rows, near those of the rows outside some folds."""
        if len(self.moments) == 1:
            return None
        count = min(ICA_COMPONENTS, len(self.moment))
        return leading_of_large(self.moment, count, self.precision)[1]


class Subset:
    """The rows outside some folds."""

    def __init__(self, rows: TallRows, without: Folds) -> None:
        self.rows, self.without = rows, without
        self.kept = ~np.isin(rows.folds, without)
        """bool `[n]`."""
        self.n = int(self.kept.sum())
        self.mean = self.kept / self.n @ rows.centred

    @cached_property
    def scatter(self) -> ndarray:
        """X'X of these rows, centred on their mean."""
        total = np.outer(-self.n * self.mean, self.mean)
        total += self.rows.moment
        for fold in self.without:
            total -= self.rows.moments[fold]
        return total

    @cached_property
    def sources(self) -> tuple[ndarray, ndarray, bool]:
        """Independent components `[n, k]`, how a row changes with each `[hidden_dim, k]`, settled.

        Those of rows that are left out are 0.
        """
        scatter, rows = self.scatter, self.rows
        count = min(ICA_COMPONENTS, self.n - 1, len(scatter))
        values, vectors = leading_of_large(scatter, count, rows.precision, rows.start)
        white = (rows.centred @ vectors)[self.kept] - self.mean @ vectors
        norms = np.sqrt(np.maximum(values, 0))
        sources, settled = sources_of(white / np.where(norms > 0, norms, 1), values)
        # A column of the mixing matrix, X's / n, from the leading directions that make up s.
        mixing = vectors @ (white.T @ sources / self.n)
        found = np.zeros((len(self.kept), sources.shape[1]))
        found[self.kept] = sources
        return found, mixing, settled


class TallSides:
    """A subset's rows with some labellings of them."""

    def __init__(self, subset: Subset, labels: ndarray, cells: ndarray) -> None:
        self.subset, self.cells = subset, cells
        kept = subset.kept[:, None]
        self.pos, self.neg = labels & kept, ~labels & kept
        """bool `[n, k]`."""
        self.n_pos, self.n_neg = self.pos.sum(axis=0), self.neg.sum(axis=0)
        """int `[k]`."""

    @cached_property
    def means(self) -> tuple[ndarray, ndarray]:
        """Of pos and of neg, `[hidden_dim, k]`."""
        shares = np.concatenate([self.pos / self.n_pos, self.neg / self.n_neg], axis=1)
        pos, neg = np.split(self.subset.rows.centred.T @ shares, 2, axis=1)
        return pos, neg

    @property
    def gaps(self) -> ndarray:
        """Mean of pos minus mean of neg, `[hidden_dim, k]`."""
        pos, neg = self.means
        return np.asarray(pos - neg)

    def unit(self, vectors: ndarray) -> ndarray:
        """Return `[hidden_dim, k]` of unit norm, with the mean of pos beyond that of neg."""
        norms = np.linalg.norm(vectors, axis=0)
        return self.towards_pos(vectors / np.where(norms > 0, norms, 1))

    def towards_pos(self, vectors: ndarray) -> ndarray:
        """Return vectors signed so that the mean of pos is beyond the mean of neg."""
        along = np.einsum("ij,ij->j", self.gaps, vectors)
        return np.asarray(vectors * np.where(along >= 0, 1, -1))

    def paired(self, column: int) -> Iterator[ndarray]:
        """Yield pos minus neg of each cell that has both sides, `[hidden_dim]`."""
        order = np.argsort(self.cells, kind="stable")
        ends = np.flatnonzero(np.diff(self.cells[order])) + 1
        for cell in np.split(order, ends):
            pos, neg = (cell[side[cell, column]] for side in (self.pos, self.neg))
            if len(pos) and len(neg):
                rows = self.subset.rows.centred
                yield rows[pos].mean(axis=0) - rows[neg].mean(axis=0)
