"""How good a trait's vectors are on rows they have not seen: figures with intervals, baselines, a
recommendation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..outputs import Activations, Metadata
from ..settings import DEFAULT_POOL
from ..storage import TraitFolder
from .fit import Vectors, map_layers
from .held_out import HeldOut, held_out
from .measures import Measures
from .recommendation import MIN_CLAIM_GROUPS, Recommendation, recommend
from .splits import Split, accuracy, auroc, cohens_d, interval, make_split, once
from .table_file import read_table, write_table

if TYPE_CHECKING:
    import polars as pl

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Every figure of one trait as a long table, one figure a row."""

    trait: str
    pool: str
    table: pl.DataFrame
    """Columns trait, pool, measure, split, method, layer, other, value, low, high; see
    docs/vectors.md."""
    recommendation: Recommendation | None
    """None where no rows could be held out, or only random vectors were fitted."""
    notes: tuple[str, ...]
    """What could not be measured, and what the rows are too few for."""
    activations_sha256: str

    def held_out(self) -> dict[tuple[str, int], dict[str, Any]]:
        """The held-out figures of each method and layer, as `write_vectors` takes them."""
        figures: dict[tuple[str, int], dict[str, Any]] = {}
        for row in self.table.iter_rows(named=True):
            if row["measure"] in ("auroc", "accuracy", "cohens_d"):
                measured = {name: row[name] for name in ("value", "low", "high")}
                figures.setdefault((row["method"], row["layer"]), {}).setdefault(row["split"], {})[
                    row["measure"]
                ] = measured
        return figures

    def beyond(self, vectors: Vectors) -> str:
        """What this evaluation covers and one of `vectors` does not, in words; empty where that is
        nothing."""
        measured = self.table.filter(self.table["measure"] == "cosine")
        lost = [
            name
            for name in measured["method"].unique(maintain_order=True)
            if name not in vectors.methods
        ]
        layers = len(set(measured["layer"]) - set(vectors.layers))
        return ", ".join(lost + [f"{layers} layer{'s' * (layers > 1)}"] * bool(layers))


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
    labels = activations.labels
    notes: list[str] = []
    splits: list[Split] = []
    for name, groups in (
        ("question", activations.questions),
        ("instruction", activations.instructions),
    ):
        split = make_split(name, labels, groups, seed)
        if isinstance(split, str):
            notes.append(split)
        else:
            splits.append(split)
    layers = map_layers(
        lambda layer, at: held_out(layer, at, activations, vectors.methods, splits, seed),
        activations,
        vectors.layers,
    )
    measures = Measures(activations.trait, activations.pool)
    _add_counts(measures, activations)
    _add_figures(measures, vectors, splits, layers)
    _add_cosines(measures, vectors)
    recommendation = recommend(measures, vectors, splits, layers)
    if recommendation:
        at = layers[vectors.layers.index(recommendation.layer)]
        best = at.scores[0, vectors.methods.index(recommendation.method)]
        where = (splits[0].name, recommendation.method, recommendation.layer)
        for sample_id, score in zip(activations.sample_ids, best, strict=True):
            measures.add("held_out_score", *where, sample_id, value=score)
    elif splits:
        notes.append("random vectors are a baseline; there is no fitted method to recommend")
    notes += [
        f"there are few {split.name}s: what is said of unseen ones is rough"
        for split in splits[1:]
        if split.n_groups < MIN_CLAIM_GROUPS
    ]
    if splits and not any(each.shuffled.size for each in layers):
        notes.append(
            "shuffled labels are not measured: hardly any shuffle leaves each fold rows of both "
            "sides to fit"
        )
    return Evaluation(
        activations.trait,
        activations.pool,
        measures.frame(),
        recommendation,
        tuple(notes),
        activations.sha256,
    )


def _add_counts(measures: Measures, activations: Activations) -> None:
    for kind, count in (("pos", activations.n_pos), ("neg", activations.n_neg)):
        measures.add("rows", other=kind, value=count)
    for kind, groups in (
        ("question", activations.questions),
        ("instruction", activations.instructions),
    ):
        measures.add("groups", split=kind, value=len(np.unique(groups)))


def _add_figures(
    measures: Measures, vectors: Vectors, splits: Sequence[Split], layers: Sequence[HeldOut]
) -> None:
    for index, split in enumerate(splits):
        for layer, measured in zip(vectors.layers, layers, strict=True):
            for method, scores in zip(vectors.methods, measured.scores[index], strict=True):
                _add_figure(measures, split, method, layer, scores)
            each = np.array(
                [
                    auroc(random, split.labels, split.folds, once(random.size))[0]
                    for random in measured.random[index]
                ]
            )
            measures.add_range("random_auroc", split.name, "random", layer, each, [2.5, 97.5])
    for layer, measured in zip(vectors.layers, layers, strict=True):
        for method, shuffled in (
            zip(vectors.methods, measured.shuffled, strict=True) if splits else ()
        ):
            measures.add_range("shuffled_auroc", splits[0].name, method, layer, shuffled, [0, 100])


def _add_figure(
    measures: Measures, split: Split, method: str, layer: int, scores: np.ndarray
) -> None:
    labels, unit = split.labels, once(len(split.labels))
    figures: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float | None]] = {
        "auroc": (lambda weights: auroc(scores, labels, split.folds, weights), split.n_effective),
        "accuracy": (lambda weights: accuracy(scores, labels, weights), 2 * split.n_effective),
        "cohens_d": (lambda weights: cohens_d(scores, labels, weights), None),
    }
    for measure, (of, n) in figures.items():
        value = float(of(unit)[0])
        low, high = interval(value, of(split.draws), n)
        measures.add(measure, split.name, method, layer, value=value, low=low, high=high)


def _add_cosines(measures: Measures, vectors: Vectors) -> None:
    unit = vectors.values.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=2, keepdims=True), 1e-300)
    for index, layer in enumerate(vectors.layers):
        between = unit[:, index] @ unit[:, index].T
        for row, method in enumerate(vectors.methods):
            for column, other in enumerate(vectors.methods):
                measures.add("cosine", "", method, layer, other, value=between[row, column])
            if index + 1 < len(vectors.layers):
                following = float(unit[row, index] @ unit[row, index + 1])
                measures.add(
                    "cosine_next_layer",
                    "",
                    method,
                    layer,
                    str(vectors.layers[index + 1]),
                    value=following,
                )


# --- files ---


def write_evaluation(folder: TraitFolder, evaluation: Evaluation) -> Path:
    """Write the table, with recommendation, notes and what they were made from."""
    recommendation = None
    if evaluation.recommendation is not None:
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
    table, facts = read_table(path, step)
    recommendation = None
    if facts["recommendation"] is not None:
        recommendation = Recommendation(**facts["recommendation"])
    tensor = str(folder.tensor(pool).relative_to(folder.path))
    if facts["activations_sha256"] != metadata.files_sha256.get(tensor):
        raise UsageError(
            f"{path} is of other activations than {folder.path} holds now; make it anew", step
        )
    return Evaluation(
        trait=folder.name,
        pool=pool,
        table=table,
        recommendation=recommendation,
        notes=tuple(facts["notes"]),
        activations_sha256=facts["activations_sha256"],
    )
