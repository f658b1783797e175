"""Scores of rows by directions that were fitted without them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from ..outputs import Activations
from .few import Rows, Sides
from .fit import Vectors
from .methods import METHODS, Method
from .rows import LayerRows, OnLayer, cells_of, contrast, map_layers, unheard
from .splits import Split, why_not
from .tall import FOLD_PRECISION, Scatters, TallRows, TallSides
from .tall_methods import TALL_METHODS, Near, Search

SHUFFLES = 5
RANDOM_VECTORS = 20
TRIES = 100
"""Shuffles drawn for each one wanted, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """What rows score by fits without their fold of a split."""

    split: Split
    scores: ndarray
    """float64 `[n_methods, n_layers, n_folds, n]`: [..., k, i] is row i by a fit without its own
    fold and without fold k; for rows of fold k, by one without that fold alone. So fold k has no
    part in choosing among [..., k, :], and then measures the choice. NaN where k is not the row's
    own fold and no two folds can be left out together.

    Scores are projections in training standard deviations from the midpoint of the training sides'
    means."""
    random: ndarray
    """float64 `[n_layers, RANDOM_VECTORS, n]`: projections, signed by the other folds."""
    shuffled: ndarray
    """float64 `[n_methods, n_layers, shuffles]`: AUROC with shuffled labels."""

    @property
    def own(self) -> ndarray:
        """Each row by a fit without its own fold alone, `[n_methods, n_layers, n]`."""
        folds = self.split.folds
        return np.ascontiguousarray(self.scores[..., folds, np.arange(len(folds))])


def held_out(
    activations: Activations,
    vectors: Vectors,
    splits: Sequence[Split],
    seed: int,
    on_layer: OnLayer = unheard,
) -> list[HeldOut]:
    """Fit each vector again without each fold of each split, and without each two.

    Labels are shuffled for the first split only.
    """
    if not splits:
        return []
    cells = cells_of(activations)
    shuffles = [shuffles_of(split, seed) if not at else [] for at, split in enumerate(splits)]
    wanted = [_wanted(split, labels) for split, labels in zip(splits, shuffles, strict=True)]

    def refit(block: Sequence[LayerRows]) -> list[list[Sequence[ndarray]]]:
        fit = _fit_tall if block[0].tall else _fit_few
        scored = fit(block, vectors, cells, splits, wanted)
        parts = zip(splits, shuffles, scored, strict=True)
        found = [_arranged(*part) for part in parts]
        return [
            [
                (scores[:, place], _random_scores(at, split), shuffled[:, place])
                for split, (scores, shuffled) in zip(splits, found, strict=True)
            ]
            for place, at in enumerate(block)
        ]

    by_layer = map_layers(refit, activations, vectors.layers, on_layer)
    held = []
    for split, parts in zip(splits, zip(*by_layer, strict=True), strict=True):
        scores, random, shuffled = zip(*parts, strict=True)
        found = HeldOut(
            split=split,
            scores=np.stack(scores, axis=1),
            random=np.stack(random),
            shuffled=np.stack(shuffled, axis=1),
        )
        held.append(found)
    return held


def shuffles_of(split: Split, seed: int) -> list[ndarray]:
    """Return shuffled labels that leave every fold rows of both sides to fit.

    They are fewer than SHUFFLES where such are rare.
    """
    rng = np.random.default_rng([seed, 1])
    tries = (rng.permutation(split.labels) for _ in range(SHUFFLES * TRIES))
    usable = (labels for labels in tries if not why_not(labels, split.folds))
    return list(islice(usable, SHUFFLES))


def _near(at: LayerRows, vectors: Vectors) -> Near | None:
    """Return the probe that is fitted to all rows of a layer, where there is one."""
    if "probe" not in vectors.methods:
        return None
    vector = vectors.vector("probe", at.layer).astype(np.float64)
    intercept = vectors.metadata["probe", at.layer]["bias"] + vector @ at.mean
    probe = np.append(vector, intercept)
    return probe, at.design.solver_at(probe)


