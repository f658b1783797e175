"""Scores of rows by directions that were fitted without them.

What the folds of a layer scored is kept (`vectors/.folds/layer<i>.npz`): a longer list of methods
or layers, or a run that was interrupted, fits only what is not there.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from ..files import write_atomic
from ..outputs import Activations
from ..storage import TraitFolder, installed_versions, pool_suffix
from . import rows
from .fit import Vectors
from .refits import Refit, fit_few, fit_tall
from .rows import LayerRows, OnLayer, cells_of, contrast, map_layers, unheard
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
    activations: Activations,
    vectors: Vectors,
    splits: Sequence[Split],
    seed: int,
    on_layer: OnLayer = unheard,
    kept: KeptFolds | None = None,
) -> list[HeldOut]:
    """Fit each vector again without each fold of each split, and without each two.

    Labels are shuffled for the first split only. What `kept` holds is not fitted again.
    """
    if not splits:
        return []
    refit = _Refits(activations, vectors, splits, seed, kept or KeptFolds())
    by_layer = map_layers(refit, activations, vectors.layers, rows.FOLDS_TALL, on_layer)
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


class _Refits:
    """What the folds of some layers score, fitted where that is not kept."""

    def __init__(
        self,
        activations: Activations,
        vectors: Vectors,
        splits: Sequence[Split],
        seed: int,
        kept: KeptFolds,
    ) -> None:
        self._vectors, self._splits, self._kept = vectors, splits, kept
        self._cells = cells_of(activations)
        self._shuffles = [
            shuffles_of(each, seed) if not at else [] for at, each in enumerate(splits)
        ]
        pairs = zip(splits, self._shuffles, strict=True)
        self._wanted = [_wanted(split, labels) for split, labels in pairs]

    def __call__(self, block: Sequence[LayerRows]) -> list[list[Sequence[ndarray]]]:
        """Return scores, random scores and shuffled AUROC by layer and split."""
        methods = self._vectors.methods
        known = [self._kept.read(at.layer) for at in block]
        missing = [name for name in methods if any(name not in each for each in known)]
        if missing:
            found = self._fit(block, missing)
            for name in missing:
                for each in known:
                    each[name] = next(found)
            for at, each in zip(block, known, strict=True):
                self._kept.write(at.layer, each)
        return [
            [
                (
                    np.stack([each[name][number].scores for name in methods]),
                    _random_scores(at, split),
                    np.stack([each[name][number].shuffled for name in methods]),
                )
                for number, split in enumerate(self._splits)
            ]
            for at, each in zip(block, known, strict=True)
        ]

    def _fit(self, block: Sequence[LayerRows], methods: Sequence[str]) -> Iterator[list[Scored]]:
        """Yield what each split's folds score, by method and then by layer."""
        fit = fit_tall if block[0].tall else fit_few
        scored = fit(block, self._vectors, methods, self._cells, self._splits, self._wanted)
        parts = zip(self._splits, self._shuffles, scored, strict=True)
        found = [_arranged(*part) for part in parts]
        for i in range(len(methods)):
            for j in range(len(block)):
                yield [Scored(scores[i, j], shuffled[i, j]) for scores, shuffled in found]


def shuffles_of(split: Split, seed: int) -> list[ndarray]:
    """Return shuffled labels that leave every fold rows of both sides to fit.

    They are fewer than SHUFFLES where such are rare.
    """
    rng = np.random.default_rng([seed, 1])
    tries = (rng.permutation(split.labels) for _ in range(SHUFFLES * TRIES))
    usable = (labels for labels in tries if not why_not(labels, split.folds))
    return list(islice(usable, SHUFFLES))


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
    projected = (at.centred @ random_directions(dim, at.layer, RANDOM_VECTORS).T)[at.first]
    signs = np.empty(projected.shape)
    for test in split.tests():
        gaps = contrast(split.labels[~test]) @ projected[~test]
        signs[test] = np.where(gaps >= 0, 1, -1)
    return np.asarray((signs * projected).T)


SCHEMA_VERSION = 4
KEPT_FROM = 500
"""Rows from which it is kept: folds of fewer are fitted again in a second or two a layer."""


class Scored(NamedTuple):
    """Folds of one method at one layer, by one split; see `held_out.HeldOut`."""

    scores: ndarray
    """float64 `[n_folds, n]`."""
    shuffled: ndarray
    """float64 `[shuffles]`."""


Layer = Mapping[str, Sequence[Scored]]
"""By method, of each split."""


class KeptFolds:
    """The files of one trait's folds; without a folder nothing is kept."""

    def __init__(self, folder: Path | None = None, key: str = "") -> None:
        """`key` is of all that decides what folds score: what was kept under another is not
        read."""
        self._folder, self._key = folder, key

    @classmethod
    def of(cls, folder: TraitFolder, activations: Activations, seed: int) -> KeptFolds:
        """Return those of a trait's folder, where it has so many rows that they are kept."""
        if len(activations.labels) < KEPT_FROM:
            return cls()
        decides = {
            "schema_version": SCHEMA_VERSION,
            "versions": installed_versions(("traitmill", "numpy", "scipy")),
            "activations_sha256": activations.sha256,
            "metadata_sha256": activations.metadata.sha256,
            "seed": seed,
        }
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
        where = folder.vectors / f".folds{pool_suffix(activations.pool)}"
        return cls(where, digest.hexdigest())

    def read(self, layer: int) -> dict[str, Sequence[Scored]]:
        """Return what a layer's folds scored, by method; nothing where it was not kept."""
        if self._folder is None:
            return {}
        try:
            with np.load(self._path(layer), allow_pickle=False) as file:
                if str(file["key"]) != self._key:
                    return {}
                splits = range(int(file["splits"]))
                return {
                    str(method): [
                        Scored(file[f"{method}.{at}.scores"], file[f"{method}.{at}.shuffled"])
                        for at in splits
                    ]
                    for method in file["methods"]
                }
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return {}  # not there, or damaged: it is fitted again

    def write(self, layer: int, scored: Layer) -> None:
        """Keep what a layer's folds scored."""
        if self._folder is None:
            return
        arrays: dict[str, ndarray] = {
            "key": np.array(self._key),
            "methods": np.array(list(scored)),
            "splits": np.array(max(map(len, scored.values()))),
        }
        for method, by_split in scored.items():
            for at, found in enumerate(by_split):
                arrays[f"{method}.{at}.scores"] = found.scores
                arrays[f"{method}.{at}.shuffled"] = found.shuffled
        data = io.BytesIO()
        np.savez(data, allow_pickle=False, **arrays)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path(layer), data.getvalue())

    def _path(self, layer: int) -> Path:
        assert self._folder is not None  # noqa: S101 - asked where there is one
        return self._folder / f"layer{layer}.npz"
