"""Scores of all rows by fits to the rows outside some folds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from .few import Rows, Sides
from .fit import Vectors
from .methods import METHODS, Method
from .rows import LayerRows
from .splits import Split
from .tall import FOLD_PRECISION, Scatters, TallRows, TallSides
from .tall_methods import TALL_METHODS, Search


class Refit(NamedTuple):
    """A fit to the rows outside some folds."""

    without: tuple[int, ...]
    labels: ndarray
    """bool `[n]`."""


def _near(at: LayerRows, vectors: Vectors, methods: Sequence[str]) -> ndarray | None:
    """Return the probe that is fitted to all rows of a layer, where it is one of the methods."""
    if "probe" not in methods:
        return None
    vector = vectors.vector("probe", at.layer).astype(np.float64)
    intercept = vectors.metadata["probe", at.layer]["bias"] + vector @ at.mean
    return np.append(vector, intercept)


def fit_few(
    block: Sequence[LayerRows],
    vectors: Vectors,
    methods: Sequence[str],
    cells: ndarray,
    splits: Sequence[Split],
    wanted: Sequence[Sequence[Refit]],
) -> Iterator[ndarray]:
    """Yield the scores of all rows by the refits of each split, where rows are few."""
    grams, dim = np.stack([at.gram for at in block]), vectors.values.shape[2]
    for split, refits in zip(splits, wanted, strict=True):
        found = np.empty((len(methods), len(block), len(refits), len(cells)))
        sizes = np.array([len(each.without) for each in refits])
        for size in set(sizes):  # of one size, sets of rows are about as large
            chosen = np.flatnonzero(sizes == size)
            stack = _Stack(grams, dim, cells, split.folds, [refits[one] for one in chosen])
            for number, method in enumerate(methods):
                found[number][:, chosen] = stack.scores(METHODS[method])
        for place, at in enumerate(block):
            found[:, place] = found[:, place][..., at.first]
        yield found


class _Stack:
    """Refits of some layers to sets of rows, of which each leaves out as many folds."""

    def __init__(
        self, grams: ndarray, dim: int, cells: ndarray, folds: ndarray, wanted: Sequence[Refit]
    ) -> None:
        sets = list(dict.fromkeys(each.without for each in wanted))
        kept = np.array([~np.isin(folds, without) for without in sets])
        self._of = np.array([sets.index(each.without) for each in wanted])
        self._labels = np.array([each.labels for each in wanted])
        self._kept, self._grams = kept[self._of], grams
        # The rows of a set first; those that fill up a smaller one count as left out.
        self._place = np.argsort(~kept, axis=1, kind="stable")[:, : kept.sum(axis=1).max()]
        layers, real = len(grams), np.take_along_axis(kept, self._place, axis=1)
        blocks = grams[:, self._place[:, :, None], self._place[:, None]]
        size = self._place.shape[1]
        rows = Rows(blocks.reshape(-1, size, size), np.tile(real, (layers, 1)), dim)
        of = np.add.outer(np.arange(layers) * len(sets), self._of).ravel()
        labels = np.take_along_axis(self._labels, self._place[self._of], axis=1)
        cells = np.tile(cells[self._place], (layers, 1))
        self._sides = Sides(rows, of, np.tile(labels, (layers, 1)), cells)

    def scores(self, method: Method) -> ndarray:
        """Return those of all rows by each refit, `[n_layers, refits, n]`.

        The fit's own sign stands: a vector that points the wrong way shows as one below 0.5.
        """
        weights = method.fit(self._sides).weights
        layers, n = self._grams.shape[:2]
        whole = np.zeros((layers, len(self._of), n))
        at = np.broadcast_to(self._place[self._of], (layers, *self._place[self._of].shape))
        np.put_along_axis(whole, at, weights.reshape(at.shape), axis=2)
        return _standardised(whole @ self._grams, self._kept, self._labels)


def fit_tall(
    block: Sequence[LayerRows],
    vectors: Vectors,
    methods: Sequence[str],
    cells: ndarray,
    splits: Sequence[Split],
    wanted: Sequence[Sequence[Refit]],
) -> list[ndarray]:
    """Return the same where rows are many, at the block's one layer.

    Splits are fitted together: products with the rows cost less for more columns at once.
    """
    (at,) = block
    counts = [int(split.folds.max()) + 1 for split in splits]
    first = np.cumsum(counts) - counts
    folds = np.stack([split.folds + start for split, start in zip(splits, first, strict=True)])
    refits = [
        each._replace(without=tuple(int(start) + fold for fold in each.without))
        for start, some in zip(first, wanted, strict=True)
        for each in some
    ]
    sets = list(dict.fromkeys(each.without for each in refits))
    of = np.array([sets.index(each.without) for each in refits])
    labels = np.stack([each.labels for each in refits], axis=1)
    sides = TallSides(Scatters(TallRows(at, folds), sets), of, labels, cells)
    search = Search(sides, FOLD_PRECISION, _near(at, vectors, methods))
    found = []
    for name in methods:
        projected = (at.centred @ TALL_METHODS[name](search).vectors)[at.first]
        found.append(_standardised(projected.T, sides.kept.T, labels.T)[None])
    return np.split(np.stack(found), np.cumsum([len(some) for some in wanted])[:-1], axis=2)


def _standardised(projected: ndarray, kept: ndarray, labels: ndarray) -> ndarray:
    """Return projections `[..., k, n]` as `HeldOut.scores` has them; rows `kept` `[k, n]` count."""
    middle, variance = 0, 0
    for side in (kept & labels, kept & ~labels):
        share = side / side.sum(axis=-1, keepdims=True)
        mean = np.einsum("...kn,kn->...k", projected, share)[..., None]
        variance = variance + np.einsum("...kn,kn->...k", (projected - mean) ** 2, share)[..., None]
        middle = middle + mean / 2
    spread = np.sqrt(variance / 2)
    return np.asarray((projected - middle) / np.where(spread > 0, spread, 1))
