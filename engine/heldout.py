"""Scores of rows at one layer by directions that were fitted without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from .activations import Activations
from .directions import METHODS, Rows, random_directions
from .resampling import Split, auroc, once
from .vectors import LayerRows, cells_of

SHUFFLES = 5
RANDOM_VECTORS = 20


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Scores are projections in training standard deviations from the midpoint of the training sides' means."""

    scores: np.ndarray
    """float64 `[n_splits, n_methods, n]`: each row by a fit without its fold."""
    nested: np.ndarray
    """float64 `[n_methods, n_folds, n]`, for the first split: [m, k, i] is row i by a fit without its own fold and
    without fold k, NaN for rows of fold k. It serves to choose a method and layer for fold k unseen."""
    shuffled: np.ndarray
    """float64 `[n_methods, shuffles]`: AUROC with shuffled labels."""
    random: np.ndarray
    """float64 `[vectors]`: AUROC of random vectors."""


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
        fit = METHODS[method].fit
        if fit is None:
            return self.random_scores(0, labels)
        train = ~self.test
        projected = self.cross @ fit(self.rows, labels[train], self.cells[train]).weights
        return _standardised(projected, labels, self.test)

    def random_scores(self, index: int, labels: np.ndarray) -> np.ndarray:
        return _standardised(self.projections[:, index], labels, self.test)


def _standardised(projected: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Scores of the test rows from projections of all rows `[n]`; sign, midpoint and spread are the training rows'."""
    pos, neg = projected[~test & labels], projected[~test & ~labels]
    spread = np.sqrt((pos.var() + neg.var()) / 2)
    sign = 1.0 if pos.mean() >= neg.mean() else -1.0
    scores = sign * (projected[test] - (pos.mean() + neg.mean()) / 2) / (spread if spread > 0 else 1.0)
    return np.asarray(scores)


def held_out(
    layer: int, at: LayerRows, activations: Activations, methods: Sequence[str], splits: Sequence[Split], seed: int
) -> HeldOut:
    """Fit every method without each fold in turn and score what was left out; the first split has the baselines too."""
    labels, cells = activations.labels, cells_of(activations)
    n, dim = at.centred.shape
    projections = at.centred @ random_directions(dim, layer, RANDOM_VECTORS).T
    rng = np.random.default_rng([seed, 1])  # the same shuffles at every layer
    shuffles = [rng.permutation(labels) for _ in range(SHUFFLES)]

    def fold(test: np.ndarray) -> _Fold:
        train = ~test
        return _Fold(test, Rows(at.gram[np.ix_(train, train)], dim), at.gram[:, train], cells, projections)

    scores = np.empty((len(splits), len(methods), n))
    shuffled = np.empty((len(methods), SHUFFLES, n))
    random = np.empty((RANDOM_VECTORS, n))
    for index, split in enumerate(splits):
        for test in split.tests():
            here = fold(test)
            for number, method in enumerate(methods):
                scores[index, number, test] = here.scores(method, labels)
            if index == 0:
                for number, method in enumerate(methods):
                    for shuffle, relabelled in enumerate(shuffles):
                        shuffled[number, shuffle, test] = here.scores(method, relabelled)
                for number in range(RANDOM_VECTORS):
                    random[number, test] = here.random_scores(number, labels)
    if not splits:
        return HeldOut(scores, np.empty((len(methods), 0, n)), np.empty((0, SHUFFLES)), np.empty(0))
    tests = splits[0].tests()
    nested = np.full((len(methods), len(tests), n), np.nan)
    if splits[0].nestable:
        for (i, one), (j, other) in combinations(enumerate(tests), 2):
            here = fold(one | other)
            for number, method in enumerate(methods):
                both = np.full(n, np.nan)
                both[here.test] = here.scores(method, labels)
                nested[number, j, one], nested[number, i, other] = both[one], both[other]
    folds = splits[0].folds
    return HeldOut(
        scores,
        nested,
        np.array(
            [[auroc(row, new, folds, once(n))[0] for row, new in zip(each, shuffles, strict=True)] for each in shuffled]
        ),
        np.array([auroc(row, labels, folds, once(n))[0] for row in random]),
    )
