"""Rows of a layer that are many: fits from sums over rows, `[hidden_dim, hidden_dim]`.

Cost grows with the number of rows as a pass over them does. The sums are kept by fold, so that
those of the rows outside some folds are the total without these folds' own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy import ndarray

from .design import Around, around
from .ica import COMPONENTS, sources_of
from .krylov import DIRECT, SPARE, leading_of_large, leading_of_many
from .rows import LayerRows

CHUNK = 4096
"""Rows summed at a time."""
FIT_PRECISION = 1e-10
"""Of stored vectors, relative."""
FOLD_PRECISION = 1e-4
"""Of fits that are only measured: far below what the AUROC's interval can tell."""
Folds = tuple[int, ...]


class TallRows:
    """All rows at one layer, and the folds some of which are left out.

    Fits without folds are only measured: where dimensions are many, their sums are in float32.
    """

    def __init__(self, at: LayerRows, folds: ndarray | None = None) -> None:
        self.centred = at.centred
        """float64 `[n, hidden_dim]`."""
        self.design = at.design
        self.folds = np.zeros((1, len(at.centred)), int) if folds is None else folds
        """int `[splits, n]`, numbered through: no fold is of two splits."""
        exact = folds is None or self.centred.shape[1] <= DIRECT
        self.dtype = np.dtype(np.float64 if exact else np.float32)
        """Of sums."""

    @cached_property
    def moment(self) -> ndarray:
        """X'X, `[hidden_dim, hidden_dim]`."""
        if self.dtype == np.float64:
            return moment_of(self.centred, np.arange(len(self.centred)))
        return np.asarray(sum(self.moments[fold] for fold in np.unique(self.folds[0])))

    @cached_property
    def moments(self) -> list[ndarray]:
        """That of each fold."""
        source = self.centred if self.dtype == np.float64 else self.design.single[:, :-1]
        folds = range(self.folds.max() + 1)
        return [moment_of(source, np.flatnonzero((self.folds == f).any(axis=0))) for f in folds]

    @cached_property
    def lengths(self) -> ndarray:
        """Squared norm of each row, `[n]`."""
        return np.asarray(np.einsum("ij,ij->i", self.centred, self.centred))

    def around(self, curvature: float, many: bool) -> Around:
        """Return the rows by their Hessian of one curvature, for many fits or one."""
        each = np.full(len(self.centred), curvature)
        return around(self.design, each, many, self.design.flat_hessian(curvature, self.moment))

    @cached_property
    def leading(self) -> ndarray:
        """Leading directions, float32 `[hidden_dim, any]`: near those of rows outside a fold."""
        found = leading_of_large(self.moment, COMPONENTS + SPARE, FOLD_PRECISION)[1]
        return found.astype(np.float32)


def moment_of(rows: ndarray, chosen: ndarray) -> ndarray:
    """Return X'X of chosen rows, int `[any]`, in the rows' precision."""
    dim = rows.shape[1]
    found = np.zeros((dim, dim), rows.dtype)
    for start in range(0, len(chosen), CHUNK):
        part = rows[chosen[start : start + CHUNK]]
        found += part.T @ part
    return found


def _product(moment: ndarray, rows: ndarray) -> ndarray:
    """Return a symmetric matrix times each row of `[k, hidden_dim]`: so, not from the right, in
    two thirds of the time."""
    return np.ascontiguousarray((moment @ rows.T).T)


