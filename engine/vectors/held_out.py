"""Scores of rows by directions that were fitted without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from ..outputs import Activations
from ..statistics import fold_auroc, once
from .fit import Vectors
from .logistic import solver
from .methods import METHODS
from .rows import (
    LayerRows,
    OnLayer,
    Sides,
    cells_of,
    contrast,
    independent_components,
    map_layers,
    unheard,
)
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
    cells = cells_of(activations)
    shuffles = {split.name: shuffles_of(split, seed) for split in splits[:1]}

    def refit(at: LayerRows) -> list[list[ndarray]]:
        fit = _tall(at, vectors) if at.tall else _small
        found = []
        for split in splits:
            wanted = shuffles.get(split.name, [])
            found.append(_refit(at, cells, vectors.methods, split, wanted, fit))
        return found

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
    return probe, solver(at.design.hessian_at(probe))


class Refit(NamedTuple):
    """A fit to the rows outside some folds."""

    without: tuple[int, ...]
    labels: ndarray
    """bool `[n]`."""


FitAll = Callable[[LayerRows, ndarray, Sequence[str], Split, Sequence[Refit]], list[ndarray]]
"""Returns the scores of all rows by each refit, `[n_methods, n]` each."""


def _refit(
    at: LayerRows,
    cells: ndarray,
    methods: Sequence[str],
    split: Split,
    shuffles: Sequence[ndarray],
    fit: FitAll,
) -> list[ndarray]:
    """Return the three arrays of `HeldOut` at one layer."""
    tests, n = split.tests(), len(cells)
    folds = range(len(tests))
    real: list[tuple[int, ...]] = [(fold,) for fold in folds]
    if split.nestable:
        real += list(combinations(folds, 2))
    wanted = [Refit(without, split.labels) for without in real]
    wanted += [Refit((fold,), labels) for labels in shuffles for fold in folds]
    found = fit(at, cells, methods, split, wanted)
    scores = np.full((len(methods), len(tests), n), np.nan)
    for without, mine in zip(real, found, strict=False):
        one, other = without[0], without[-1]
        scores[:, other, tests[one]] = mine[:, tests[one]]
        scores[:, one, tests[other]] = mine[:, tests[other]]
    shuffled = np.empty((len(methods), len(shuffles)))
    for index, labels in enumerate(shuffles):
        by_fold = found[len(real) + index * len(tests) :][: len(tests)]
        for number in range(len(methods)):
            row = np.choose(split.folds, [each[number] for each in by_fold])
            shuffled[number, index] = fold_auroc(row, labels, split.folds, once(n))[0]
    return [scores, _random_scores(at, split), shuffled]


def _small(
    at: LayerRows, cells: ndarray, methods: Sequence[str], split: Split, wanted: Sequence[Refit]
) -> list[ndarray]:
    """Return the scores of all rows by each refit, `[n_methods, n]` each."""
    found: dict[int, ndarray] = {}
    sets = list(dict.fromkeys(each.without for each in wanted))
    folds = [_Fold(at, cells, np.isin(split.folds, without)) for without in sets]
    if "ica" in methods:
        # All at once: at this size a step of one costs more in calls than in arithmetic.
        sources = independent_components([fold.rows for fold in folds])
        for fold, found_of in zip(folds, sources, strict=True):
            fold.rows.sources = found_of
    for without, fold in zip(sets, folds, strict=True):
        # Shuffled labels share a fold's matrix and what is found without labels.
        for index, each in enumerate(wanted):
            if each.without == without:
                scores = [fold.scores(name, each.labels) for name in methods]
                found[index] = np.stack(scores)
    return [found[index] for index in range(len(wanted))]


def _tall(at: LayerRows, vectors: Vectors) -> FitAll:
    """Return what gives the same where rows are many."""
    rows, near = TallRows(at), _near(at, vectors)

    def fit(
        _at: LayerRows,
        cells: ndarray,
        methods: Sequence[str],
        split: Split,
        wanted: Sequence[Refit],
    ) -> list[ndarray]:
        sets = list(dict.fromkeys(each.without for each in wanted))
        of = np.array([sets.index(each.without) for each in wanted])
        labels = np.stack([each.labels for each in wanted], axis=1)
        sides = TallSides(Scatters(rows, split.folds, sets), of, labels, cells)
        search = Search(sides, FOLD_PRECISION, near)
        found = []
        for name in methods:
            projected = at.centred @ TALL_METHODS[name](search).vectors
            found.append(_standardised(projected, sides.kept, labels))
        return list(np.stack(found).transpose(2, 0, 1))

    return fit


class _Fold:
    """Fits to the rows outside `test`, bool `[n]`."""

    def __init__(self, at: LayerRows, cells: ndarray, test: ndarray) -> None:
        self._train = ~test
        self.rows, self._cells = at.among(self._train), cells[self._train]
        self._at = at

    def scores(self, method: str, labels: ndarray) -> ndarray:
        """Return those of all rows, `[n]`, by a fit to `labels`, bool `[n]`.

        The fit's own sign stands: a vector that points the wrong way shows as one below 0.5.
        """
        sides = Sides(self.rows, labels[self._train], self._cells)
        weights = np.zeros(len(labels))
        weights[self._train] = METHODS[method].fit(sides).weights
        projected = self._at.gram @ weights
        return _standardised(projected, self._train, labels)


def _standardised(projected: ndarray, kept: ndarray, labels: ndarray) -> ndarray:
    """Return projections, `[n]` or `[n, k]`, as `HeldOut.scores` has them; `kept` rows count."""
    sides = [{"where": side, "axis": 0} for side in (kept & labels, kept & ~labels)]
    middle = sum(projected.mean(**side) for side in sides) / 2
    spread = np.sqrt(sum(projected.var(**side) for side in sides) / 2)
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
