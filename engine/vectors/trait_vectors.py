"""A trait's vectors as they stand in its folder: each is read when it is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from ..errors import UsageError
from ..outputs import Metadata
from ..settings import check_pool, plain_arguments
from ..storage import TraitFolder
from .evaluation import read_evaluation
from .fit import absent
from .recommendation import Recommendation
from .remembered import fitted_pool
from .vector_files import Facts, load_vector, stored_facts


class StaleWarning(UserWarning):
    """Vectors are of other responses than their folder holds now."""


@dataclass(frozen=True, slots=True, eq=False)
class TraitVectors:
    """A trait's vectors by method and layer, with what is known of each.

    Layer i is the residual stream leaving decoder block i, `hidden_states[i + 1]` in transformers;
    -1, where it was captured, is the embedding output.
    """

    folder: TraitFolder
    pool: str
    available: Mapping[str, tuple[int, ...]]
    """The layers that stand there, ascending, by method."""
    model: str
    """Whose activations the vectors were fitted to."""
    activations_sha256: str
    """Of those activations' file."""
    recommended: tuple[str, int] | None
    """Method and layer that the evaluation of these vectors chose; None where there is none."""
    doubt: str
    """Why nothing is claimed of that choice, in a few words; empty where something is, or where
    there is none."""
    stale: str
    """Why the vectors are not those of the folder's responses now; empty where they are."""
    last_captured: int
    """The last layer of the activations that stand there; -1 where none do."""

    @property
    def trait(self) -> str:
        return self.folder.name

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.available)

    @property
    def layers(self) -> tuple[int, ...]:
        """Every layer that some method has, ascending."""
        return tuple(sorted({layer for layers in self.available.values() for layer in layers}))

    def __repr__(self) -> str:
        of = f"{len(self.methods)} methods x {len(self.layers)} layers of {self.model}"
        doubt = f", {self.doubt}" if self.doubt else ""
        stale = ", stale" if self.stale else ""
        return f"TraitVectors({self.trait}: {of}, {self.pool}{doubt}{stale})"

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Yield method and layer of every vector."""
        return ((method, layer) for method, layers in self.available.items() for layer in layers)

    @plain_arguments
    def vector(self, method: str, layer: int) -> ndarray:
        """Return float32 `[hidden_dim]`. Raise UsageError that says which there are."""
        return self._load(method, layer)[0]

    @plain_arguments
    def metadata(self, method: str, layer: int) -> Facts:
        """Return what is known of a vector: norm, bias, midpoint, spread, held_out and more.

        Raise UsageError as `vector` does.
        """
        return self._load(method, layer)[1]

    def scale(self, method: str, layer: int) -> tuple[float, float]:
        """Return midpoint and spread of the training projections.

        The midpoint is that of the two sides' means; the spread is the root mean square of their
        standard deviations. Raise UsageError where the vector's file does not say them.
        """
        facts = self.metadata(method, layer)
        with suppress(KeyError, TypeError, ValueError):
            return float(facts["midpoint"]), float(facts["spread"]) or 1.0
        raise UsageError(
            f"the {method} vector at layer {layer} of {self.folder.path} does not say its spread; "
            "fit it anew",
            self.folder.step("vectors", pool=self.pool),
        )

    def score(self, rows: ndarray, method: str, layer: int) -> ndarray:
        """Return `[n]`: projections of rows `[n, hidden_dim]` at that layer, in training spreads.

        0 is the midpoint of the two training sides, and pos lies above it: the units in which the
        evaluation has its held-out scores. Raise UsageError for rows of another shape, or that hold
        NaN.
        """
        vector = self.vector(method, layer).astype(np.float64)
        midpoint, spread = self.scale(method, layer)
        if hasattr(rows, "detach"):  # a tensor, which may want gradients or be bfloat16
            rows = rows.detach().double().cpu().numpy()
        try:
            values = np.asarray(rows, np.float64)
        except (TypeError, ValueError):
            values = np.full(1, np.nan)
        if values.ndim != 2 or values.shape[1] != len(vector) or not np.isfinite(values).all():
            raise UsageError(
                f"`rows` must be finite numbers [n, {len(vector)}] at one layer, as "
                f"activations.values[:, i] has them; these have the shape {np.shape(rows)}"
            )
        return np.asarray((values @ vector - midpoint) / spread)

    def _load(self, method: str, layer: int) -> tuple[ndarray, Facts]:
        if layer not in self.available.get(method, ()):
            raise UsageError(absent(self.trait, self.available, method, layer))
        return load_vector(self.folder, method, layer, self.pool)


@plain_arguments
def load_vectors(folder: Path | str | TraitFolder, pool: str | None = None) -> TraitVectors:
    """Return the vectors that stand in a trait's folder, `experiments/<experiment>/<trait>`.

    `pool` None is that of the folder's last fit. Nothing but metadata is read before a
    vector is asked for; a vector without it is none. Warn (StaleWarning) where the folder holds
    other activations by now than they were fitted to. Raise UsageError where there are none.
    """
    vectors = open_vectors(folder, pool)
    if vectors.stale:
        warnings.warn(vectors.stale, StaleWarning, stacklevel=2)
    return vectors


def open_vectors(folder: Path | str | TraitFolder, pool: str | None = None) -> TraitVectors:
    """Return the same without a warning: `stale` says it."""
    if not isinstance(folder, TraitFolder):
        folder = TraitFolder(Path(folder))
    if pool is not None:
        check_pool(pool)
    pool = pool or fitted_pool(folder)
    known = stored_facts(folder.vectors, pool)
    available: dict[str, tuple[int, ...]] = {}
    for method, layer in known:
        available[method] = (*available.get(method, ()), layer)
    if not known and not (folder.definition.is_file() or folder.vectors.is_dir()):
        raise UsageError(f"{folder.path} is no trait's folder; check the path")
    if not known:
        raise UsageError(
            f"{folder.path} holds no vectors of {pool}; fit them",
            folder.step("vectors", pool=pool),
        )
    facts = next(iter(known.values()))  # writing vectors leaves none of other activations
    digest = str(facts.get("activations_sha256", ""))
    current = _metadata(folder)
    best = _recommended(folder, pool, digest, current, available)
    return TraitVectors(
        folder=folder,
        pool=pool,
        available=available,
        model=str(facts.get("model", "an unknown model")),
        activations_sha256=digest,
        recommended=(best.method, best.layer) if best else None,
        doubt=best.lack if best else "",
        stale=_why_stale(folder, pool, digest, current),
        last_captured=max(current.layers) if current else -1,
    )


def _metadata(folder: TraitFolder) -> Metadata | None:
    """Return that of the folder's activations; None where it holds none that can be read."""
    try:
        return Metadata.read(folder)
    except UsageError:
        return None


def _why_stale(folder: TraitFolder, pool: str, digest: str, current: Metadata | None) -> str:
    if current is None and not any(folder.responses_csv(side).exists() for side in ("pos", "neg")):
        return ""  # vectors alone, without the run that they came from
    if current is not None and current.tensor_sha256(pool) == digest:
        return ""
    holds = "holds other ones now" if current else "holds none that can be read now"
    return (
        f"the vectors in {folder.vectors} were fitted to other activations: the folder {holds}; "
        f"fit them anew ({pool})"
    )


def _recommended(
    folder: TraitFolder,
    pool: str,
    digest: str,
    current: Metadata | None,
    available: Mapping[str, tuple[int, ...]],
) -> Recommendation | None:
    """Return what the evaluation that stands there chose, where it is of these vectors."""
    if current is None:
        return None
    try:
        evaluation = read_evaluation(folder, current, pool)
    except UsageError:
        return None
    best = evaluation.recommendation
    if best is None or evaluation.activations_sha256 != digest:
        return None
    if best.layer not in available.get(best.method, ()):
        return None
    return best
