"""Which method and layer to use, how well that choice does on unseen rows, and whether that is a
claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .fit import Vectors
from .held_out import HeldOut
from .measures import Measures
from .methods import METHODS
from .splits import Split, auroc, cohens_d, interval, once

MIN_CLAIM_ROWS = 10
"""Rows a side below which nothing is claimed."""
MIN_CLAIM_GROUPS = 10
"""Groups of the split that chooses (questions, as a rule) below which nothing is claimed."""
MIN_OTHER_GROUPS = 5
"""Groups of the other split (instruction pairs) below which no claim reaches to unseen ones: four
pairs that shift their rows by chance all shift them the right way once in sixteen."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The method and layer to use, and how well the choice does on unseen rows."""

    method: str
    layer: int
    split: str
    """What was held out when choosing: question, or instruction pair where there is only one
    question."""
    auroc: float | None
    """Corrected for choosing the best of many (see `evaluate_vectors`); None where no two folds can
    be left out."""
    low: float | None
    high: float | None
    claim: bool
    """Whether rows and groups suffice, the interval lies above 0.5 and shuffled labels, and random
    vectors are beaten."""
    general: bool
    """Whether the claim reaches to unseen groups of the other split too; else it is for these
    instructions only."""
    reason: str
    """A sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class _Nested:
    """What choosing the best reaches in folds that had no part in the choice."""

    split: Split
    value: float
    low: float
    high: float
    draws: np.ndarray
    """`[draws]`."""

    def __str__(self) -> str:
        return f"{self.value:.2f}, 95 % interval {self.low:.2f} to {self.high:.2f}, for unseen {self.split.name}s"


def recommend(
    measures: Measures, vectors: Vectors, splits: Sequence[Split], layers: Sequence[HeldOut]
) -> Recommendation | None:
    """Choose by the first split and add to `measures` what the choice rests on. None where only
    baselines were fitted.

    `layers` are the held-out scores at each of the vectors' layers.
    """
    candidates = [
        (i, j)
        for i, m in enumerate(vectors.methods)
        if METHODS[m].fit is not None
        for j in range(len(vectors.layers))
    ]
    if not candidates or not splits:
        return None
    split = splits[0]
    ranks = [_rank(layers[j].scores[0, i], split.labels, split.folds) for i, j in candidates]
    best = max(range(len(ranks)), key=ranks.__getitem__)
    i, j = candidates[best]
    method, layer = vectors.methods[i], vectors.layers[j]
    nested = [
        choose_nested(
            each,
            np.array([layers[j].scores[number, i] for i, j in candidates]),
            np.array([layers[j].nested[number][i] for i, j in candidates]),
        )
        for number, each in enumerate(splits)
    ]
    for each, found in zip(splits, nested, strict=True):
        value, low, high = (found.value, found.low, found.high) if found else (None, None, None)
        measures.add("selected_auroc", each.name, method, layer, value=value, low=low, high=high)
    measures.add("candidates", split.name, value=len(candidates))
    shuffled = float(layers[j].shuffled[i].mean()) if layers[j].shuffled[i].size else None
    first, other = nested[0], next(iter(nested[1:]), None)
    smaller = int(min(split.labels.sum(), (~split.labels).sum()))
    lack = _too_few(smaller, split)
    where = f"{method} at layer {layer}, the best of {len(candidates)}"
    if first is None:
        reason = (
            f"Too few rows for a claim: "
            f"{lack or 'with two folds left out a side has fewer than 2 rows'}; {where}, has "
            f"held-out AUROC {ranks[best][0]:.2f} for unseen {split.name}s, not corrected for "
            f"choosing it."
        )
        return Recommendation(
            method, layer, split.name, None, None, None, claim=False, general=False, reason=reason
        )
    margin, least, most, top = _over_random(first, layers[j].random[0])
    measures.add("over_random", split.name, method, layer, value=margin, low=least, high=most)
    claim = not lack and first.low > max(0.5, shuffled or 0.5) and least > 0
    general = (
        claim and other is not None and other.low > 0.5 and other.split.n_groups >= MIN_OTHER_GROUPS
    )
    only = f", for these {other.split.name}s only" if claim and other and not general else ""
    opening = (
        f"Use {where}{only}:"
        if claim
        else f"{f'Too few rows for a claim: {lack}' if lack else 'No claim'}; {where}:"
    )
    against = (
        f"shuffled labels give {shuffled:.2f}"
        if shuffled is not None
        else "labels could not be shuffled"
    )
    reason = (
        f"{opening} held-out AUROC (corrected for choosing the best) {first}, "
        f"{_beyond(split, other)}; {against}, "
        f"random vectors {first.value - margin:.2f} on average ({margin:.2f} less, {least:.2f} to "
        f"{most:.2f}) and "
        f"{top:.2f} at their 97.5th percentile."
    )
    return Recommendation(
        method,
        layer,
        split.name,
        first.value,
        first.low,
        first.high,
        claim=claim,
        general=general,
        reason=reason,
    )


def _beyond(split: Split, other: _Nested | None) -> str:
    """What is known of unseen groups of the other kind."""
    if other is None:
        return f"unseen {'instruction' if split.name == 'question' else 'question'}s not tested"
    few = other.split.n_groups < MIN_OTHER_GROUPS
    return f"and {other}" + (f", of which there are only {other.split.n_groups}" if few else "")


def _too_few(smaller: int, split: Split) -> str:
    if smaller >= MIN_CLAIM_ROWS and split.n_groups >= MIN_CLAIM_GROUPS:
        return ""
    return (
        f"{smaller} on the smaller side and {split.n_groups} {split.name}s, where {MIN_CLAIM_ROWS} "
        f"and "
        f"{MIN_CLAIM_GROUPS} are needed"
    )


def _rank(scores: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> tuple[float, float]:
    """What candidates are compared by: AUROC, and Cohen's d where that ties. Not measurable comes
    last."""
    weights = once(len(labels))
    found = (auroc(scores, labels, folds, weights)[0], cohens_d(scores, labels, weights)[0])
    first, second = np.nan_to_num(found, nan=-np.inf)
    return float(first), float(second)


def choose_nested(split: Split, outer: np.ndarray, inner: np.ndarray) -> _Nested | None:
    """Each fold scored by the candidate that does best without it.

    outer `[candidates, n]`: rows by fits without their fold. inner `[candidates, folds, n]`: see
    `HeldOut.nested`.
    """
    if not split.nestable:
        return None
    scores = np.empty(outer.shape[1])
    for index, test in enumerate(split.tests()):
        rest = ~test
        ranks = [_rank(each[index, rest], split.labels[rest], split.folds[rest]) for each in inner]
        scores[test] = outer[max(range(len(ranks)), key=ranks.__getitem__), test]
    value = float(auroc(scores, split.labels, split.folds, once(len(scores)))[0])
    draws = auroc(scores, split.labels, split.folds, split.draws)
    return _Nested(split, value, *interval(value, draws, split.n_effective), draws)


def _over_random(chosen: _Nested, random: np.ndarray) -> tuple[float, float, float, float]:
    """By how much the choice beats the mean of random vectors, `[vectors, n]`, with its interval,
    and their upper end.

    Paired: both are measured on the same draws of groups, so what makes a draw easy for all of them
    drops out.
    """
    split = chosen.split
    values = [float(auroc(each, split.labels, split.folds, once(len(each)))[0]) for each in random]
    draws = np.mean(
        [auroc(each, split.labels, split.folds, split.draws) for each in random], axis=0
    )
    margin = chosen.value - float(np.mean(values))
    return (margin, *interval(margin, chosen.draws - draws), float(np.percentile(values, 97.5)))
