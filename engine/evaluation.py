"""How good a trait's vectors are on rows they have not seen: figures with intervals, baselines, a recommendation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .activations import DEFAULT_POOL, Activations
from .directions import METHODS
from .errors import UsageError
from .export import tensor_path
from .files import write_atomic
from .heldout import HeldOut, held_out
from .resampling import Split, accuracy, auroc, cohens_d, interval, make_split, once
from .vectors import Vectors, map_layers

if TYPE_CHECKING:
    import polars as pl

MIN_CLAIM_ROWS = 10
"""Rows a side below which nothing is claimed."""
MIN_CLAIM_GROUPS = 4
"""Groups (questions or instruction pairs) below which nothing is claimed."""
SCHEMA_VERSION = 1
COLUMNS = ("trait", "pool", "measure", "split", "method", "layer", "other", "value", "low", "high")


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The method and layer to use, and how well the choice does on unseen rows."""

    method: str
    layer: int
    split: str
    """What was held out when choosing: question, or instruction pair where there is only one question."""
    auroc: float
    """Corrected for choosing the best of many (see `evaluate_vectors`)."""
    low: float
    high: float
    claim: bool
    """Whether the rows suffice, the interval lies above 0.5 and above both baselines."""
    reason: str
    """A sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Every figure of one trait as a long table, one figure a row."""

    trait: str
    pool: str
    table: pl.DataFrame
    """Columns trait, pool, measure, split, method, layer, other, value, low, high; see docs/vectors.md."""
    recommendation: Recommendation | None
    """None where no rows could be held out."""
    notes: tuple[str, ...]
    """What could not be measured, and what the rows are too few for."""
    activations_sha256: str

    def held_out(self) -> dict[tuple[str, int], dict[str, Any]]:
        """The held-out figures of each method and layer, as `write_vectors` takes them."""
        figures: dict[tuple[str, int], dict[str, Any]] = {}
        for row in self.table.iter_rows(named=True):
            if row["measure"] in ("auroc", "accuracy", "cohens_d"):
                measured = {name: row[name] for name in ("value", "low", "high")}
                figures.setdefault((row["method"], row["layer"]), {}).setdefault(row["split"], {})[row["measure"]] = (
                    measured
                )
        return figures


def evaluate_vectors(activations: Activations, vectors: Vectors, *, seed: int = 0) -> Evaluation:
    """Refit every method at every layer of `vectors` with groups held out, and measure on those.

    Held out are questions and, separately, instruction pairs, in up to 5 folds. Figures come with 95 % intervals from
    1,000 bootstrap draws of whole groups. Baselines refit each method with shuffled labels (mean and range of 5
    shuffles) and project on 20 random vectors (mean, 2.5 and 97.5 percentile), signed on the training folds.

    The recommended method and layer have the best held-out AUROC by question. Since the best of many flatters itself,
    the AUROC stated for it is nested: each fold is scored by the candidate that is best on the other folds, judged by
    fits that saw neither the fold they score nor this one (Cawley & Talbot 2010, J. Machine Learning Research 11).
    """
    labels = activations.labels
    notes: list[str] = []
    splits: list[Split] = []
    for name, groups in (("question", activations.questions), ("instruction", activations.instructions)):
        split = make_split(name, labels, groups, seed)
        if isinstance(split, str):
            notes.append(split)
        else:
            splits.append(split)
    layers = map_layers(
        lambda layer, at: held_out(layer, at, activations, vectors.methods, splits, seed), activations, vectors.layers
    )
    table = _Table(activations.trait, activations.pool)
    _add_counts(table, activations)
    _add_figures(table, vectors, splits, layers)
    _add_cosines(table, vectors)
    recommendation = _recommend(table, vectors, splits[0], layers) if splits else None
    if recommendation:
        at = layers[vectors.layers.index(recommendation.layer)]
        best = at.scores[0, vectors.methods.index(recommendation.method)]
        for sample_id, score in zip(activations.sample_ids, best, strict=True):
            table.add(
                "held_out_score", splits[0].name, recommendation.method, recommendation.layer, sample_id, float(score)
            )
    return Evaluation(
        activations.trait, activations.pool, table.frame(), recommendation, tuple(notes), activations.sha256
    )


def _add_counts(table: _Table, activations: Activations) -> None:
    for kind, count in (("pos", activations.n_pos), ("neg", activations.n_neg)):
        table.add("rows", other=kind, value=count)
    for kind, groups in (("question", activations.questions), ("instruction", activations.instructions)):
        table.add("groups", split=kind, value=len(np.unique(groups)))


