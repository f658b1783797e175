"""The figures of a study: scores, coherence and side effects by condition, with their intervals.

Each is a mean over the questions' own means, with Student's 95 % interval of those: answers to one
question are alike, so they count as one. Differences between conditions are taken question by
question, which both have answered. What is said against random vectors counts how far these lie
apart as well. Where all are equal, as scores at 0 often are, Student's interval has no width: it
is Wilson's then, as though each question could have had 0 or 100.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..statistics import Estimate, grouped_mean, wilson
from .conditions import PROMPT, RANDOM, UNSTEERED, Condition, largest_coherent
from .study import Study

COLUMNS = (
    "method",
    "layer",
    "kind",
    "positions",
    "coefficient",
    "measure",
    "value",
    "low",
    "high",
    "n",
)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What is known of each planned response; arrays are `[n]`, NaN where nothing is."""

    conditions: tuple[Condition, ...]
    of: np.ndarray
    """int: the condition."""
    questions: np.ndarray
    scores: np.ndarray
    coherence: np.ndarray
    vectors: np.ndarray
    """int: which of the random vectors, where its condition is of those."""

    def mean(self, values: np.ndarray, condition: Condition) -> tuple[Estimate, int]:
        """Return the mean of values under a condition, and of how many responses."""
        mine = (self.of == self.conditions.index(condition)) & np.isfinite(values)
        found = grouped_mean(values[mine], self.questions[mine])
        n = len(np.unique(self.questions[mine]))
        if _has_width(found):
            return found, int(mine.sum())
        low, high = _reach(found.value, n)
        return Estimate(found.value, low, high), int(mine.sum())

    def beside(self, condition: Condition) -> Answers:
        """Return what is known of the questions whose answers have scores under a condition."""
        mine = (self.of == self.conditions.index(condition)) & np.isfinite(self.scores)
        scores = np.where(np.isin(self.questions, self.questions[mine]), self.scores, np.nan)
        return replace(self, scores=scores)

    def difference(self, one: Condition, other: Condition) -> tuple[Estimate, int]:
        """Return by how much the scores under one condition are above those under another."""
        first, second = self._by_question(one), self._by_question(other)
        shared = sorted(first.keys() & second.keys())
        ours = np.array([first[question] for question in shared])
        theirs = np.array([second[question] for question in shared])
        found, n = grouped_mean(ours - theirs, np.arange(len(shared))), len(shared)
        if _has_width(found):
            return found, n
        return _apart(float(ours.mean()), float(theirs.mean()), n), n

    def over_random(self, condition: Condition) -> tuple[Estimate, int]:
        """Return by how much the scores are above those under random vectors.

        A vector that does no more than random ones is one more of them, so the 95 % interval is
        where the difference from one more would lie: s sqrt(1 + 1 / k) wide, by Student's t on
        k - 1 degrees. s^2 is the variance between what the k vectors do, each over the answers
        without a vector to its own questions; that each has few answers is in it. How sure the
        scores under the condition are themselves is another part, and the two are added as
        independent. It is without end for one vector or question.
        """
        from scipy.stats import t

        beside = random_beside(condition)
        gap, n = self.difference(condition, beside)
        over, n_own = self.difference(condition, _plain(condition))
        means = self.random_gaps(condition)
        k = len(means)
        if min(n, n_own, k) < 2:
            ends = (-math.inf, math.inf) if n else (math.nan, math.nan)
            return Estimate(gap.value, *ends), n
        if not means.var():  # so few are known, and how far more may lie apart is not
            theirs, _ = self.mean(self.scores, beside)
            return _apart(theirs.value + gap.value, theirs.value, k), n
        apart = float(t.ppf(0.975, k - 1)) * math.sqrt((1 + 1 / k) * means.var(ddof=1))
        half = math.hypot(apart, (over.high - over.low) / 2)
        return Estimate(gap.value, gap.value - half, gap.value + half), n

    def random_gaps(self, condition: Condition) -> np.ndarray:
        """Return how far the scores under each random vector with any, beside a condition, are
        above those without one, `[k]`."""
        plain = self._by_question(_plain(condition))
        mine = self.of == self.conditions.index(random_beside(condition))
        mine &= np.isfinite(self.scores) & np.isin(self.questions, list(plain))
        below = np.array([plain[each] for each in self.questions[mine].tolist()])
        _, vector, answers = np.unique(self.vectors[mine], return_inverse=True, return_counts=True)
        return np.bincount(vector, self.scores[mine] - below, len(answers)) / answers

    def _by_question(self, condition: Condition) -> dict[int, float]:
        """Return the mean score of each question under a condition."""
        mine = (self.of == self.conditions.index(condition)) & np.isfinite(self.scores)
        groups, place = np.unique(self.questions[mine], return_inverse=True)
        means = np.bincount(place, self.scores[mine], len(groups)) / np.bincount(place)
        return dict(zip(groups.tolist(), means.tolist(), strict=True))