class Refit(NamedTuple):
    """A fit to the rows outside some folds."""

    without: tuple[int, ...]
    labels: ndarray
    """bool `[n]`."""


def _without(split: Split) -> list[tuple[int, ...]]:
    """Return the folds that each fit with the labels of the rows leaves out."""
    folds = range(int(split.folds.max()) + 1)
    found: list[tuple[int, ...]] = [(fold,) for fold in folds]
    return found + list(combinations(folds, 2)) if split.nestable else found


def _wanted(split: Split, shuffles: Sequence[ndarray]) -> list[Refit]:
    found = [Refit(without, split.labels) for without in _without(split)]
    folds = range(int(split.folds.max()) + 1)
    return found + [Refit((fold,), labels) for labels in shuffles for fold in folds]


def _arranged(split: Split, shuffles: Sequence[ndarray], found: ndarray) -> tuple[ndarray, ndarray]:
    """Return `scores` and `shuffled` of `HeldOut` at some layers.

    From the scores of all rows by each refit, `[n_methods, n_layers, refits, n]`.
    """
    tests, real = split.tests(), _without(split)
    scores = np.full((*found.shape[:2], len(tests), found.shape[3]), np.nan)
    for number, without in enumerate(real):
        one, other = without[0], without[-1]
        scores[:, :, other, tests[one]] = found[:, :, number, tests[one]]
        scores[:, :, one, tests[other]] = found[:, :, number, tests[other]]
    by_fold = np.arange(len(split.folds))
    shuffled = np.empty((*found.shape[:2], len(shuffles)))
    for number, labels in enumerate(shuffles):
        own = found[:, :, len(real) + number * len(tests) + split.folds, by_fold]
        shuffled[:, :, number] = split.relabelled(labels).auroc(own)
    return scores, shuffled


def _fit_few(
    block: Sequence[LayerRows],
    vectors: Vectors,
    cells: ndarray,
    splits: Sequence[Split],
    wanted: Sequence[Sequence[Refit]],
) -> Iterator[ndarray]:
    """Yield the scores of all rows by the refits of each split, where rows are few."""
    grams, dim = np.stack([at.gram for at in block]), vectors.values.shape[2]
    for split, refits in zip(splits, wanted, strict=True):
        found = np.empty((len(vectors.methods), len(block), len(refits), len(cells)))
        sizes = np.array([len(each.without) for each in refits])
        for size in set(sizes):  # of one size, sets of rows are about as large
            chosen = np.flatnonzero(sizes == size)
            stack = _Stack(grams, dim, cells, split.folds, [refits[one] for one in chosen])
            for number, method in enumerate(vectors.methods):
                found[number][:, chosen] = stack.scores(METHODS[method])
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


def _fit_tall(
    block: Sequence[LayerRows],
    vectors: Vectors,
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
    search = Search(sides, FOLD_PRECISION, _near(at, vectors))
    found = []
    for name in vectors.methods:
        projected = at.centred @ TALL_METHODS[name](search).vectors
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


def random_directions(dim: int, layer: int, count: int) -> ndarray:
    """Return isotropic unit vectors, float64 `[count, dim]`, fixed by the layer.

    A larger count starts with the smaller.
    """
    rng = np.random.default_rng([0, layer + 1])
    directions = rng.standard_normal((count, dim))
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    return np.asarray(directions / norms)


def _random_scores(at: LayerRows, split: Split) -> ndarray:
    dim = at.centred.shape[1]
    projected = at.centred @ random_directions(dim, at.layer, RANDOM_VECTORS).T
    signs = np.empty(projected.shape)
    for test in split.tests():
        gaps = contrast(split.labels[~test]) @ projected[~test]
        signs[test] = np.where(gaps >= 0, 1, -1)
    return np.asarray((signs * projected).T)
