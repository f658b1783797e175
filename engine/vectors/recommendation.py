"""Which method and layer to use, how well that choice does on unseen rows, and is it a claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from ..statistics import Estimate, estimate
from .fit import Vectors
from .held_out import HeldOut
from .splits import Split

Row = dict[str, Any]
"""A figure: measure, split, method, layer, other, value, low, high, as far as it has them."""
MIN_CLAIM_ROWS = 10
"""Rows a side below which nothing is claimed."""
MIN_CLAIM_GROUPS = 10
"""Groups of the split that chooses (questions, as a rule) below which nothing is claimed."""
MIN_OTHER_GROUPS = 5
"""Groups of the other split (instruction pairs) below which no claim reaches to unseen ones: four
pairs that shift their rows by chance all shift them the right way once in sixteen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The method and layer to use, and how well the choice does on unseen rows."""

    method: str
    layer: int
    split: str
    """What was held out when choosing: question, or instruction where there is one question."""
    auroc: float | None = None
    """Corrected for choosing the best of many (see `evaluate_vectors`); None where no two folds can
    be left out."""
    low: float | None = None
    high: float | None = None
    claim: bool = False
    """Whether rows and groups suffice, the interval is above 0.5 and shuffled labels, and random
    vectors are beaten."""
    general: bool = False
    """Whether the claim reaches to unseen groups of the other split too; else it is for these
    instructions only."""
    reason: str
    """A sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class Nested:
    """What choosing the best reaches in folds that had no part in the choice."""

    split: Split
    auroc: Estimate
    draws: ndarray
    """`[draws]`."""

    def __str__(self) -> str:
        value, low, high = self.auroc
        interval = f"95 % interval {low:.2f} to {high:.2f}"
        return f"{value:.2f}, {interval}, for unseen {self.split.name}s"


def recommend(vectors: Vectors, held: Sequence[HeldOut]) -> tuple[Recommendation | None, list[Row]]:
    """Return the choice by the first split, None without splits, and the figures it rests on."""
    if not held:
        return None, []
    first, split = held[0], held[0].split
    ranks = [split.rank(scores) for by_layer in first.own for scores in by_layer]
    best = _first_best(ranks)
    i, j = divmod(best, len(vectors.layers))
    method, layer = vectors.methods[i], vectors.layers[j]
    choice = f"{method} at layer {layer}, the best of {len(ranks)}"
    where: Row = {"split": split.name, "method": method, "layer": layer}
    rows: list[Row] = []
    nested = [choose_nested(each.split, each.scores) for each in held]
    for each, found in zip(held, nested, strict=True):
        figure: Row = found.auroc._asdict() if found else {}
        rows.append({"measure": "selected_auroc", **where, "split": each.split.name, **figure})
    rows.append({"measure": "candidates", "split": split.name, "value": len(ranks)})
    if nested[0] is None:
        lack = _too_few(split) or "with two folds left out a side has fewer than 2 rows"
        reason = (
            f"Too few rows for a claim: {lack}; {choice}, has held-out AUROC {ranks[best][0]:.2f} "
            f"for unseen {split.name}s, not corrected for choosing it."
        )
        return Recommendation(**where, reason=reason), rows
    baselines = _compare(nested[0], first.random[j], first.shuffled[i, j])
    rows.append({"measure": "over_random", **where, **baselines.margin._asdict()})
    conclusion = _conclude(choice, nested[0], next(iter(nested[1:]), None), baselines)
    return Recommendation(**where, **conclusion), rows


def choose_nested(split: Split, scores: ndarray) -> Nested | None:
    """Score each fold by the candidate that does best without it; None where that cannot be done.

    scores `[n_methods, n_layers, n_folds, n]`: `HeldOut.scores`.
    """
    if not split.nestable:
        return None
    candidates = scores.reshape(-1, *scores.shape[2:])
    chosen = np.empty(scores.shape[-1])
    for fold, test in enumerate(split.tests()):
        best = _first_best([split.rank(each[fold], ~test) for each in candidates])
        chosen[test] = candidates[best, fold, test]
    return Nested(split, split.figures(chosen)["auroc"], split.auroc_draws(chosen))


def _first_best(ranks: Sequence[tuple[float, float]]) -> int:
    return max(range(len(ranks)), key=ranks.__getitem__)


@dataclass(frozen=True, slots=True)
class _Baselines:
    """What a choice is held against."""

    margin: Estimate
    """By how much it beats the mean of random vectors."""
    random_mean: float
    random_top: float
    """97.5th percentile of random vectors."""
    shuffled: float | None
    """Mean AUROC with shuffled labels; None where they could not be shuffled."""


def _compare(chosen: Nested, random: ndarray, shuffled: ndarray) -> _Baselines:
    """Compare with random vectors `[vectors, n]` and AUROCs with shuffled labels `[shuffles]`.

    Paired: the choice and random vectors are measured on the same draws of groups, so what makes a
    draw easy for all of them drops out.
    """
    split = chosen.split
    values = [split.auroc(each) for each in random]
    draws = np.mean([split.auroc_draws(each) for each in random], axis=0)
    mean = float(np.mean(values))
    margin = estimate(chosen.auroc.value - mean, chosen.draws - draws)
    top = float(np.percentile(values, 97.5))
    return _Baselines(margin, mean, top, float(shuffled.mean()) if shuffled.size else None)


def _conclude(choice: str, chosen: Nested, other: Nested | None, baselines: _Baselines) -> Row:
    """Return the fields of a recommendation: AUROC, whether it is a claim, and how far it goes."""
    split, margin = chosen.split, baselines.margin
    lack = _too_few(split)
    chance, against = 0.5, "labels could not be shuffled"
    if baselines.shuffled is not None:
        chance = max(chance, baselines.shuffled)
        against = f"shuffled labels give {baselines.shuffled:.2f}"
    claim = not lack and chosen.auroc.low > chance and margin.low > 0
    general = False
    only = ""
    beyond = f"unseen {'instruction' if split.name == 'question' else 'question'}s not tested"
    if other is not None:
        enough = other.split.n_groups >= MIN_OTHER_GROUPS
        general = claim and enough and other.auroc.low > 0.5
        beyond = f"and {other}"
        if not enough:
            beyond += f", of which there are only {other.split.n_groups}"
        if not general:
            only = f", for these {other.split.name}s only"
    opening = f"Use {choice}{only}"
    if lack:
        opening = f"Too few rows for a claim: {lack}; {choice}"
    elif not claim:
        opening = f"No claim; {choice}"
    sentence = (
        f"{opening}: held-out AUROC (corrected for choosing the best) {chosen}, {beyond}; "
        f"{against}, random vectors {baselines.random_mean:.2f} on average ({margin.value:.2f} "
        f"less, {margin.low:.2f} to {margin.high:.2f}) and {baselines.random_top:.2f} at their "
        "97.5th percentile."
    )
    auroc, low, high = chosen.auroc
    found = {"auroc": auroc, "low": low, "high": high, "claim": claim, "general": general}
    return {**found, "reason": sentence}


def _too_few(split: Split) -> str:
    """Return what is too few for a claim, in words; empty where nothing is."""
    if split.smaller_side >= MIN_CLAIM_ROWS and split.n_groups >= MIN_CLAIM_GROUPS:
        return ""
    return (
        f"{split.smaller_side} on the smaller side and {split.n_groups} {split.name}s, where "
        f"{MIN_CLAIM_ROWS} and {MIN_CLAIM_GROUPS} are needed"
    )