def _add_figures(table: _Table, vectors: Vectors, splits: Sequence[Split], layers: Sequence[HeldOut]) -> None:
    for index, split in enumerate(splits):
        for layer, measured in zip(vectors.layers, layers, strict=True):
            for method, scores in zip(vectors.methods, measured.scores[index], strict=True):
                _add_figure(table, split, method, layer, scores)
    for layer, measured in zip(vectors.layers, layers, strict=True):
        if splits:
            table.add_range("random_auroc", splits[0].name, "random", layer, measured.random, [2.5, 97.5])
            for method, shuffled in zip(vectors.methods, measured.shuffled, strict=True):
                table.add_range("shuffled_auroc", splits[0].name, method, layer, shuffled, [0, 100])


def _add_figure(table: _Table, split: Split, method: str, layer: int, scores: np.ndarray) -> None:
    labels, unit = split.labels, once(len(split.labels))
    smaller = float(min(labels.sum(), (~labels).sum()))
    figures: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float | None]] = {
        "auroc": (lambda weights: auroc(scores, labels, split.folds, weights), smaller),
        "accuracy": (lambda weights: accuracy(scores, labels, weights), 2 * smaller),
        "cohens_d": (lambda weights: cohens_d(scores, labels, weights), None),
    }
    for measure, (of, n) in figures.items():
        value = float(of(unit)[0])
        low, high = interval(value, of(split.draws), n)
        table.add(measure, split.name, method, layer, value=value, low=low, high=high)


def _add_cosines(table: _Table, vectors: Vectors) -> None:
    unit = vectors.values.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=2, keepdims=True), 1e-300)
    for index, layer in enumerate(vectors.layers):
        between = unit[:, index] @ unit[:, index].T
        for row, method in enumerate(vectors.methods):
            for column, other in enumerate(vectors.methods):
                table.add("cosine", "", method, layer, other, float(between[row, column]))
            if index + 1 < len(vectors.layers):
                following = float(unit[row, index] @ unit[row, index + 1])
                table.add("cosine_next_layer", "", method, layer, str(vectors.layers[index + 1]), following)


def _recommend(table: _Table, vectors: Vectors, split: Split, layers: Sequence[HeldOut]) -> Recommendation | None:
    candidates = [
        (i, j) for i, m in enumerate(vectors.methods) if METHODS[m].fit is not None for j in range(len(vectors.layers))
    ]
    if not candidates:
        return None
    labels, folds = split.labels, split.folds
    outer = np.array([layers[j].scores[0, i] for i, j in candidates])
    ranked = [
        (auroc(each, labels, folds, once(len(labels)))[0], cohens_d(each, labels, once(len(labels)))[0])
        for each in outer
    ]
    best = max(range(len(ranked)), key=ranked.__getitem__)
    method, layer = vectors.methods[candidates[best][0]], vectors.layers[candidates[best][1]]
    smaller = int(min(labels.sum(), (~labels).sum()))
    value, low, high = float(ranked[best][0]), 0.0, 1.0
    if split.nestable:
        nested = np.array([layers[j].nested[i] for i, j in candidates])
        chosen = _nested_scores(split, outer, nested)
        value = float(auroc(chosen, labels, folds, once(len(labels)))[0])
        low, high = interval(value, auroc(chosen, labels, folds, split.draws), smaller)
    table.add("selected_auroc", split.name, method, layer, value=value, low=low, high=high)
    table.add("candidates", split.name, value=len(candidates))
    shuffled = table.value("shuffled_auroc", split.name, method, layer)
    random = table.value("random_auroc", split.name, "random", layer)
    figures = f"held-out AUROC {value:.2f}, 95 % interval {low:.2f} to {high:.2f}, for unseen {split.name}s"
    against = f"shuffled labels give {shuffled:.2f}, random vectors {random:.2f}"
    enough = split.nestable and smaller >= MIN_CLAIM_ROWS and split.n_groups >= MIN_CLAIM_GROUPS
    claim = enough and low > max(0.5, shuffled, random)
    if claim:
        reason = (
            f"Use {method} at layer {layer}, the best of {len(candidates)}: {figures} (corrected for choosing it); "
            f"{against}."
        )
    elif enough:
        reason = f"No claim: the best, {method} at layer {layer}, has {figures} (corrected for choosing it); {against}."
    else:
        reason = (
            f"Too few rows for a claim: {smaller} on the smaller side and {split.n_groups} {split.name}s, where "
            f"{MIN_CLAIM_ROWS} and {MIN_CLAIM_GROUPS} are needed; the best, {method} at layer {layer}, has {figures}."
        )
    return Recommendation(method, layer, split.name, value, low, high, claim=bool(claim), reason=reason)


