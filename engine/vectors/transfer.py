"""How a trait's recommended vector does on the other traits of its experiment."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import TraitmillError, UsageError
from ..files import write_atomic
from ..outputs.export import tensor_path
from ..outputs.load import DEFAULT_POOL, Activations, load_activations, read_metadata
from .evaluation import evaluation_path, read_evaluation
from .fit import load_vector
from .recommendation import Recommendation
from .splits import BOOTSTRAPS, auroc, effective_groups, interval

if TYPE_CHECKING:
    import polars as pl

COLUMNS = ("trait", "target", "pool", "method", "layer", "value", "low", "high", "note")


def evaluated_traits(experiment: Path, pool: str = DEFAULT_POOL) -> list[Path]:
    """The folders of an experiment that hold an evaluation, by name."""
    return sorted(
        path.parent for path in experiment.glob(f"*/{evaluation_path(Path(), pool).name}")
    )


def evaluate_transfer(folders: Sequence[Path], pool: str = DEFAULT_POOL) -> pl.DataFrame:
    """AUROC of every trait's recommended vector on every trait's kept rows, one pair a row.

    Columns trait (whose vector), target (whose rows), pool, method, layer, value, low, high, note. A vector meets its
    own trait only on held-out rows: the diagonal is the evaluation's `selected_auroc`. Elsewhere the vector is the one
    fitted to all rows of its own trait; intervals are bootstrap ones over the target's questions. Below 0.5 the
    target's pos side lies against the vector. A pair that cannot be measured has a null value and a note.

    Raises the errors of `load_activations` and `read_evaluation`. A vector that is missing or of other activations is
    a note: the trait it is of may not be the one that is being worked on.
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

    A trait whose files do not fit each other is left out with a notice: it is not what the user is working on. With
    fewer than two traits there is nothing to transfer to, and no file.
    """
    sound: dict[Path, str] = {}
    for folder in evaluated_traits(experiment, pool):
        try:
            sound[folder] = read_evaluation(
                folder, load_activations(folder, pool).metadata, pool
            ).activations_sha256
        except TraitmillError as error:
            notice(f"{folder.name} is left out of the transfer table: {error}")
    path = evaluation_path(experiment, pool)
    if len(sound) < 2:
        path.unlink(missing_ok=True)
        return None
    buffer = BytesIO()
    made_from = {folder.name: digest for folder, digest in sound.items()}
    evaluate_transfer(list(sound), pool).write_parquet(
        buffer, metadata={"traitmill": json.dumps({"activations_sha256": made_from})}
    )
    write_atomic(path, buffer.getvalue())
    return path


def _pair(
    source: Path, best: Recommendation | None, activations: Activations, target: Activations
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
    if target.metadata["model"] != activations.metadata["model"]:
        return None, None, None, "the two traits are of different models"
    if best.layer not in target.layers:
        return None, None, None, "the target's activations lack the vector's layer"
    try:
        vector, metadata = load_vector(source, best.method, best.layer, target.pool)
        current = metadata.get("activations_sha256") == activations.sha256
    except UsageError:
        current = False
    if not current:
        remedy = f"traitmill vectors --experiment {source.parent.name} --trait {source.name}"
        return (
            None,
            None,
            None,
            f"its vector is missing or of other activations; make it with: {remedy}",
        )
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

    Pairs of a trait whose activations are others by now are left out with a notice. Raises UsageError for a file that
    cannot be read.
    """
    import polars as pl

    path = evaluation_path(experiment, pool)
    if not path.is_file():
        return None
    remedy = f"make it anew with: traitmill vectors --experiment {experiment.name} --traits all"
    try:
        table = pl.read_parquet(path, columns=list(COLUMNS))
        made_from = dict(
            json.loads(pl.read_parquet_metadata(path)["traitmill"])["activations_sha256"]
        )
    except (pl.exceptions.PolarsError, KeyError, TypeError, ValueError, OSError):
        raise UsageError(f"{path} cannot be read; {remedy}") from None
    stale = [
        name for name, digest in made_from.items() if _digest(experiment / name, pool) != digest
    ]
    if stale:
        notice(
            f"the transfer table is of earlier activations of {', '.join(stale)}, which are left out; {remedy}"
        )
    current = table.filter(~pl.col("trait").is_in(stale) & ~pl.col("target").is_in(stale))
    return current if len(current) else None


def _digest(folder: Path, pool: str) -> str | None:
    """Of the activations a trait holds now; None where it holds none that can be read."""
    try:
        digest = read_metadata(folder)["files_sha256"].get(str(tensor_path(pool)))
    except TraitmillError:
        return None
    return None if digest is None else str(digest)
