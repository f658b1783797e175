"""How a trait's recommended vector does on the other traits of its experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray

from ..errors import TraitmillError, UsageError
from ..outputs import Activations, Metadata, load_activations
from ..settings import DEFAULT_POOL
from ..statistics import Estimate, draw_groups, effective_groups, estimates, fold_auroc, once
from ..storage import TraitFolder
from .evaluation import read_evaluation
from .recommendation import Recommendation
from .rows import first_equal
from .table_file import read_table, write_table
from .vector_files import load_vector

if TYPE_CHECKING:
    import polars as pl

COLUMNS = ("trait", "target", "pool", "method", "layer", "value", "low", "high", "note")
Figure = Sequence[float | None]
NOTHING: Figure = (None, None, None)
"""A value with its interval, where there is none."""


def evaluated_traits(experiment: Path, pool: str = DEFAULT_POOL) -> list[TraitFolder]:
    """Return the folders of an experiment that hold an evaluation, by name."""
    name = _table_path(experiment, pool).name
    return [TraitFolder(path.parent) for path in sorted(experiment.glob(f"*/{name}"))]


def _table_path(experiment: Path, pool: str) -> Path:
    """Return where the transfer table is: as a trait's evaluation, one folder up."""
    return TraitFolder(experiment).evaluation(pool)


def update_transfer(
    experiment: Path, notice: Callable[[str], None], pool: str = DEFAULT_POOL
) -> Path | None:
    """Write `evaluation.parquet` of the experiment anew, from every trait that can be read.

    It holds the AUROC of every trait's recommended vector on every trait's kept rows, one pair a
    row, columns trait (whose vector), target (whose rows), pool, method, layer, value, low, high,
    note. A vector meets its own trait only on held-out rows: the diagonal is the evaluation's
    `selected_auroc`. Elsewhere the vector is the one fitted to all rows of its own trait; intervals
    are bootstrap ones over the target's questions. Below 0.5 the target's pos side is against the
    vector. A pair that cannot be measured has a null value and a note.

    A trait whose files do not fit each other is left out with a notice: it is not what the user is
    working on. With fewer than two traits there is nothing to transfer to, and no file.
    """
    import polars as pl
    from threadpoolctl import threadpool_limits

    def left_out(folder: TraitFolder, error: TraitmillError) -> None:
        notice(f"{folder.name} is left out of the transfer table: {error.message}")

    sources: dict[TraitFolder, _Source] = {}
    for folder in evaluated_traits(experiment, pool):
        try:
            metadata = Metadata.read(folder)
            best = read_evaluation(folder, metadata, pool).recommendation
        except TraitmillError as error:
            left_out(folder, error)
        else:
            sources[folder] = _Source(metadata, best, _vector(folder, best, metadata, pool))
    by_target: dict[TraitFolder, dict[TraitFolder, tuple[Figure, str]]] = {}
    with threadpool_limits(1):  # products so small that threads would wait for each other
        for folder in sources:
            try:  # one tensor at a time: those of hundreds of traits are not mapped at once
                by_target[folder] = _Target(load_activations(folder, pool)).by(folder, sources)
            except TraitmillError as error:
                left_out(folder, error)
    path = _table_path(experiment, pool)
    if len(by_target) < 2:
        path.unlink(missing_ok=True)
        return None
    rows = []
    for source in by_target:
        best = sources[source].best
        chosen = (best.method, best.layer) if best else (None, None)
        for target in by_target:
            figure, note = by_target[target][source]
            rows.append((source.name, target.name, pool, *chosen, *figure, note))
    schema = dict.fromkeys(COLUMNS, pl.String) | {"layer": pl.Int32}
    schema |= dict.fromkeys(("value", "low", "high"), pl.Float64)
    table = pl.DataFrame(rows, schema, orient="row")
    made_from = {each.name: sources[each].metadata.tensor_sha256(pool) for each in by_target}
    write_table(path, table, {"activations_sha256": made_from})
    return path


def _vector(
    source: TraitFolder, best: Recommendation | None, metadata: Metadata, pool: str
) -> ndarray | None:
    """Return a trait's recommended vector, float64; None where none of its activations stands."""
    if best is None:
        return None
    try:
        vector, facts = load_vector(source, best.method, best.layer, pool)
    except UsageError:
        return None
    if facts.get("activations_sha256") != metadata.tensor_sha256(pool):
        return None
    return vector.astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """A trait whose recommended vector is measured on the rows of others."""

    metadata: Metadata
    best: Recommendation | None
    vector: ndarray | None


