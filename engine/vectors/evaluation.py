"""How good a trait's vectors are on unseen rows: figures with intervals, baselines, a choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from ..errors import UsageError
from ..outputs import Activations, Metadata
from ..settings import DEFAULT_POOL
from ..statistics import Estimate, balanced_accuracy, cohens_d, estimate, once
from ..storage import TraitFolder
from .fit import Vectors
from .held_out import HeldOut, held_out
from .measures import COLUMNS, Measures
from .recommendation import MIN_CLAIM_GROUPS, Recommendation, recommend
from .rows import map_layers
from .splits import Split, make_split
from .table_file import read_table, write_table

if TYPE_CHECKING:
    import polars as pl

SCHEMA_VERSION = 1
FIGURES = ("auroc", "accuracy", "cohens_d")


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Every figure of one trait as a long table, one figure a row."""

    trait: str
    pool: str
    table: pl.DataFrame
    """Columns trait, pool, measure, split, method, layer, other, value, low, high; see
    docs/vectors.md."""
    recommendation: Recommendation | None
    """None where no rows could be held out."""
    notes: tuple[str, ...]
    """What could not be measured, and what the rows are too few for."""
    activations_sha256: str

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
        """Return what this evaluation covers and one of `vectors` does not, in words, or nothing."""
        measured = self.table.filter(self.table["measure"] == "cosine")
        methods = measured["method"].unique(maintain_order=True)
        lost = [name for name in methods if name not in vectors.methods]
        layers = len(set(measured["layer"]) - set(vectors.layers))
        if layers == 1:
            lost.append("1 layer")
        if layers > 1:
            lost.append(f"{layers} layers")
        return ", ".join(lost)

    def __repr__(self) -> str:
        reason = "nothing is recommended"
        if self.recommendation:
            reason = self.recommendation.reason
        return f"Evaluation({self.trait}, {self.pool}: {len(self.table)} figures; {reason})"


def evaluate_vectors(activations: Activations, vectors: Vectors, *, seed: int = 0) -> Evaluation:
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
    """
    splits, notes = _make_splits(activations, seed)
    refit = partial(
        held_out, activations=activations, methods=vectors.methods, splits=splits, seed=seed
    )
    layers = map_layers(refit, activations, vectors.layers)
    measures = Measures(activations.trait, activations.pool)
    _add_counts(measures, activations)
    for index, split in enumerate(splits):
        _add_figures(measures, vectors, split, index, layers)
    if splits:
        _add_shuffled(measures, vectors, splits[0], layers)
    _add_cosines(measures, vectors)
    recommendation = recommend(measures, vectors, splits, layers)
    if recommendation:
        at = layers[vectors.layers.index(recommendation.layer)]
        best = at.scores[0, vectors.methods.index(recommendation.method)]
        _add_scores(measures, recommendation, activations, best)
    for split in splits[1:]:
        if split.n_groups < MIN_CLAIM_GROUPS:
            notes.append(f"there are few {split.name}s: what is said of unseen ones is rough")
    if splits and not any(each.shuffled.size for each in layers):
        notes.append(
            "shuffled labels are not measured: hardly any shuffle leaves each fold rows of both "
            "sides to fit"
        )
    return Evaluation(
        trait=activations.trait,
        pool=activations.pool,
        table=measures.frame(),
        recommendation=recommendation,
        notes=tuple(notes),
        activations_sha256=activations.sha256,
    )


def _make_splits(activations: Activations, seed: int) -> tuple[list[Split], list[str]]:
    """Return the splits, the one that chooses first, and why one is not given."""
    splits, notes = [], []
    for name, groups in _groups(activations).items():
        split = make_split(name, activations.labels, groups, seed)
        if isinstance(split, str):
            notes.append(split)
        else:
            splits.append(split)
    return splits, notes


def _groups(activations: Activations) -> dict[str, ndarray]:
    return {"question": activations.questions, "instruction": activations.instructions}


def _add_counts(measures: Measures, activations: Activations) -> None:
    measures.add("rows", activations.n_pos, other="pos")
    measures.add("rows", activations.n_neg, other="neg")
    for name, groups in _groups(activations).items():
        measures.add("groups", len(np.unique(groups)), split=name)


def _add_scores(
    measures: Measures, best: Recommendation, activations: Activations, scores: ndarray
) -> None:
    """Add each row's held-out score by the recommended method and layer."""
    where: dict[str, Any] = {"split": best.split, "method": best.method, "layer": best.layer}
    for sample_id, score in zip(activations.sample_ids, scores, strict=True):
        measures.add("held_out_score", score, other=sample_id, **where)


def _add_figures(
    measures: Measures, vectors: Vectors, split: Split, index: int, layers: Sequence[HeldOut]
) -> None:
    """Add the figures by one split, number `index`, with those of random vectors."""
    for layer, found in zip(vectors.layers, layers, strict=True):
        for method, scores in zip(vectors.methods, found.scores[index], strict=True):
            for name, figure in _figures(split, scores).items():
                measures.add(name, *figure, split=split.name, method=method, layer=layer)
        random = np.array([split.auroc(scores) for scores in found.random[index]])
        where: dict[str, Any] = {"split": split.name, "method": "random", "layer": layer}
        measures.add_range("random_auroc", random, [2.5, 97.5], **where)


def _figures(split: Split, scores: ndarray) -> dict[str, Estimate]:
    """Return the figures of one method at one layer, by the names in FIGURES."""

    def measured(figure: Callable[..., ndarray], n: float | None) -> Estimate:
        value = figure(scores, split.labels, once(len(scores)))[0]
        return estimate(float(value), figure(scores, split.labels, split.draws), n)

    return {
        "auroc": split.estimate_auroc(scores),
        "accuracy": measured(balanced_accuracy, 2 * split.n_effective),
        "cohens_d": measured(cohens_d, None),
    }


def _add_shuffled(
    measures: Measures, vectors: Vectors, split: Split, layers: Sequence[HeldOut]
) -> None:
    for layer, found in zip(vectors.layers, layers, strict=True):
        for method, shuffled in zip(vectors.methods, found.shuffled, strict=True):
            where: dict[str, Any] = {"split": split.name, "method": method, "layer": layer}
            measures.add_range("shuffled_auroc", shuffled, [0, 100], **where)


def _add_cosines(measures: Measures, vectors: Vectors) -> None:
    """Add the cosine of each vector to those of its layer and to that of the next layer."""
    unit = vectors.values.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=2, keepdims=True), 1e-300)
    following = [*map(str, vectors.layers[1:]), None]
    for index, (layer, after) in enumerate(zip(vectors.layers, following, strict=True)):
        between = unit[:, index] @ unit[:, index].T
        for row, method in enumerate(vectors.methods):
            where: dict[str, Any] = {"method": method, "layer": layer}
            for other, cosine in zip(vectors.methods, between[row], strict=True):
                measures.add("cosine", cosine, other=other, **where)
            if after is not None:
                cosine = unit[row, index] @ unit[row, index + 1]
                measures.add("cosine_next_layer", cosine, other=after, **where)


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
        recommendation = Recommendation(**facts["recommendation"])
    return Evaluation(
        trait=folder.name,
        pool=pool,
        table=table,
        recommendation=recommendation,
        notes=tuple(facts["notes"]),
        activations_sha256=facts["activations_sha256"],
    )
