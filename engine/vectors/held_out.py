"""Scores of rows at one layer by directions that were fitted without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np

from ..outputs.load import Activations
from .fit import LayerRows, cells_of
from .methods import METHODS, Rows, contrast, random_directions
from .splits import Split, auroc, once, why_not

SHUFFLES = 5
RANDOM_VECTORS = 20
TRIES = 100
"""Shuffles drawn for each one wanted, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Scores are projections in training standard deviations from the midpoint of the training
    sides' means."""

    scores: np.ndarray
    """float64 `[n_splits, n_methods, n]`: each row by a fit without its fold."""
    nested: tuple[np.ndarray, ...]
    """For each split, float64 `[n_methods, n_folds, n]`: [m, k, i] is row i by a fit without its
    own fold and without fold k, NaN for rows of fold k. It serves to choose a method and layer for
    fold k unseen. NaN throughout where two folds cannot be left out together."""
    random: np.ndarray
    """float64 `[n_splits, vectors, n]`: each row by random vectors, signed without its fold."""
    shuffled: np.ndarray
    """float64 `[n_methods, shuffles]`: AUROC with shuffled labels in the first split; no shuffles
    where all that were tried leave a side without rows to fit."""


@dataclass(frozen=True, slots=True, eq=False)
class _Fold:
    """Directions come from the rows outside `test`, scores are those of the rows in it."""

    test: np.ndarray
    rows: Rows
    cross: np.ndarray
    """Gram matrix of all rows against the training rows."""
    cells: np.ndarray
    projections: np.ndarray
    """All rows on the random vectors, `[n, vectors]`."""

    def scores(self, method: str, labels: np.ndarray) -> np.ndarray:
        """Of the test rows. The fit's own sign stands: a vector that points the wrong way shows as
        one below 0.5."""
        fit = METHODS[method].fit
        if fit is None:
            return self.random_scores(0, labels)
        train = ~self.test
        return self._standardised(
            self.cross @ fit(self.rows, labels[train], self.cells[train]).weights, labels
        )

    def random_scores(self, index: int, labels: np.ndarray) -> np.ndarray:
        projected = self.projections[:, index]
        train = ~self.test
        return self._standardised(
            projected if contrast(labels[train]) @ projected[train] >= 0 else -projected, labels
        )

    def _standardised(self, projected: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Scores of the test rows from projections of all rows `[n]`, by the training rows'
        midpoint and spread."""
        pos, neg = projected[~self.test & labels], projected[~self.test & ~labels]
        spread = np.sqrt((pos.var() + neg.var()) / 2)
        return np.asarray(
            (projected[self.test] - (pos.mean() + neg.mean()) / 2) / (spread if spread > 0 else 1.0)
        )


def shuffles_of(labels: np.ndarray, folds: np.ndarray, seed: int) -> list[np.ndarray]:
    """Shuffled labels that leave every fold rows of both sides to fit; fewer than asked for, where
    they are rare."""
    rng = np.random.default_rng([seed, 1])  # the same shuffles at every layer
    tries = (rng.permutation(labels) for _ in range(SHUFFLES * TRIES))
    return list(islice((each for each in tries if not why_not(each, folds)), SHUFFLES))


def held_out(
    layer: int,
    at: LayerRows,
    activations: Activations,
    methods: Sequence[str],
    splits: Sequence[Split],
    seed: int,
) -> HeldOut:
    """Fit every method without each fold in turn, and without each two, and score what was left
    out."""
    labels, cells = activations.labels, cells_of(activations)
    n, dim = at.centred.shape
    projections = at.centred @ random_directions(dim, layer, RANDOM_VECTORS).T
    shuffles = shuffles_of(labels, splits[0].folds, seed) if splits else []

    def fold(test: np.ndarray) -> _Fold:
        train = ~test
        return _Fold(
            test, Rows(at.gram[np.ix_(train, train)], dim), at.gram[:, train], cells, projections
        )

    scores = np.empty((len(splits), len(methods), n))
    random = np.empty((len(splits), RANDOM_VECTORS, n))
    shuffled = np.empty((len(methods), len(shuffles), n))
    for index, split in enumerate(splits):
        for test in split.tests():
            here = fold(test)
            for number in range(RANDOM_VECTORS):
                random[index, number, test] = here.random_scores(number, labels)
            for number, method in enumerate(methods):
                scores[index, number, test] = here.scores(method, labels)
                for shuffle, relabelled in enumerate(shuffles if index == 0 else []):
                    shuffled[number, shuffle, test] = here.scores(method, relabelled)

    def nested(split: Split) -> np.ndarray:
        tests = split.tests()
        inner = np.full((len(methods), len(tests), n), np.nan)
        for (i, one), (j, other) in combinations(enumerate(tests), 2) if split.nestable else ():
            here = fold(one | other)
            for number, method in enumerate(methods):
                both = np.full(n, np.nan)
                both[here.test] = here.scores(method, labels)
                inner[number, j, one], inner[number, i, other] = both[one], both[other]
        return inner

    figures = [
        [
            auroc(row, new, splits[0].folds, once(n))[0]
            for row, new in zip(each, shuffles, strict=True)
        ]
        for each in shuffled
    ]
    return HeldOut(
        scores,
        tuple(map(nested, splits)),
        random,
        np.array(figures).reshape(len(methods), len(shuffles)),
    )
