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
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from .ica import COMPONENTS, sources_of
from .krylov import leading
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
