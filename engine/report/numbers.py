"""The figures of a page, from a trait's evaluation, metadata and responses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..judging import find_price
from ..outputs import Metadata, format_score
from ..records import POLARITIES
from ..storage import TraitFolder
from ..vectors import METHODS, MIN_CLAIM_GROUPS, MIN_CLAIM_ROWS, read_evaluation

if TYPE_CHECKING:
    import polars as pl

AUDIT_PER_STRATUM = 4
AUDIT_CHARACTERS = 1500
_NOT_SETTINGS = {
    "sample_ids": True,
    "instruction_index": True,
    "question_index": True,
    "files_sha256": True,
    "sha256": True,
    "counts": True,
    "cost": True,
    "layers": True,
    "judge": {"histogram", "auroc", "auroc_interval"},
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value, with its 95 % interval where it has one. None: it could not be measured."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """A method's figures by layer, each float `[n_layers]`; NaN where not measured."""

    layers: list[int]
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


class TraitFigures:
    """What the files of one trait say.

    Raise UsageError where metadata or evaluation is missing or stale.
    """

    def __init__(self, folder: TraitFolder, pool: str) -> None:
        self.metadata = Metadata.read(folder)
        self.evaluation = read_evaluation(folder, self.metadata, pool)
        self.recommendation = self.evaluation.recommendation
        self._rows = {
            (row["measure"], row["split"], row["method"], row["layer"], row["other"]): row
            for row in self.evaluation.table.iter_rows(named=True)
        }
        cosines = [key for key in self._rows if key[0] == "cosine"]
        self.methods = list(dict.fromkeys(key[2] for key in cosines))
        self.fitted = [method for method in self.methods if METHODS[method].fit is not None]
        """Without random vectors, which are a baseline."""
        self.layers = list(dict.fromkeys(key[3] for key in cosines))
        self.splits = list(dict.fromkeys(key[1] for key in self._rows if key[0] == "auroc"))
        """What was held out, the split that chose first."""

    def find(
        self,
        measure: str,
        split: str = "",
        method: str = "",
        layer: int | None = None,
        other: str = "",
    ) -> Figure:
        """Return a figure of the evaluation. Raise KeyError where it has no such row."""
        row = self._rows[measure, split, method, layer, other]
        return Figure(row["value"], row["low"], row["high"])

    def count(self, measure: str, split: str = "", other: str = "") -> int:
        """Return a count of the evaluation, such as of rows or groups."""
        return int(self._rows[measure, split, "", None, other]["value"])

    def curve(self, measure: str, split: str, method: str) -> Curve:
        """Return a method's figures by layer."""
        rows = [row for key, row in self._rows.items() if key[:3] == (measure, split, method)]
        values, low, high = (
            np.array([row[name] for row in rows], float) for name in ("value", "low", "high")
        )
        return Curve([row["layer"] for row in rows], values, low, high)

    def comparison_layer(self) -> int:
        """Return the layer at which methods are compared: the recommended, else the middle one."""
        if self.recommendation:
            return self.recommendation.layer
        return self.layers[len(self.layers) // 2]

    def held_out_scores(self) -> dict[str, np.ndarray]:
        """Return the projections on the recommended vector by side, float `[n]` each."""
        table = self.evaluation.table
        scores = table.filter(table["measure"] == "held_out_score")["value"].to_numpy()
        n_pos = self.metadata.n_examples_pos
        return {"pos": scores[:n_pos], "neg": scores[n_pos:]}


# --- of the evaluation ---


def best_choice(figures: TraitFigures) -> dict[str, Any] | None:
    """Return the recommended method and layer with what the choice rests on, None without one."""
    found = figures.recommendation
    if found is None:
        return None
    at = (found.split, found.method, found.layer)
    other_split = {"question": "instruction", "instruction": "question"}[found.split]
    n_pos, n_neg = (figures.count("rows", other=side) for side in POLARITIES)
    n_groups = figures.count("groups", found.split)
    auroc, over_random, other = figures.find("auroc", *at), None, None
    if found.auroc is not None:  # corrected for choosing the best
        auroc, over_random = figures.find("selected_auroc", *at), figures.find("over_random", *at)
        if other_split in figures.splits:
            other = figures.find("selected_auroc", other_split, found.method, found.layer)
    other_measured = other is not None and other.value is not None
    claim = "no"
    if found.claim:
        claim = "yes"
        if other_measured and not found.general:
            claim = f"for its {other_split}s"
    return {
        "method": found.method,
        "layer": found.layer,
        "split": found.split,
        "claim": claim,
        "corrected": found.auroc is not None,
        "auroc": auroc,
        "candidates": figures.count("candidates", found.split),
        "n_pos": n_pos,
        "n_neg": n_neg,
        "n_groups": n_groups,
        "too_few": min(n_pos, n_neg) < MIN_CLAIM_ROWS or n_groups < MIN_CLAIM_GROUPS,
        "shuffled": figures.find("shuffled_auroc", *at),
        "random": figures.find("random_auroc", found.split, "random", found.layer),
        "over_random": over_random,
        "other_split": other_split,
        "other": other if other_measured else None,
    }


def method_rows(figures: TraitFigures) -> list[dict[str, Any]]:
    """Return each method's figures at its best layer, the recommended one's at that layer."""
    found, rows = figures.recommendation, []
    if not figures.splits:
        return []
    for method in figures.methods:
        at = (figures.splits[0], method)
        curve = figures.curve("auroc", *at)
        layer = curve.layers[int(curve.values.argmax())]
        best = found is not None and found.method == method
        if found and best:
            layer = found.layer
        rows.append(
            {
                "method": method,
                "best": best,
                "layer": layer,
                "auroc": [figures.find("auroc", split, method, layer) for split in figures.splits],
                "accuracy": figures.find("accuracy", *at, layer),
                "cohens_d": figures.find("cohens_d", *at, layer),
                "shuffled": figures.find("shuffled_auroc", *at, layer),
            }
        )
    return rows


# --- of the metadata ---


def yields(metadata: Metadata) -> list[tuple[str, list[int]]]:
    """Return counts of pos and neg by what became of the responses; without statuses nothing has."""
    sides = [_side_yields(metadata.counts[side]) for side in POLARITIES]
    rows = [(name, [side[name] for side in sides]) for name in sides[0]]
    # What passed and could not be captured is in no file: it is not kept.
    kept = ("kept", [metadata.n_examples_pos, metadata.n_examples_neg])
    return [row for row in rows if any(row[1])] + [kept]


def _side_yields(counts: Mapping[str, Any]) -> dict[str, int]:
    named = {"planned": counts["planned"]}
    named |= {f"response: {status}": n for status, n in counts["responses"].items()}
    named |= {f"verdict: {status}": n for status, n in counts["verdicts"].items()}
    last = {"passed the judge": "kept", "captured": "captured", "capture failed": "capture_failed"}
    return named | {name: counts[key] for name, key in last.items()}


def dollars(metadata: Metadata) -> float | None:
    """Return what judging cost at most: verdicts do not say which tokens a cache made cheaper."""
    price = find_price(metadata.judge["model"] or "")
    if price is None:
        return None
    return price.dollars(metadata.cost["input tokens"], 0, metadata.cost["output tokens"])


def judge_auroc(metadata: Metadata) -> Figure | None:
    """Return how well the judge's scores tell the sides apart; None where a side has none."""
    if metadata.judge["auroc"] is None:
        return None
    return Figure(metadata.judge["auroc"], *metadata.judge["auroc_interval"])


def settings(metadata: Metadata) -> dict[str, str]:
    """Return all that metadata.json holds and the page does not show elsewhere, by name."""
    return dict(_flattened(metadata.model_dump(exclude=_NOT_SETTINGS)))


def _flattened(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        where = (*path, name)
        if isinstance(value, Mapping):
            yield from _flattened(value, where)
        elif isinstance(value, list):
            yield " ".join(where), ", ".join(map(str, value))
        elif value is not None:
            yield (
                " ".join(where),
                str(value).removesuffix(".0"),
            )  # a threshold of 50.0 was given as 50


# --- of the responses ---


def audit(responses: pl.DataFrame) -> list[dict[str, Any]]:
    """Return up to 4 responses of each side, kept and left out, spread evenly over their scores.

    And up to 4 of each side without a score. `responses` is `outputs.audit_table`.
    """
    import polars as pl

    rows = []
    for side in POLARITIES:
        for kept, scored in ((True, True), (False, True), (False, False)):
            stratum = responses.filter(
                pl.col("polarity") == side,
                pl.col("kept") == kept,
                pl.col("score").is_not_null() == scored,
            ).sort("score", "sample_id")
            spread = np.linspace(0, len(stratum) - 1, min(AUDIT_PER_STRATUM, len(stratum)))
            rows += map(_audit_row, stratum[spread.round().astype(int)].iter_rows(named=True))
    return rows


def _audit_row(row: Mapping[str, Any]) -> dict[str, Any]:
    status = row["verdict_status"] or "not judged"
    if row["response_status"] != "ok":
        status = row["response_status"]
    said = f"no score: {status}"
    if row["score"] is not None:
        said = f"score {format_score(row['score'])}"
    text = row["response"]
    if len(text) > AUDIT_CHARACTERS:
        text = text[:AUDIT_CHARACTERS] + " …"
    return {
        **{name: row[name] for name in ("polarity", "kept", "instruction", "question")},
        "said": said,
        "response": text,
    }
