"""The figures of a study: scores, coherence and side effects by condition, with their intervals.

Each is a mean over the questions' own means, with Student's 95 % interval of those: answers to one
question are alike, so they count as one. Differences between conditions are taken question by
question, which both have answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..statistics import Estimate, grouped_mean
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
MEASURES = (
    "trait_score",
    "coherence",
    "over_unsteered",
    "over_random",
    "over_prompt",
    "own_logprob",
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

    def mean(self, values: np.ndarray, condition: Condition) -> tuple[Estimate, int]:
        """Return the mean of values under a condition, and of how many responses."""
        mine = (self.of == self.conditions.index(condition)) & np.isfinite(values)
        return grouped_mean(values[mine], self.questions[mine]), int(mine.sum())

    def difference(self, one: Condition, other: Condition) -> tuple[Estimate, int]:
        """Return by how much the scores under one condition are above those under another."""
        found = []
        for condition in (one, other):
            index = self.conditions.index(condition)
            mine = (self.of == index) & np.isfinite(self.scores)
            groups, place = np.unique(self.questions[mine], return_inverse=True)
            sums = np.bincount(place, self.scores[mine], len(groups))
            found.append(dict(zip(groups.tolist(), sums / np.bincount(place), strict=True)))
        shared = sorted(found[0].keys() & found[1].keys())
        gaps = np.array([found[0][question] - found[1][question] for question in shared])
        return grouped_mean(gaps, np.arange(len(gaps))), len(gaps)


def read_answers(study: Study) -> Answers:
    """Return what is stored of a study's responses."""
    state, plan = study.state, study.plan
    verdicts = state.verdicts
    texts = study.trait.questions
    first = np.array([texts.index(text) for text in texts])  # copies of a question are one
    return Answers(
        conditions=plan.conditions,
        of=plan.instruction_index,
        questions=first[plan.question_index],
        scores=np.where(verdicts.having("scored"), verdicts.score, np.nan),
        coherence=study.coherence(),
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
    yield "trait_score", answers.mean(answers.scores, condition)
    yield "coherence", answers.mean(answers.coherence, condition)
    if condition != UNSTEERED:
        yield "over_unsteered", answers.difference(condition, UNSTEERED)
    if condition.kind in ("steered", "ablated"):
        yield "over_prompt", answers.difference(condition, PROMPT)
        if condition.coefficient > 0 and condition.method != RANDOM:
            yield "over_random", answers.difference(condition, random_beside(condition))
    known = study.side_effects(condition)
    if known:
        questions = [each.sample.question_index for each in study.answers()]
        values = np.array([np.nan if each is None else each for each in known])
        finite = np.isfinite(values)
        mean = grouped_mean(values[finite], np.array(questions)[finite])
        yield "own_logprob", (mean, int(finite.sum()))


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
