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
_UNTESTED = {"question": "instruction", "instruction": "question"}
"""By the split that chooses, the other one."""
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
    lack: str = ""
    """What is missing for a claim, in a few words; empty with one."""
    reason: str
    """A sentence: what to use, or why nothing is claimed."""
    why: tuple[str, ...] = ()
    """What it rests on, a figure each."""

    @property
    def text(self) -> str:
        """The sentence, and the reasons as a list below it."""
        return "\n".join([self.reason, *(f"- {line}" for line in self.why)])


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


def recommend(
    vectors: Vectors, held: Sequence[HeldOut], n_questions: int
) -> tuple[Recommendation | None, list[Row]]:
    """Return the choice by the first split, None without splits, and the figures it rests on.

    `n_questions`: how many the rows answer.
    """
    if not held:
        return None, []
    first, split = held[0], held[0].split
    ranks = split.ranks(_candidates(first.own))
    best = _first_best(ranks)
    i, j = divmod(best, len(vectors.layers))
    where: Row = {"method": vectors.methods[i], "layer": vectors.layers[j]}
    nested = {each.split.name: choose_nested(each.split, each.scores) for each in held}
    rows: list[Row] = []
    for name, found in nested.items():
        figure: Row = found.auroc._asdict() if found else {}
        rows.append({"measure": "selected_auroc", "split": name, **where, **figure})
    rows.append({"measure": "candidates", "split": split.name, "value": len(ranks)})
    where["split"] = split.name
    choice = "{method} at layer {layer}".format(**where)
    chosen, *others = nested.values()
    lack = _too_few(split, n_questions)
    if chosen is None and not lack:
        lack = "Too few rows for a claim: with two folds left out a side has fewer than 2"
    best_of = f"the best of {len(ranks)}"
    so_far = f"{lack}. {choice} is {best_of} so far."
    if chosen is None:
        return Recommendation(**where, lack=_few_words(lack), reason=so_far), rows
    margin, top = _over_random(chosen, first.random[j])
    rows.append({"measure": "over_random", **where, **margin._asdict()})
    other = next(iter(others), None)
    evidence = _Evidence(chosen, other, bool(others), margin, first.shuffled[i, j])
    auroc, low, high = chosen.auroc
    interval: Row = {"auroc": auroc, "low": low, "high": high}
    if lack:  # of so few, no figure is worth reading
        return Recommendation(**where, **interval, lack=_few_words(lack), reason=so_far), rows
    why = (
        f"held-out AUROC {chosen}, corrected for choosing {best_of}",
        evidence.reach,
        evidence.against,
        _beside_random(auroc, margin, top),
        *_tie(ranks, vectors),
    )
    return Recommendation(
        **where,
        **interval,
        lack="" if evidence.claim else evidence.doubt,
        claim=evidence.claim,
        general=evidence.general,
        reason=evidence.opening(choice, best_of),
        why=why,
    ), rows


def _beside_random(auroc: float, margin: Estimate, top: float) -> str:
    """Say what random vectors reach, and by how much that is less."""
    apart, low, high = margin
    word = "less"
    if apart < 0:
        apart, low, high = -apart, -high, -low
        word = "more"
    return (
        f"random vectors reach {auroc - margin.value:.2f} on average, {apart:.2f} {word} "
        f"({low:.2f} to {high:.2f} {word}), and {top:.2f} at their 97.5th percentile"
    )


def _tie(ranks: Sequence[tuple[float, float]], vectors: Vectors) -> list[str]:
    """Return a line where others separate the rows as well as the choice does, else nothing."""
    top = max(auroc for auroc, _ in ranks)
    n_layers = len(vectors.layers)
    tied = [place for place, (auroc, _) in enumerate(ranks) if auroc == top]
    if len(tied) < 2:
        return []
    layers = sorted({vectors.layers[place % n_layers] for place in tied})
    where = f"layer {layers[0]}"
    if len(layers) > 1:
        where = f"layers {layers[0]} to {layers[-1]}"
    line = f"a tie: {len(tied)} of {len(ranks)} have the same held-out AUROC of {top:.2f}"
    return [f"{line}, at {where}; this one has the widest gap between the sides"]


def choose_nested(split: Split, scores: ndarray) -> Nested | None:
    """Score each fold by the candidate that does best without it; None where that cannot be done.

    scores `[n_methods, n_layers, n_folds, n]`: `HeldOut.scores`.
    """
    if not split.nestable:
        return None
    candidates = _candidates(scores)
    chosen = np.empty(scores.shape[-1])
    for fold, test in enumerate(split.tests()):
        best = _first_best(split.ranks(candidates[:, fold], ~test))
        chosen[test] = candidates[best, fold, test]
    draws = split.auroc_draws(chosen)
    value = estimate(float(split.auroc(chosen)), draws, split.effective)
    return Nested(split, value, draws)