def _plain(condition: Condition) -> Condition:
    """Return what a condition is without its vector: directions are taken out under the prompt."""
    return PROMPT if condition.kind == "ablated" else UNSTEERED


def read_answers(study: Study) -> Answers:
    """Return what is stored of a study's responses."""
    state, plan = study.state, study.plan
    verdicts = state.verdicts
    return Answers(
        conditions=plan.conditions,
        of=plan.instruction_index,
        questions=study.first[plan.question_index],
        scores=np.where(verdicts.having("scored"), verdicts.score, np.nan),
        coherence=study.coherence(),
        vectors=plan.k % study.vectors.n_random,
    )


def rows(study: Study, answers: Answers) -> Iterator[Row]:
    """Yield the figures of each condition, in `COLUMNS`."""
    for condition in answers.conditions:
        head = {
            "method": condition.method,
            "layer": condition.layer,
            "kind": condition.kind,
            "positions": condition.positions,
            "coefficient": condition.coefficient,
        }
        for measure, (estimate, n) in _measures(study, answers, condition):
            yield {**head, "measure": measure, **estimate._asdict(), "n": n}


def _measures(
    study: Study, answers: Answers, condition: Condition
) -> Iterator[tuple[str, tuple[Estimate, int]]]:
    yield "trait_score", _on_scale(answers.mean(answers.scores, condition))
    yield "coherence", _on_scale(answers.mean(answers.coherence, condition))
    if condition != UNSTEERED:
        yield "over_unsteered", answers.difference(condition, UNSTEERED)
    if condition.kind in ("steered", "ablated"):
        yield "over_prompt", answers.difference(condition, PROMPT)
        if condition.coefficient > 0 and condition.method != RANDOM:
            yield "over_random", answers.over_random(condition)
    known = study.side_effects(condition)
    if known:
        questions = study.first[[each.sample.question_index for each in study.answers()]]
        values = np.array([np.nan if each is None else each for each in known])
        finite = np.isfinite(values)
        mean = grouped_mean(values[finite], questions[finite])
        yield "own_logprob", (mean, int(finite.sum()))


def _has_width(found: Estimate) -> bool:
    """Return whether an interval has any width beyond rounding, or no end, or no value."""
    return not found.high - found.low < 1e-9


def _reach(value: float, n: int) -> tuple[float, float]:
    """Return Wilson's interval of a mean score of n, each of which could have been 0 or 100."""
    low, high = wilson(min(max(value / 100, 0.0), 1.0), n)
    return min(100 * low, value), max(100 * high, value)


def _apart(one: float, other: float, n: int) -> Estimate:
    """Return the difference of two mean scores of n each, with the interval of both their reaches.

    Newcombe 1998, Statistics in Medicine 17, method 10.
    """
    (low, high), (least, most) = _reach(one, n), _reach(other, n)
    gap = one - other
    below, above = math.hypot(one - low, most - other), math.hypot(high - one, other - least)
    return Estimate(gap, gap - below, gap + above)


def _on_scale(found: tuple[Estimate, int]) -> tuple[Estimate, int]:
    """Return a mean of scores with its interval, as far as scores reach."""
    (value, low, high), n = found
    return Estimate(value, max(low, 0.0), min(high, 100.0)), n


def random_beside(condition: Condition) -> Condition:
    """Return the condition of random vectors of the same length, layer and positions."""
    kind = "random" if condition.kind == "steered" else condition.kind
    return replace(condition, kind=kind, method=RANDOM)


def furthest(answers: Answers, place: tuple[str, int], least: float) -> Condition | None:
    """Return a target's largest coefficient whose mean coherence holds; None where none does."""
    mine = [c for c in answers.conditions if c.kind == "steered" and (c.method, c.layer) == place]
    means = {c.coefficient: answers.mean(answers.coherence, c)[0].value for c in mine}
    coefficient = largest_coherent(means, least)
    return next((c for c in mine if c.coefficient == coefficient), None)


def known(answers: Answers, place: tuple[str, int], coefficient: float) -> bool:
    """Return whether the coherence of a target at a coefficient is known."""
    mine = [c for c in answers.conditions if c.kind == "steered" and (c.method, c.layer) == place]
    return any(
        c.coefficient == coefficient and answers.mean(answers.coherence, c)[1] > 0 for c in mine
    )