class _Target:
    """A trait whose rows are measured along the vectors of others."""

    def __init__(self, activations: Activations) -> None:
        self._activations = activations
        groups = np.unique(activations.questions, return_inverse=True)[1]
        rng = np.random.default_rng([0, int(groups.max()) + 1])
        self._draws, self._ids = draw_groups(groups, rng), np.array(activations.metadata.sample_ids)

    def by(
        self, own: TraitFolder, sources: Mapping[TraitFolder, _Source]
    ) -> dict[TraitFolder, tuple[Figure, str]]:
        """Return what the vector of each trait reaches here, or nothing and the reason.

        `own` is the trait of these rows.
        """
        found: dict[TraitFolder, tuple[Figure, str]] = {}
        along: dict[int, dict[TraitFolder, ndarray]] = {}
        for name, source in sources.items():
            best, lack = source.best, self._lack(source, name == own)
            if best is not None and name == own:
                found[name] = (best.auroc, best.low, best.high), lack
            elif lack or best is None or source.vector is None:
                found[name] = NOTHING, lack
            elif (seen := np.isin(self._ids, source.metadata.sample_ids)).any():
                found[name] = self._unseen(source.vector, best.layer, ~seen)
            else:
                along.setdefault(best.layer, {})[name] = source.vector
        # By layer, since the rows are read once a layer.
        for layer, vectors in along.items():
            scores = self._along(np.stack(list(vectors.values())), layer)
            for name, figure in zip(vectors, self._estimates(scores), strict=True):
                found[name] = figure, ""
        return found

    def _lack(self, source: _Source, own: bool) -> str:
        """Return why a figure is missing; empty where one can be had."""
        here, there, best = self._activations.metadata, source.metadata, source.best
        if best is None:
            return "no vector of the trait is recommended"
        if own:
            uncorrected = "too few rows to correct the figure for choosing the best"
            return uncorrected if best.auroc is None else ""
        if (here.made_by, here.hidden_dim) != (there.made_by, there.hidden_dim):
            return "the two traits are of different models"
        if best.layer not in self._activations.layers:
            return "the target's activations lack the vector's layer"
        if source.vector is None:
            return "its vector is missing or of other activations; fit it again"
        return ""

    def _unseen(self, vector: ndarray, layer: int, rows: ndarray) -> tuple[Figure, str]:
        """Return what a vector reaches on the rows, bool `[n]`, that it was not fitted to."""
        labels = self._activations.labels[rows]
        if min(labels.sum(), (~labels).sum()) < 2:
            return NOTHING, "the vector was fitted to these rows: the traits share them"
        return self._estimates(self._along(vector[None], layer), rows)[0], ""

    def _along(self, vectors: ndarray, layer: int) -> ndarray:
        """Return the scores of all rows along vectors `[m, hidden_dim]`: `[m, n]`."""
        rows = self._activations.rows_at(layer)
        return np.asarray((vectors @ rows.T)[:, first_equal(rows)])

    def _estimates(self, scores: ndarray, rows: ndarray | None = None) -> list[Estimate]:
        """Return the AUROC of the rows, all compared with all, by scores `[m, n]`; of some, bool
        `[n]`, where they are given."""
        rows = np.ones(scores.shape[1], bool) if rows is None else rows
        scores, labels = scores[:, rows], self._activations.labels[rows]
        draws = self._draws._replace(groups=self._draws.groups[rows])
        together = np.zeros(len(labels), int)
        values = fold_auroc(scores, labels, together, once(len(labels)))[:, 0]
        drawn = fold_auroc(scores, labels, together, draws)
        return estimates(values, drawn, effective_groups(labels, draws.groups))


def read_transfer(
    experiment: Path, notice: Callable[[str], None], pool: str = DEFAULT_POOL
) -> pl.DataFrame | None:
    """Return the experiment's transfer table, None where there is none.

    Pairs of a trait whose activations are others by now are left out with a notice. Raise
    UsageError for a file that cannot be read.
    """
    import polars as pl

    path = _table_path(experiment, pool)
    if not path.is_file():
        return None
    traits = evaluated_traits(experiment, pool) or [TraitFolder(experiment / "all")]
    step = traits[0].step("vectors", pool=pool)
    table, facts = read_table(path, COLUMNS, step)
    made_from = facts["activations_sha256"]
    stale = [name for name in made_from if _digest(experiment / name, pool) != made_from[name]]
    if stale:
        notice(
            f"the transfer table is of earlier activations of {', '.join(stale)}, which are left "
            "out; fit the traits' vectors again to bring it up to date"
        )
    for column in ("trait", "target"):
        table = table.filter(~pl.col(column).is_in(stale))
    return table if len(table) else None


def _digest(folder: Path, pool: str) -> str | None:
    """Return that of the activations a trait holds now; None where none can be read."""
    try:
        return Metadata.read(TraitFolder(folder)).tensor_sha256(pool)
    except TraitmillError:
        return None
