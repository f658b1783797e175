"""How a trait's recommended vector does on the other traits of its experiment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import TraitmillError, UsageError
from ..outputs import Activations, Metadata, load_activations
from ..settings import DEFAULT_POOL
from ..storage import TraitFolder
from .evaluation import read_evaluation
from .fit import load_vector
from .recommendation import Recommendation
from .splits import BOOTSTRAPS, auroc, effective_groups, interval
from .table_file import read_table, write_table

if TYPE_CHECKING:
    import polars as pl

COLUMNS = ("trait", "target", "pool", "method", "layer", "value", "low", "high", "note")


def evaluated_traits(experiment: Path, pool: str = DEFAULT_POOL) -> list[TraitFolder]:
    """Return the folders of an experiment that hold an evaluation, by name."""
    name = TraitFolder(experiment).evaluation(pool).name
    return [TraitFolder(path.parent) for path in sorted(experiment.glob(f"*/{name}"))]


def transfer_path(experiment: Path, pool: str = DEFAULT_POOL) -> Path:
    """Return where an experiment's transfer table stands: as a trait's evaluation, one folder up."""
    return TraitFolder(experiment).evaluation(pool)


def evaluate_transfer(folders: Sequence[TraitFolder], pool: str = DEFAULT_POOL) -> pl.DataFrame:
    """AUROC of every trait's recommended vector on every trait's kept rows, one pair a row.

    Columns trait (whose vector), target (whose rows), pool, method, layer, value, low, high, note.
    A vector meets its own trait only on held-out rows: the diagonal is the evaluation's
    `selected_auroc`. Elsewhere the vector is the one fitted to all rows of its own trait; intervals
    are bootstrap ones over the target's questions. Below 0.5 the target's pos side lies against the
    vector. A pair that cannot be measured has a null value and a note.

    Raises the errors of `load_activations` and `read_evaluation`. A vector that is missing or of
    other activations is a note: the trait it is of may not be the one that is being worked on.
    """
    import polars as pl

    targets = {folder: load_activations(folder, pool) for folder in folders}
    rows = []
    for source, activations in targets.items():
        best = read_evaluation(source, activations.metadata, pool).recommendation
        for target, other in targets.items():
            head = (
                source.name,
                target.name,
                pool,
                best.method if best else None,
                best.layer if best else None,
            )
            rows.append((*head, *_pair(source, best, activations, other)))
    kinds = [pl.String] * 4 + [pl.Int32] + [pl.Float64] * 3 + [pl.String]
    return pl.DataFrame(rows, schema=dict(zip(COLUMNS, kinds, strict=True)), orient="row")


def update_transfer(
    experiment: Path, notice: Callable[[str], None], pool: str = DEFAULT_POOL
) -> Path | None:
    """Write `evaluation.parquet` of the experiment anew, from every trait that can be read.

    A trait whose files do not fit each other is left out with a notice: it is not what the user is
    working on. With fewer than two traits there is nothing to transfer to, and no file.
    """
    sound: dict[TraitFolder, str] = {}
    for folder in evaluated_traits(experiment, pool):
        try:
            sound[folder] = read_evaluation(
                folder, load_activations(folder, pool).metadata, pool
            ).activations_sha256
        except TraitmillError as error:
            notice(f"{folder.name} is left out of the transfer table: {error}")
    path = transfer_path(experiment, pool)
    if len(sound) < 2:
        path.unlink(missing_ok=True)
        return None
    made_from = {folder.name: digest for folder, digest in sound.items()}
    write_table(path, evaluate_transfer(list(sound), pool), {"activations_sha256": made_from})
    return path


def _pair(
    source: TraitFolder, best: Recommendation | None, activations: Activations, target: Activations
) -> tuple[float | None, float | None, float | None, str]:
    if best is None:
        return None, None, None, "no vector of the trait is recommended"
    if target.trait == activations.trait:
        lack = (
            ""
            if best.auroc is not None
            else "too few rows to correct the figure for choosing the best"
        )
        return best.auroc, best.low, best.high, lack
    if target.metadata.model != activations.metadata.model:
        return None, None, None, "the two traits are of different models"
    if best.layer not in target.layers:
        return None, None, None, "the target's activations lack the vector's layer"
    try:
        vector, metadata = load_vector(source, best.method, best.layer, target.pool)
        current = metadata.get("activations_sha256") == activations.sha256
    except UsageError:
        current = False
    if not current:
        return None, None, None, "its vector is missing or of other activations; fit it again"
    scores = target.values[:, target.layers.index(best.layer)].astype(np.float64) @ vector.astype(
        np.float64
    )
    together = np.zeros(len(scores), int)
    groups = np.unique(target.questions, return_inverse=True)[1]
    count = int(groups.max()) + 1
    draws = np.random.default_rng([0, count]).multinomial(
        count, np.full(count, 1 / count), size=BOOTSTRAPS
    )[:, groups]
    value = float(auroc(scores, target.labels, together, np.ones((1, len(scores)), np.float32))[0])
    n = effective_groups(target.labels, groups)
    low, high = interval(value, auroc(scores, target.labels, together, draws.astype(np.float32)), n)
    return value, low, high, ""


def read_transfer(
    experiment: Path, notice: Callable[[str], None], pool: str = DEFAULT_POOL
) -> pl.DataFrame | None:
    """The experiment's transfer table, None where there is none.

    Pairs of a trait whose activations are others by now are left out with a notice. Raises
    UsageError for a file that cannot be read.
    """
    import polars as pl

    path = transfer_path(experiment, pool)
    if not path.is_file():
        return None
    traits = evaluated_traits(experiment, pool)
    anyone = traits[0] if traits else TraitFolder(experiment / "all")
    table, facts = read_table(path, anyone.step("vectors", pool=pool))
    stale = []
    for name, digest in facts["activations_sha256"].items():
        if _digest(TraitFolder(experiment / name), pool) != digest:
            stale.append(name)
    if stale:
        notice(
            f"the transfer table is of earlier activations of {', '.join(stale)}, which are left "
            "out; fit the traits' vectors again to bring it up to date"
        )
    current = table.filter(~pl.col("trait").is_in(stale) & ~pl.col("target").is_in(stale))
    return current if len(current) else None


def _digest(folder: TraitFolder, pool: str) -> str | None:
    """Return that of the activations a trait holds now; None where none can be read."""
    try:
        files = Metadata.read(folder).files_sha256
    except TraitmillError:
        return None
    return files.get(str(folder.tensor(pool).relative_to(folder.path)))
