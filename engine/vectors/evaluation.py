"""How good a trait's vectors are on unseen rows: figures with intervals, baselines, a choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from ..errors import UsageError
from ..outputs import Activations, Metadata
from ..settings import DEFAULT_POOL, plain_arguments
from ..storage import TraitFolder
from ..threads import after_fork
from .fit import Vectors
from .held_out import HeldOut, KeptFolds, held_out
from .recommendation import MIN_CLAIM_GROUPS, Recommendation, Row, recommend
from .rows import OnLayer, unheard
from .splits import Split, make_split
from .table_file import read_table, write_table

if TYPE_CHECKING:
    import polars as pl

SCHEMA_VERSION = 1
COLUMNS = ("trait", "pool", "measure", "split", "method", "layer", "other", "value", "low", "high")
FIGURES = ("auroc", "accuracy", "cohens_d")


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Every figure of one trait as a long table, one figure a row."""

    trait: str
    pool: str
    table: pl.DataFrame = field(repr=False)
    """Columns trait, pool, measure, split, method, layer, other, value, low, high; see
    docs/vectors.md."""
    recommendation: Recommendation | None
    """None where no rows could be held out."""
    notes: tuple[str, ...]
    """What could not be measured, and what the rows are too few for."""
    activations_sha256: str
    fingerprint: str = ""
    """Of what was asked for and of the vectors' files, see `stored.py`."""

    def __repr__(self) -> str:
        best = self.recommendation
        chosen = f"{best.method} at layer {best.layer}" if best else "nothing recommended"
        return f"Evaluation({self.trait}: {chosen}, {len(self.table)} figures, {self.pool})"

    def held_out(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Return the held-out figures by method and layer, as `write_vectors` takes them."""
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for row in self.table.iter_rows(named=True):
            if row["measure"] in FIGURES:
                by_split = found.setdefault((row["method"], row["layer"]), {})
                figure = {name: row[name] for name in ("value", "low", "high")}
                by_split.setdefault(row["split"], {})[row["measure"]] = figure
        return found

    def beyond(self, vectors: Vectors) -> str:
        """Return what this covers and an evaluation of `vectors` does not, in words."""
        measured = self.table.filter(self.table["measure"] == "cosine")
        methods = measured["method"].unique(maintain_order=True)
        lost = [name for name in methods if name not in vectors.methods]
        layers = len(set(measured["layer"]) - set(vectors.layers))
        if layers:
            lost.append("1 layer" if layers == 1 else f"{layers} layers")
        return ", ".join(lost)


@plain_arguments
def evaluate_vectors(
    activations: Activations,
    vectors: Vectors,
    *,
    seed: int = 0,
    on_layer: OnLayer = unheard,
    keep_in: TraitFolder | None = None,
) -> Evaluation:
    """Refit every method at every layer of `vectors` with groups held out, and measure on those.

    Held out are questions and, separately, instruction pairs, in up to 5 folds. Figures come with
    95 % intervals from 1,000 bootstrap draws of whole groups. Baselines refit each method with
    shuffled labels (mean and range of 5 shuffles, first split) and project on 20 random vectors
    (mean, 2.5 and 97.5 percentile), signed on the training folds.

    The recommended method and layer have the best held-out AUROC by question. Since the best of
    many flatters itself, the AUROC stated for it is nested: each fold is scored by the candidate
    that is best on the other folds, judged by fits that saw neither the fold they score nor this
    one (Cawley & Talbot 2010, J. Machine Learning Research 11). The same is done by instruction,
    where a claim has to hold as well before it is made for unseen instructions.

    What the folds of many rows score is kept in the folder `keep_in`, and not fitted again.
    Raise UsageError where `vectors` were not fitted to these activations.
    """
    after_fork("an evaluation")
    _require_fitted_to(activations, vectors)
    if seed < 0:
        raise UsageError(f"`seed` must be a whole number from 0, not {seed}")
    splits, notes, rows = _make_splits(activations, seed)
    kept = KeptFolds.of(keep_in, activations, seed) if keep_in else None
    held = held_out(activations, vectors, splits, seed, on_layer, kept)
    recommendation, figures = recommend(vectors, held, len(np.unique(activations.questions)))
    rows += [*_figures(vectors, held), *_cosines(vectors), *figures]
    if recommendation:
        rows += _scores(activations, vectors, recommendation, held[0])
    for split in splits[1:]:
        if split.n_groups < MIN_CLAIM_GROUPS:
            notes.append(f"there are few {split.name}s: what is said of unseen ones is rough")
    if held and not held[0].shuffled.size:
        notes.append(
            "shuffled labels are not measured: hardly any shuffle leaves each fold rows of both "
            "sides to fit"
        )
    return Evaluation(
        trait=activations.trait,
        pool=activations.pool,
        table=_table(activations, rows),
        recommendation=recommendation,
        notes=tuple(notes),
        activations_sha256=activations.sha256,
    )


def _require_fitted_to(activations: Activations, vectors: Vectors) -> None:
    facts = next(iter(vectors.metadata.values()))
    mine = (activations.trait, activations.pool, activations.sha256)
    if (vectors.trait, vectors.pool, facts["activations_sha256"]) != mine:
        raise UsageError(
            f"the vectors of {vectors.trait} ({vectors.pool}) were fitted to other rows than these "
            f"of {activations.trait} ({activations.pool}): fit them to these"
        )


def _table(activations: Activations, rows: Sequence[Row]) -> pl.DataFrame:
    """Return the rows as a table. A figure that is not a number is null there."""
    import polars as pl

    schema = dict.fromkeys(COLUMNS, pl.String) | {"layer": pl.Int32}
    schema |= dict.fromkeys(("value", "low", "high"), pl.Float64)
    head = {"trait": activations.trait, "pool": activations.pool}
    head |= dict.fromkeys(("split", "method", "other"), "")
    table = pl.DataFrame([{**head, **row} for row in rows], schema=schema)
    return table.fill_nan(None)


def _make_splits(activations: Activations, seed: int) -> tuple[list[Split], list[str], list[Row]]:
    """Return the splits, that which chooses first, why one is not given, and counts."""
    splits: list[Split] = []
    notes: list[str] = []
    rows: list[Row] = [
        {"measure": "rows", "other": "pos", "value": activations.n_pos},
        {"measure": "rows", "other": "neg", "value": activations.n_neg},
    ]
    by_name = {"question": activations.questions, "instruction": activations.instructions}
    for name, groups in by_name.items():
        rows.append({"measure": "groups", "split": name, "value": len(np.unique(groups))})
        split = make_split(name, activations.labels, groups, seed)
        if isinstance(split, str):
            notes.append(split)
        else:
            splits.append(split)
    return splits, notes, rows


def _figures(vectors: Vectors, held: Sequence[HeldOut]) -> Iterator[Row]:
    """Yield the figures by each split with those of random vectors, then of shuffled labels."""
    for each in held:
        found = each.split.figures(each.own.reshape(-1, len(each.split.labels)))
        random = each.split.auroc(each.random)
        for j, layer in enumerate(vectors.layers):
            where = {"split": each.split.name, "layer": layer}
            for i, method in enumerate(vectors.methods):
                for measure, figures in found.items():
                    figure = figures[i * len(vectors.layers) + j]
                    yield {"measure": measure, **where, "method": method, **figure._asdict()}
            spread = _spread(random[j], 2.5, 97.5)
            yield {"measure": "random_auroc", **where, "method": "random", **spread}
    for each in held[:1]:
        for j, layer in enumerate(vectors.layers):
            for i, method in enumerate(vectors.methods):
                yield {
                    "measure": "shuffled_auroc",
                    "split": each.split.name,
                    "method": method,
                    "layer": layer,
                    **_spread(each.shuffled[i, j], 0, 100),
                }


def _spread(values: ndarray, *percentiles: float) -> Row:
    """Return the mean of some values and two of their percentiles; nothing where there are none."""
    if not len(values):
        return {}
    low, high = np.percentile(values, percentiles)
    return {"value": values.mean(), "low": low, "high": high}


def _cosines(vectors: Vectors) -> Iterator[Row]:
    """Yield the cosine of each vector to those of its layer and to that of the next layer."""
    unit = vectors.values.astype(np.float64)
    norms = np.linalg.norm(unit, axis=2, keepdims=True)
    unit /= np.maximum(norms, 1e-300)
    for index, layer in enumerate(vectors.layers):
        between = unit[:, index] @ unit[:, index].T
        for row, method in enumerate(vectors.methods):
            where = {"method": method, "layer": layer}
            for other, cosine in zip(vectors.methods, between[row], strict=True):
                yield {"measure": "cosine", **where, "other": other, "value": cosine}
            for following in vectors.layers[index + 1 : index + 2]:
                cosine = unit[row, index] @ unit[row, index + 1]
                where["other"] = str(following)
                yield {"measure": "cosine_next_layer", **where, "value": cosine}


def _scores(
    activations: Activations, vectors: Vectors, best: Recommendation, held: HeldOut
) -> Iterator[Row]:
    """Yield each row's held-out score by the recommended method and layer."""
    i = vectors.methods.index(best.method)
    j = vectors.layers.index(best.layer)
    where = {"split": best.split, "method": best.method, "layer": best.layer}
    scores = held.own[i, j]
    for sample_id, score in zip(activations.sample_ids, scores, strict=True):
        yield {"measure": "held_out_score", **where, "other": sample_id, "value": score}


# --- file ---


def write_evaluation(folder: TraitFolder, evaluation: Evaluation) -> Path:
    """Write the table, with recommendation, notes and what they were made from."""
    recommendation = None
    if evaluation.recommendation:
        recommendation = asdict(evaluation.recommendation)
    facts = {
        "recommendation": recommendation,
        "notes": evaluation.notes,
        "activations_sha256": evaluation.activations_sha256,
        "fingerprint": evaluation.fingerprint,
        "schema_version": SCHEMA_VERSION,
    }
    path = folder.evaluation(evaluation.pool)
    write_table(path, evaluation.table, facts)
    return path


def read_evaluation(
    folder: TraitFolder, metadata: Metadata, pool: str = DEFAULT_POOL
) -> Evaluation:
    """Return the stored evaluation.

    Raise UsageError where there is none, or its activations are not those of `metadata`.
    """
    path, step = folder.evaluation(pool), folder.step("vectors", pool=pool)
    table, facts = read_table(path, COLUMNS, step)
    if facts["activations_sha256"] != metadata.tensor_sha256(pool):
        raise UsageError(
            f"{path} is of other activations than {folder.path} holds now; make it anew", step
        )
    recommendation = None
    if facts["recommendation"]:
        found = facts["recommendation"]
        recommendation = Recommendation(**{**found, "why": tuple(found.get("why", ()))})
    return Evaluation(
        trait=folder.name,
        pool=pool,
        table=table,
        recommendation=recommendation,
        notes=tuple(facts["notes"]),
        activations_sha256=facts["activations_sha256"],
        fingerprint=facts.get("fingerprint", ""),
    )
