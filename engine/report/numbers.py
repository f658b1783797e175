"""The figures of a page, from a trait's evaluation, metadata and responses.

A figure is a row of `evaluation.parquet` as a dict: `value` with its 95 % interval or range, `low`
to `high`. None is not measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..judging import find_price
from ..outputs import Metadata
from ..records import POLARITIES
from ..storage import TraitFolder
from ..vectors import MIN_CLAIM_GROUPS, MIN_CLAIM_ROWS, read_evaluation

if TYPE_CHECKING:
    import polars as pl

FARTHEST = 5
"""Other traits listed of each where they are many."""
AUDITED = 4
"""Responses shown of each side: so many kept, left out, and without a score."""
SHOWN_ELSEWHERE = {
    "coherence histogram",
    "counts",
    "cost",
    "files_sha256",
    "instruction_index",
    "judge auroc",
    "judge auroc_interval",
    "judge histogram",
    "layers",
    "question_index",
    "sample_ids",
    "sha256",
}
"""What metadata.json holds beside settings."""

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")

Figure = dict[str, Any]


class TraitFigures:
    """What the files of one trait say.

    Raise UsageError where metadata or evaluation is missing or stale.
    """

    def __init__(self, folder: TraitFolder, pool: str) -> None:
        self.name = folder.name
        self.metadata = Metadata.read(folder)
        evaluation = read_evaluation(folder, self.metadata, pool)
        self.notes = evaluation.notes
        self.best = evaluation.recommendation
        self._table = evaluation.table
        cosines = self._table.filter(measure="cosine")
        self.methods = list(cosines["method"].unique(maintain_order=True))
        self.layers = list(cosines["layer"].unique(maintain_order=True))
        held_out = self._table.filter(measure="auroc")
        self.splits = list(held_out["split"].unique(maintain_order=True))
        """What was held out, the split that chose first."""

    def rows(self, measure: str, **where: Any) -> pl.DataFrame:
        """Return the figures of a measure with these split, method, layer or other."""
        return self._table.filter(measure=measure, **where)

    def find(self, measure: str, **where: Any) -> Figure:
        """Return the only such figure; one that was not measured where there is no row of it."""
        found = self.rows(measure, **where).to_dicts()
        if not found:
            return {"value": None, "low": None, "high": None}
        return dict(found[0])

    def count(self, measure: str, **where: Any) -> int:
        """Return the only such figure, of a count."""
        return int(self.rows(measure, **where)["value"].item())

    def peak(self, method: str) -> Figure:
        """Return the highest AUROC by layer of a method, by the first split."""
        rows = self.rows("auroc", split=self.splits[0], method=method)
        top = rows["value"].to_numpy().argmax()
        return dict(rows.row(int(top), named=True))

    @property
    def comparison_layer(self) -> int:
        """Where methods are compared: the recommended layer, else the middle one."""
        if self.best:
            return self.best.layer
        return int(self.layers[len(self.layers) // 2])


# --- of the evaluation ---


def choice(figures: TraitFigures) -> dict[str, Any]:
    """Return what the recommendation rests on; nothing where there is none."""
    best = figures.best
    if best is None:
        return {}
    at = {"split": best.split, "method": best.method, "layer": best.layer}
    random = {"split": best.split, "layer": best.layer}
    other_split = "instruction"
    if best.split == other_split:
        other_split = "question"
    found: dict[str, Any] = {
        "n_pos": figures.count("rows", other="pos"),
        "n_neg": figures.count("rows", other="neg"),
        "n_groups": figures.count("groups", split=best.split),
        "candidates": figures.count("candidates"),
        "auroc": figures.find("auroc", **at),
        "selected": figures.find("selected_auroc", split=best.split),
        "shuffled": figures.find("shuffled_auroc", **at),
        "random": figures.find("random_auroc", **random),
        "over_random": figures.find("over_random"),
        "other": figures.find("selected_auroc", split=other_split),
        "other_split": other_split,
    }
    few_rows = min(found["n_pos"], found["n_neg"]) < MIN_CLAIM_ROWS
    few_groups = found["n_groups"] < MIN_CLAIM_GROUPS
    found["too_few"] = few_rows or few_groups
    return found


def method_rows(figures: TraitFigures) -> list[dict[str, Any]]:
    """Return each method's figures at its best layer, the recommended one's at that layer."""
    rows = []
    for method in figures.methods:
        if not figures.splits:
            break
        layer = figures.peak(method)["layer"]
        if figures.best and figures.best.method == method:
            layer = figures.best.layer
        at = {"method": method, "layer": layer}
        row: dict[str, Any] = dict(at)
        row["auroc"] = []
        for split in figures.splits:
            row["auroc"].append(figures.find("auroc", split=split, **at))
        for measure in ("accuracy", "cohens_d", "shuffled_auroc"):
            row[measure] = figures.find(measure, split=figures.splits[0], **at)
        rows.append(row)
    return rows


# --- of the metadata ---


def judge_name(judge: str | None, model: str) -> str:
    """Return who judged responses of `model`, as a page names it."""
    if judge is None:
        return "an unknown judge"
    if judge == "local":
        return f"{model} itself"
    return judge.removeprefix("local:")


def yields(metadata: Metadata) -> dict[str, list[int]]:
    """Return counts of pos and neg by what became of the responses, without lines of zeros."""
    found: dict[str, list[int]] = {}
    for side in POLARITIES:
        counts = metadata.counts[side]
        named = {"planned": counts["planned"]}
        for kind, word in (("responses", "response"), ("verdicts", "verdict")):
            for status, count in counts[kind].items():
                named[f"{word}: {status}"] = count
        named["passed the judge"] = counts["kept"]
        named["captured"] = counts["captured"]
        named["capture failed"] = counts["capture_failed"]
        for name, count in named.items():
            found.setdefault(name, []).append(count)
    found = {name: sides for name, sides in found.items() if any(sides)}
    # What passed and could not be captured is in no file: it is not kept.
    found["kept"] = [metadata.n_examples_pos, metadata.n_examples_neg]
    return found


def dollars(metadata: Metadata) -> float | None:
    """Return what judging cost at most: verdicts do not say which tokens a cache made cheaper."""
    price = find_price(metadata.judge["model"] or "")
    if price is None:
        return None
    cost = metadata.cost
    return price.dollars(cost["input tokens"], 0, cost["output tokens"])


def settings(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield name and value of what metadata.json holds and the page does not show elsewhere."""
    for key, value in values.items():
        name = f"{path}{key}"
        if name in SHOWN_ELSEWHERE or value is None:
            continue
        if isinstance(value, dict):
            yield from settings(value, f"{name} ")
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value))
        elif isinstance(value, float):
            yield name, f"{value:.2g}" if _measured(name) else str(value).removesuffix(".0")
        else:
            yield name, moment(str(value))


