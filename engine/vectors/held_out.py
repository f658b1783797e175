"""Scores of rows at one layer by directions that were fitted without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np
from numpy import ndarray

from ..outputs import Activations
from ..statistics import fold_auroc, once
from .methods import METHODS
from .rows import SEED, LayerRows, cells_of, contrast
from .splits import Split, why_not

SHUFFLES = 5
RANDOM_VECTORS = 20
TRIES = 100
"""Shuffles drawn for each one wanted, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Scores at one layer.

    They are projections in training standard deviations from the midpoint of the training sides'
    means; those of random vectors are plain projections, which only their order is taken from.
    """

    scores: ndarray
    """float64 `[n_splits, n_methods, n]`: each row by a fit without its fold."""
    nested: tuple[ndarray, ...]
    """For each split, float64 `[n_methods, n_folds, n]`: [m, k, i] is row i by a fit without its own
    fold and without fold k, NaN for rows of fold k. It serves to choose a method and layer for fold
    k unseen. NaN throughout where two folds cannot be left out together."""
    random: ndarray
    """float64 `[n_splits, vectors, n]`: each row by random vectors, signed without its fold."""
    shuffled: ndarray
    """float64 `[n_methods, shuffles]`: AUROC with shuffled labels in the first split; no shuffles
    where all that were tried leave a side without rows to fit."""


class _Fold:
    """Directions come from the rows outside `test` (bool `[n]`), scores are those of the rows in it."""

    def __init__(self, at: LayerRows, cells: ndarray, test: ndarray) -> None:
        self.test, self._train = test, ~test
        self._rows = at.without(test)
        self._cells = cells[~test]
        self._cross = at.gram[:, ~test]

    def scores(self, method: str, labels: ndarray) -> ndarray:
        """Return those of the test rows by a fit to `labels`, bool `[n]`.

        The fit's own sign stands: a vector that points the wrong way shows as one below 0.5.
        """
        direction = METHODS[method].fit(self._rows, labels[self._train], self._cells)
        projected = self._cross @ direction.weights
        pos, neg = projected[self._train & labels], projected[self._train & ~labels]
        spread = np.sqrt((pos.var() + neg.var()) / 2)
        if spread == 0:
            spread = 1.0
        return np.asarray((projected[self.test] - (pos.mean() + neg.mean()) / 2) / spread)


def held_out(
    at: LayerRows,
    activations: Activations,
    methods: Sequence[str],
    splits: Sequence[Split],
    seed: int,
) -> HeldOut:
    """Fit every method without each fold in turn, and without each two, and score what was left."""
    labels, cells = activations.labels, cells_of(activations)
    shuffles = shuffles_of(splits, labels, seed)
    shuffled = np.empty((len(methods), len(shuffles)))
    found: list[ndarray] = []
    for split in splits:
        labellings = [labels]
        if split is splits[0]:
            labellings += shuffles
        scores = _refits(at, cells, methods, split, labellings)
        found.append(scores[0])
        for number, relabelled in enumerate(labellings[1:]):
            for method, row in enumerate(scores[1 + number]):
                auroc = fold_auroc(row, relabelled, split.folds, once(len(row)))
                shuffled[method, number] = auroc[0]
    return HeldOut(
        scores=np.array(found),
        nested=tuple(_nested(at, cells, methods, split) for split in splits),
        random=np.array([_random_scores(at, split) for split in splits]),
        shuffled=shuffled,
    )


def shuffles_of(splits: Sequence[Split], labels: ndarray, seed: int) -> list[ndarray]:
    """Return shuffled labels that leave every fold of the first split rows of both sides to fit.

    They are fewer than SHUFFLES where such are rare, and the same at every layer.
    """
    if not splits:
        return []
    rng = np.random.default_rng([seed, 1])
    tries = (rng.permutation(labels) for _ in range(SHUFFLES * TRIES))
    usable = (each for each in tries if not why_not(each, splits[0].folds))
    return list(islice(usable, SHUFFLES))


def random_directions(dim: int, layer: int, count: int) -> ndarray:
    """Return isotropic unit vectors, float64 `[count, dim]`, fixed by the layer.

    A larger count starts with the smaller.
    """
    directions = np.random.default_rng([SEED, layer + 1]).standard_normal((count, dim))
    return np.asarray(directions / np.linalg.norm(directions, axis=1, keepdims=True))


def _refits(
    at: LayerRows,
    cells: ndarray,
    methods: Sequence[str],
    split: Split,
    labellings: Sequence[ndarray],
) -> ndarray:
    """Return each row's score by a fit without its fold, `[n_labellings, n_methods, n]`."""
    scores = np.empty((len(labellings), len(methods), len(cells)))
    for test in split.tests():
        fold = _Fold(at, cells, test)
        for index, labels in enumerate(labellings):
            for number, method in enumerate(methods):
                scores[index, number, test] = fold.scores(method, labels)
    return scores


def _nested(at: LayerRows, cells: ndarray, methods: Sequence[str], split: Split) -> ndarray:
    """Return `HeldOut.nested` of one split."""
    tests = split.tests()
    scores = np.full((len(methods), len(tests), len(cells)), np.nan)
    if not split.nestable:
        return scores
    for (i, one), (j, other) in combinations(enumerate(tests), 2):
        fold = _Fold(at, cells, one | other)
        both = np.empty(len(cells))
        for number, method in enumerate(methods):
            both[fold.test] = fold.scores(method, split.labels)
            scores[number, j, one] = both[one]
            scores[number, i, other] = both[other]
    return scores


def _random_scores(at: LayerRows, split: Split) -> ndarray:
    """Return projections on random vectors, `[vectors, n]`, signed by the rows of other folds."""
    directions = random_directions(at.centred.shape[1], at.layer, RANDOM_VECTORS)
    projected = at.centred @ directions.T
    scores = np.empty(projected.T.shape)
    for test in split.tests():
        gaps = contrast(split.labels[~test]) @ projected[~test]
        scores[:, test] = np.where(gaps >= 0, projected[test], -projected[test]).T
    return scores