class Scatters:
    """m sets of rows, each outside some folds, and their scatters: X'X about their own mean."""

    def __init__(self, rows: TallRows, without: Sequence[Folds]) -> None:
        self.rows, self.dtype = rows, rows.dtype
        folds = np.arange(rows.folds.max() + 1)
        self.left_out = np.array([np.isin(folds, each) for each in without])
        """bool `[m, folds]`; all of a set are of one split."""
        self.kept = ~self.left_out.T[rows.folds].any(axis=0)
        """bool `[n, m]`."""
        self.counts = self.kept.sum(axis=0)
        self.means = rows.centred.T @ (self.kept / self.counts)
        """float64 `[hidden_dim, m]`."""

    def whole(self, number: int) -> ndarray:
        """Return one scatter, written out."""
        mean = self.means[:, number].astype(self.dtype)
        found = self.rows.moment - np.outer(self.counts[number] * mean, mean)
        for fold in np.flatnonzero(self.left_out[number]):
            found -= self.rows.moments[fold]
        return np.asarray(found)

    def times(self, block: ndarray, of: ndarray) -> ndarray:
        """Return `S x` of each row x of `[k, hidden_dim]`, S the scatter of set `of`, `[k]`."""
        block = block.astype(self.dtype, copy=False)
        found = _product(self.rows.moment, block)
        for fold in np.flatnonzero(self.left_out.any(axis=0)):
            chosen = np.flatnonzero(self.left_out[of, fold])
            if len(chosen):
                found[chosen] -= _product(self.rows.moments[fold], block[chosen])
        means = self.means.T[of].astype(self.dtype)
        along = np.einsum("ij,ij->i", means, block) * self.counts[of].astype(self.dtype)
        found -= means * along[:, None]
        return np.asarray(found)

    def of_each(self, block: ndarray) -> ndarray:
        """Return `S x` of each row x of `[k, hidden_dim]` and each set: `[m, k, hidden_dim]`."""
        found = np.repeat(_product(self.rows.moment, block)[None], len(self.counts), axis=0)
        for fold in np.flatnonzero(self.left_out.any(axis=0)):
            found[self.left_out[:, fold]] -= _product(self.rows.moments[fold], block)
        means = self.means.T.astype(self.dtype)
        along = means @ block.T * self.counts[:, None].astype(self.dtype)
        found -= along[:, :, None] * means[:, None]
        return np.asarray(found)

    @cached_property
    def squares(self) -> ndarray:
        """Sum of squares of each scatter, float64 `[m]`."""
        used = self.left_out.any(axis=0)
        moments = self.rows.moments if used.any() else []
        parts = [self.rows.moment, *(moments[fold] for fold in np.flatnonzero(used))]
        products = np.zeros((len(parts), len(parts)))
        for start in range(0, len(self.means), 64):
            flat = np.stack([each[start : start + 64].ravel() for each in parts])
            products += flat @ flat.T
        signs = np.concatenate(
            [np.ones((len(self.counts), 1)), -1.0 * self.left_out[:, used]], axis=1
        )
        # What is left of the total, before the mean is taken off, is S + n m m'.
        means = self.means.T
        along = np.einsum("ij,ij->i", means, self.times(means, np.arange(len(signs))))
        length = (self.means**2).sum(axis=0)
        square = np.einsum("ij,jk,ik->i", signs, products, signs)
        return np.asarray(square - 2 * self.counts * along - (self.counts * length) ** 2)

    @cached_property
    def traces(self) -> ndarray:
        """`[m]`."""
        own = self.counts * (self.means**2).sum(axis=0)
        return np.asarray(self.rows.lengths @ self.kept - own)

    @cached_property
    def sources(self) -> tuple[list[ndarray], list[ndarray], ndarray]:
        """Independent components of each set, and how a row changes with each; which settled.

        `[n, k]`, 0 for rows that are left out, `[hidden_dim, k]`, and bool `[m]`.
        """
        vectors = self._leading()
        projected = self.rows.centred @ np.concatenate(vectors, axis=1)
        ends = np.cumsum([each.shape[1] for each in vectors])
        principal, values, bases = [], [], []
        for number, along in enumerate(np.split(projected, ends[:-1], axis=1)):
            kept = self.kept[:, number]
            part = np.where(kept[:, None], along - along[kept].mean(axis=0), 0)
            found, turn = np.linalg.eigh(part.T @ part)
            norms = np.sqrt(np.maximum(found, 0))
            principal.append(part @ turn / np.where(norms > 0, norms, 1))
            values.append(found)
            bases.append(vectors[number] @ turn * norms)
        sources, settled = sources_of(principal, values, self.counts, self.dtype)
        # A column of the mixing matrix, X's / n, from the leading directions that make up s.
        each = zip(bases, principal, sources, self.counts, strict=True)
        mixing = [base @ (white.T @ source / n) for base, white, source, n in each]
        return sources, mixing, settled

    def _leading(self) -> list[ndarray]:
        """Return each set's leading directions, float64 `[hidden_dim, any]`."""
        sets, dim = np.arange(len(self.counts)), len(self.means)
        if self.dtype == np.float64:
            counts = np.minimum(self.counts - 1, min(COMPONENTS, dim))
            pairs = zip((self.whole(at) for at in range(len(sets))), counts, strict=True)
            return [leading_of_large(each, int(n), FIT_PRECISION)[1] for each, n in pairs]

        def apply(blocks: ndarray) -> ndarray:
            each = np.repeat(sets, blocks.shape[1])
            return self.times(blocks.reshape(-1, dim), each).reshape(blocks.shape)

        start = np.ascontiguousarray(self.rows.leading.T)
        basis, images = np.repeat(start[None], len(sets), axis=0), self.of_each(start)
        vectors = leading_of_many(apply, basis, images, COMPONENTS, FOLD_PRECISION)[1]
        return [each.T.astype(np.float64) for each in vectors]


class TallSides:
    """k fits: sets of rows, `of` which each is one (int `[k]`), with labels of all rows."""

    def __init__(self, sets: Scatters, of: ndarray, labels: ndarray, cells: ndarray) -> None:
        self.sets, self.of, self.labels, self.cells = sets, of, labels, cells
        self.kept = sets.kept[:, of]
        self.pos, self.neg = labels & self.kept, ~labels & self.kept
        """bool `[n, k]`, as labels and kept."""
        self.n_pos, self.n_neg = self.pos.sum(axis=0), self.neg.sum(axis=0)
        """int `[k]`."""

    @cached_property
    def means(self) -> tuple[ndarray, ndarray]:
        """Of pos and of neg, `[hidden_dim, k]`."""
        shares = np.concatenate([self.pos / self.n_pos, self.neg / self.n_neg], axis=1)
        pos, neg = np.split(self.sets.rows.centred.T @ shares, 2, axis=1)
        return pos, neg

    @cached_property
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
                rows = self.sets.rows.centred
                yield rows[pos].mean(axis=0) - rows[neg].mean(axis=0)