def moment(text: str) -> str:
    """Return a UTC time to the minute as people write it; another text as it is."""
    return text[:16].replace("T", " ") + " UTC" if _TIME.fullmatch(text) else text


def _measured(name: str) -> bool:
    """Return whether a setting is a figure and not what was asked for."""
    return name.startswith("self_check ")


# --- of the responses ---


def audit(responses: pl.DataFrame) -> list[dict[str, Any]]:
    """Return rows of `exported_table` to read: of each side, evenly spread over the scores."""
    rows = []
    for side in POLARITIES:
        mine = responses.filter(polarity=side).sort("score", "sample_id")
        scored = mine.drop_nulls("score")
        kept = scored.filter(kept=True)
        left_out = scored.filter(kept=False)
        unscored = mine.filter(mine["score"].is_null())
        for stratum in (kept, left_out, unscored):
            count = min(AUDITED, len(stratum))
            spread = np.linspace(0, len(stratum) - 1, count)
            chosen = spread.round().astype(int)
            rows += stratum[chosen].to_dicts()
    return rows


def farthest(transfer: pl.DataFrame) -> list[dict[str, Any]]:
    """Return for each trait its own AUROC and the others that its vector tells apart best.

    Best is farthest from one half, either way. Pairs that were not measured are left out.
    """
    import polars as pl

    away = (pl.col("value") - 0.5).abs()
    found = []
    for (name,), rows in transfer.group_by("trait", maintain_order=True):
        own = rows.filter(target=name).to_dicts()[0]
        others = rows.filter(pl.col("target") != name, pl.col("value").is_not_null())
        others = others.sort(away, descending=True, maintain_order=True)
        found.append({"trait": name, "own": own, "others": others.head(FARTHEST).to_dicts()})
    return found
