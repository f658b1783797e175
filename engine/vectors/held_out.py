"""Scores of rows by directions that were fitted without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, islice

import numpy as np
from numpy import ndarray

from ..outputs import Activations
from ..statistics import fold_auroc, once
from .fit import Vectors
from .methods import METHODS
from .rows import LayerRows, Sides, cells_of, contrast, map_layers
from .splits import Split, why_not

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
    activations: Activations, vectors: Vectors, splits: Sequence[Split], seed: int
) -> list[HeldOut]:
    """Fit each vector again without each fold of each split, and without each two.

    Labels are shuffled for the first split only.
    """
    cells, methods = cells_of(activations), vectors.methods
    shuffles = {split.name: shuffles_of(split, seed) for split in splits[:1]}

    def refit(at: LayerRows) -> list[list[ndarray]]:
        found = []
        for split in splits:
            wanted = shuffles.get(split.name, [])
            found.append(_refit(at, cells, methods, split, wanted))
        return found

    by_layer = map_layers(refit, activations, vectors.layers)
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


def _refit(
    at: LayerRows,
    cells: ndarray,
    methods: Sequence[str],
    split: Split,
    shuffles: Sequence[ndarray],
) -> list[ndarray]:
    """Return the three arrays of `HeldOut` at one layer."""
    tests, n = split.tests(), len(cells)
    scores = np.full((len(methods), len(tests), n), np.nan)
    by_shuffle = np.empty((len(methods), len(shuffles), n))
    for (i, one), (j, other) in combinations_with_replacement(enumerate(tests), 2):
        if i != j and not split.nestable:
            continue
        fold = _Fold(at, cells, one | other)
        for number, method in enumerate(methods):
            found = fold.scores(method, split.labels)
            scores[number, j, one] = found[one]
            scores[number, i, other] = found[other]
            if i == j:
                for index, labels in enumerate(shuffles):
                    by_shuffle[number, index, one] = fold.scores(method, labels)[one]
    shuffled = np.empty(by_shuffle.shape[:2])
    for index, labels in enumerate(shuffles):
        for number, row in enumerate(by_shuffle[:, index]):
            shuffled[number, index] = fold_auroc(row, labels, split.folds, once(n))[0]
    return [scores, _random_scores(at, split), shuffled]


class _Fold:
    """Fits to the rows outside `test`, bool `[n]`."""

    def __init__(self, at: LayerRows, cells: ndarray, test: ndarray) -> None:
        self._train = ~test
        self._rows, self._cells = at.among(self._train), cells[self._train]
        self._cross = at.gram[:, self._train]

    def scores(self, method: str, labels: ndarray) -> ndarray:
        """Return those of all rows, `[n]`, by a fit to `labels`, bool `[n]`.

        The fit's own sign stands: a vector that points the wrong way shows as one below 0.5.
        """
        sides = Sides(self._rows, labels[self._train], self._cells)
        projected = self._cross @ METHODS[method].fit(sides).weights
        pos = projected[self._train & labels]
        neg = projected[self._train & ~labels]
        middle = (pos.mean() + neg.mean()) / 2
        spread = np.sqrt((pos.var() + neg.var()) / 2) or 1.0
        return np.asarray((projected - middle) / spread)


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
