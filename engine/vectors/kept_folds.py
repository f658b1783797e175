"""What the folds of a layer scored before: `vectors/.folds/layer<i>.npz`.

With it a longer list of methods or layers, or a run that was interrupted, fits only what is not
there.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from ..files import write_atomic
from ..outputs import Activations
from ..storage import TraitFolder, installed_versions, pool_suffix

SCHEMA_VERSION = 1
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
