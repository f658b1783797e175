"""Which method and layer to use, how well that choice does on unseen rows, and is it a claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy import ndarray

from ..statistics import Estimate, estimate
from .fit import Vectors
from .held_out import HeldOut
from .measures import Measures
from .splits import Split

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
    """What was held out when choosing: question, or instruction pair where there is one question."""
    auroc: float | None
    """Corrected for choosing the best of many (see `evaluate_vectors`); None where no two folds can
    be left out."""
    low: float | None
    high: float | None
    claim: bool
    """Whether rows and groups suffice, the interval is above 0.5 and shuffled labels, and random
    vectors are beaten."""
    general: bool
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


@dataclass(frozen=True, slots=True, eq=False)
class _Evidence:
    """What speaks for the choice of a method and layer."""

    choice: str
    """In words."""
    chosen: Nested
    """By the split that chose."""
    other: Nested | None
    """By the other split, None where there is none or no two of its folds can be left out."""
    shuffled: float | None
    """Mean AUROC with shuffled labels."""
    margin: Estimate
    """By how much the choice beats the mean of random vectors."""
    random_top: float
    """97.5th percentile of the random vectors."""

    @property
    def claim(self) -> bool:
        chance = max(0.5, self.shuffled or 0.5)
        beats = self.chosen.auroc.low > chance and self.margin.low > 0
        return beats and not _too_few(self.chosen.split)

    @property
    def general(self) -> bool:
        if self.other is None or self.other.split.n_groups < MIN_OTHER_GROUPS:
            return False
        return self.claim and self.other.auroc.low > 0.5

    @property
    def sentence(self) -> str:
        against = "labels could not be shuffled"
        if self.shuffled is not None:
            against = f"shuffled labels give {self.shuffled:.2f}"
        gain, low, high = self.margin
        random = self.chosen.auroc.value - gain
        return (
            f"{self._opening}: held-out AUROC (corrected for choosing the best) {self.chosen}, "
            f"{self._beyond}; {against}, random vectors {random:.2f} on average ({gain:.2f} less, "
            f"{low:.2f} to {high:.2f}) and {self.random_top:.2f} at their 97.5th percentile."
        )

    @property
    def _opening(self) -> str:
        lack = _too_few(self.chosen.split)
        if lack:
            return f"Too few rows for a claim: {lack}; {self.choice}"
        if not self.claim:
            return f"No claim; {self.choice}"
        if self.other is None or self.general:
            return f"Use {self.choice}"
        return f"Use {self.choice}, for these {self.other.split.name}s only"

    @property
    def _beyond(self) -> str:
        """What is known of unseen groups of the other kind."""
        if self.other is None:
            untested = {"question": "instruction", "instruction": "question"}
            return f"unseen {untested[self.chosen.split.name]}s not tested"
        count = self.other.split.n_groups
        if count < MIN_OTHER_GROUPS:
            return f"and {self.other}, of which there are only {count}"
        return f"and {self.other}"


def recommend(
    measures: Measures, vectors: Vectors, splits: Sequence[Split], layers: Sequence[HeldOut]
) -> Recommendation | None:
    """Choose by the first split and add what the choice rests on to `measures`; None without splits.

    `layers` are the held-out scores at each of the vectors' layers.
    """
    if not splits:
        return None
    split = splits[0]
    candidates = list(product(range(len(vectors.methods)), range(len(vectors.layers))))
    ranks = [split.rank(layers[j].scores[0, i]) for i, j in candidates]
    best = max(range(len(ranks)), key=ranks.__getitem__)
    i, j = candidates[best]
    method, layer = vectors.methods[i], vectors.layers[j]
    nested = []
    for number, each in enumerate(splits):
        outer = np.array([layers[j].scores[number, i] for i, j in candidates])
        inner = np.array([layers[j].nested[number][i] for i, j in candidates])
        found = choose_nested(each, outer, inner)
        nested.append(found)
        figure: Sequence[float] = found.auroc if found else ()
        measures.add("selected_auroc", *figure, split=each.name, method=method, layer=layer)
    measures.add("candidates", len(candidates), split=split.name)
    choice = f"{method} at layer {layer}, the best of {len(candidates)}"
    chosen = nested[0]
    if chosen is None:
        reason = _uncorrected(split, choice, ranks[best][0])
        return Recommendation(method, layer, split.name, None, None, None, False, False, reason)
    margin, top = _over_random(chosen, layers[j].random[0])
    measures.add("over_random", *margin, split=split.name, method=method, layer=layer)
    shuffled = layers[j].shuffled[i]
    evidence = _Evidence(
        choice=choice,
        chosen=chosen,
        other=next(iter(nested[1:]), None),
        shuffled=float(shuffled.mean()) if shuffled.size else None,
        margin=margin,
        random_top=top,
    )
    claim, general = evidence.claim, evidence.general
    figures = chosen.auroc
    return Recommendation(method, layer, split.name, *figures, claim, general, evidence.sentence)


def choose_nested(split: Split, outer: ndarray, inner: ndarray) -> Nested | None:
    """Score each fold by the candidate that does best without it; None where that cannot be done.

    outer `[candidates, n]`: rows by fits without their fold. inner `[candidates, folds, n]`: see
    `HeldOut.nested`.
    """
    if not split.nestable:
        return None
    scores = np.empty(outer.shape[1])
    for index, test in enumerate(split.tests()):
        ranks = [split.rank(each[index], ~test) for each in inner]
        best = max(range(len(ranks)), key=ranks.__getitem__)
        scores[test] = outer[best, test]
    draws = split.auroc_draws(scores)
    return Nested(split, estimate(split.auroc(scores), draws, split.n_effective), draws)


def _uncorrected(split: Split, choice: str, auroc: float) -> str:
    lack = _too_few(split) or "with two folds left out a side has fewer than 2 rows"
    return (
        f"Too few rows for a claim: {lack}; {choice}, has held-out AUROC {auroc:.2f} for unseen "
        f"{split.name}s, not corrected for choosing it."
    )


def _too_few(split: Split) -> str:
    """Return what is too few for a claim, in words; empty where nothing is."""
    if split.smaller_side >= MIN_CLAIM_ROWS and split.n_groups >= MIN_CLAIM_GROUPS:
        return ""
    return (
        f"{split.smaller_side} on the smaller side and {split.n_groups} {split.name}s, where "
        f"{MIN_CLAIM_ROWS} and {MIN_CLAIM_GROUPS} are needed"
    )


def _over_random(chosen: Nested, random: ndarray) -> tuple[Estimate, float]:
    """Return by how much the choice beats the mean of random vectors, and their 97.5th percentile.

    `random` is `[vectors, n]`. Paired: both are measured on the same draws of groups, so what makes
    a draw easy for all of them drops out.
    """
    split = chosen.split
    values = [split.auroc(each) for each in random]
    draws = np.mean([split.auroc_draws(each) for each in random], axis=0)
    margin = estimate(chosen.auroc.value - float(np.mean(values)), chosen.draws - draws)
    return margin, float(np.percentile(values, 97.5))