def _nested_scores(split: Split, outer: np.ndarray, nested: np.ndarray) -> np.ndarray:
    """Each fold scored by the candidate that does best without it, `[n]`.

    outer `[candidates, n]`: rows by fits without their fold. nested `[candidates, folds, n]`: see `HeldOut`.
    """
    scores = np.empty(outer.shape[1])
    for index, test in enumerate(split.tests()):
        rest = ~test
        inner = [
            auroc(each[index, rest], split.labels[rest], split.folds[rest], once(int(rest.sum())))[0] for each in nested
        ]
        scores[test] = outer[int(np.nan_to_num(inner).argmax()), test]
    return scores


class _Table:
    """Rows of `Evaluation.table` as they come."""

    def __init__(self, trait: str, pool: str) -> None:
        self._head = (trait, pool)
        self._rows: list[tuple[Any, ...]] = []
        self._values: dict[tuple[Any, ...], float] = {}

    def add(
        self,
        measure: str,
        split: str = "",
        method: str = "",
        layer: int | None = None,
        other: str = "",
        value: float = np.nan,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        self._rows.append((*self._head, measure, split, method, layer, other, float(value), low, high))
        self._values[measure, split, method, layer] = value

    def add_range(
        self, measure: str, split: str, method: str, layer: int, values: np.ndarray, percentiles: list[float]
    ) -> None:
        low, high = (float(np.percentile(values, share)) for share in percentiles)
        self.add(measure, split, method, layer, value=values.mean(), low=low, high=high)

    def value(self, *key: Any) -> float:
        return self._values[key]

    def frame(self) -> pl.DataFrame:
        import polars as pl

        kinds = [pl.String] * 5 + [pl.Int32, pl.String] + [pl.Float64] * 3
        return pl.DataFrame(self._rows, schema=dict(zip(COLUMNS, kinds, strict=True)), orient="row")


# --- files -------------------------------------------------------------------------------------------------


def evaluation_path(folder: Path, pool: str = DEFAULT_POOL) -> Path:
    """`evaluation.parquet` in a trait's folder; with the pool in its name for others than response_mean."""
    return folder / ("evaluation.parquet" if pool == DEFAULT_POOL else f"evaluation.{pool}.parquet")


def write_evaluation(folder: Path, evaluation: Evaluation) -> Path:
    """Write the table, with recommendation, notes and what they were made from in the file's metadata."""
    facts = {
        "recommendation": asdict(evaluation.recommendation) if evaluation.recommendation else None,
        "notes": evaluation.notes,
        "activations_sha256": evaluation.activations_sha256,
        "schema_version": SCHEMA_VERSION,
    }
    buffer = BytesIO()
    evaluation.table.write_parquet(buffer, metadata={"traitmill": json.dumps(facts)})
    path = evaluation_path(folder, evaluation.pool)
    write_atomic(path, buffer.getvalue())
    return path


def read_evaluation(folder: Path, metadata: dict[str, Any], pool: str = DEFAULT_POOL) -> Evaluation:
    """The stored evaluation. Raises UsageError where there is none, or its activations are not those of `metadata`."""
    import polars as pl

    path = evaluation_path(folder, pool)
    remedy = f"make it with: traitmill vectors --experiment {folder.parent.name} --trait {folder.name}"
    if not path.is_file():
        raise UsageError(f"{path} is missing; {remedy}")
    try:
        table = pl.read_parquet(path)
        facts = json.loads(pl.read_parquet_metadata(path)["traitmill"])
    except (pl.exceptions.PolarsError, KeyError, ValueError, OSError):
        raise UsageError(f"{path} cannot be read; {remedy}") from None
    if facts["activations_sha256"] != metadata["files_sha256"].get(str(tensor_path(pool))):
        raise UsageError(f"{path} is of other activations than {folder} holds now; {remedy}")
    recommendation = Recommendation(**facts["recommendation"]) if facts["recommendation"] else None
    return Evaluation(folder.name, pool, table, recommendation, tuple(facts["notes"]), facts["activations_sha256"])