def _candidates(by_method_and_layer: ndarray) -> ndarray:
    """Return `[n_methods * n_layers, ...]`."""
    return by_method_and_layer.reshape(-1, *by_method_and_layer.shape[2:])


def _first_best(ranks: Sequence[tuple[float, float]]) -> int:
    return max(range(len(ranks)), key=ranks.__getitem__)


def _over_random(chosen: Nested, random: ndarray) -> tuple[Estimate, float]:
    """Return by how much the choice beats the mean of random vectors, and their 97.5th percentile.

    `random` is `[vectors, n]`. Paired: both are measured on the same draws of groups, so what makes
    a draw easy for all of them drops out.
    """
    split = chosen.split
    values, draws = split.auroc(random), split.auroc_draws(random).mean(axis=0)
    gain = chosen.auroc.value - float(values.mean())
    margin = estimate(gain, chosen.draws - draws)
    return margin, float(np.percentile(values, 97.5))


@dataclass(frozen=True, slots=True, eq=False)
class _Evidence:
    """What makes a choice a claim, or does not."""

    chosen: Nested
    other: Nested | None
    """By the other split; None where that cannot be measured."""
    tried: bool
    """Whether the other split could hold rows out, be it too few to correct for choosing."""
    margin: Estimate
    """By how much the choice beats the mean of random vectors."""
    shuffled: ndarray
    """AUROC with shuffled labels, `[shuffles]`."""

    @property
    def claim(self) -> bool:
        beats = self._beats_chance and self.margin.low > 0
        return beats and not _too_few(self.chosen.split)

    @property
    def _beats_chance(self) -> bool:
        chance = 0.5
        if self.shuffled.size:
            chance = max(chance, float(self.shuffled.mean()))
        return self.chosen.auroc.low > chance

    @property
    def doubt(self) -> str:
        """Why there is no claim."""
        return f"not shown to beat {'random vectors' if self._beats_chance else 'chance'}"

    @property
    def general(self) -> bool:
        if self.other is None or self.other.split.n_groups < MIN_OTHER_GROUPS:
            return False
        return self.claim and self.other.auroc.low > 0.5

    def opening(self, choice: str, best_of: str) -> str:
        if not self.claim:
            return f"No claim. {choice} is {best_of}, and {self.doubt}."
        if self.general:
            return f"Use {choice}."
        return f"Use {choice}, for these {_UNTESTED[self.chosen.split.name]}s only."

    @property
    def reach(self) -> str:
        """What is known of unseen groups of the other split."""
        if self.other is None:
            few = " so that the choice could be corrected" if self.tried else ""
            return f"unseen {_UNTESTED[self.chosen.split.name]}s not tested{few}"
        few = ""
        if self.other.split.n_groups < MIN_OTHER_GROUPS:
            few = f", of which there are only {self.other.split.n_groups}"
        return f"{self.other}{few}"

    @property
    def against(self) -> str:
        if not self.shuffled.size:
            return "labels could not be shuffled"
        return f"shuffled labels give {self.shuffled.mean():.2f}"


def _few_words(lack: str) -> str:
    return f"{lack[:1].lower()}{lack[1:]}".replace(" for a claim", "")


def _too_few(split: Split, n_questions: int = 0) -> str:
    """Return what is too few for a claim, in words; empty where nothing is."""
    lacking = {}
    if split.smaller_side < MIN_CLAIM_ROWS:
        lacking["rows"] = f"{split.smaller_side} on the smaller side, {MIN_CLAIM_ROWS} are needed"
    if split.n_groups < MIN_CLAIM_GROUPS:
        beside = "" if split.compared.all() else " in folds with both sides"
        what, found = f"{split.name}s", f"{split.n_groups}{beside}"
        if n_questions == 1:  # what is held out instead is never so many
            what, found = "questions", "1 answered"
        lacking[what] = f"{found}, {MIN_CLAIM_GROUPS} are needed"
    if not lacking:
        return ""
    if len(lacking) == 1:
        [(name, words)] = lacking.items()
        return f"Too few {name} for a claim: {words}"
    words = "; ".join(f"{name}: {found}" for name, found in lacking.items())
    return f"Too few {' and '.join(lacking)} for a claim ({words})"
