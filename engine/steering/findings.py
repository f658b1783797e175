"""What a study found: its claim of a vector in one sentence, and the files that this rests on.

steering.parquet has its figures, responses.csv its texts.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import csv_line, write_atomic
from ..statistics import Estimate
from ..storage import SCHEMA_VERSION, TraitFolder
from ..vectors import read_table, write_table
from .conditions import PROMPT, UNSTEERED, Condition, ablated
from .figures import COLUMNS, Answers, furthest, known, read_answers, rows
from .history import remember, whole
from .study import Study

if TYPE_CHECKING:
    import polars as pl

CSV_COLUMNS = (
    "kind",
    "method",
    "layer",
    "positions",
    "coefficient",
    "question",
    "instruction",
    "response",
    "trait_score",
    "coherence",
)
Samples = tuple[tuple[str, tuple[str, ...]], ...]
LEAST = 5
"""Questions with scores, and random vectors with them, that a claim needs: of fewer, scores that
are no more normal than a judge's say too little of what one more would do."""
_SHOWN = 4
"""Questions whose answers are shown side by side."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The effect of the first target's vector, as far out as its texts are coherent."""

    method: str
    layer: int
    coefficient: float | None
    """The largest whose coherence holds; None where not even the smallest does."""
    has_effect: bool
    """Whether the score rises above unsteered, and by more than one more random vector would raise
    it: both intervals lie above 0."""
    sentence: str
    why: tuple[str, ...] = ()
    """What it rests on, a figure each, and what is missing."""
    n_missing: int = 0
    """Responses and verdicts that were given up."""

    @property
    def text(self) -> str:
        """The sentence, and the reasons as a list below it."""
        return "\n".join([self.sentence, *(f"- {line}" for line in self.why)])


def make_claim(study: Study, answers: Answers) -> Claim:
    """Return what the study says of its first target, the one that was to be tried."""
    target = study.vectors.targets[0]
    place = (target.method, target.layer)
    name = f"{target.method} at layer {target.layer}"
    best = furthest(answers, place, study.asked.coherence)
    least = f"{study.asked.coherence:g}"
    if best is None:
        smallest = min((c for c in study.grid[place] if c > 0), default=0.0)
        said = (
            f"No effect can be stated: {name} breaks coherence (below {least}) at the smallest "
            f"coefficient tried, {smallest:g}; try smaller ones."
        )
        unsteered, _ = answers.mean(answers.coherence, UNSTEERED)
        if unsteered.value < study.asked.coherence:
            said = (
                f"No effect can be stated: unsteered answers have a coherence of "
                f"{unsteered.value:.0f} themselves, below {least}, so no coefficient can hold it; "
                "give a lower `coherence`."
            )
        elif not smallest:
            said = f"No effect can be stated: no positive coefficient of {name} was tried."
        elif not known(answers, place, smallest):
            said = (
                f"No effect can be stated: the coherence of {name} at the smallest coefficient "
                f"tried, {smallest:g}, is not known; none of its answers has a score of it."
            )
        return Claim(*place, None, has_effect=False, sentence=said)
    over, _ = answers.difference(best, UNSTEERED)
    beyond, _ = answers.over_random(best)
    few = _too_few(answers, best)
    has_effect = over.low > 0 and beyond.low > 0 and not few
    verdict = "The vector steers" if has_effect else "No effect is shown"
    if few:
        verdict = "Too few answers for a claim"
    sentence = (
        f"{verdict}: {name}, added at {best.coefficient:g} of the residual norm to {_where(best)}."
    )
    why = (*few, *_figures(answers, best, over, beyond, least))
    if not has_effect:
        why += _of_judge(answers)
    if ablated(*place) in answers.conditions:
        why += _ablated(answers, ablated(*place), study.asked.coherence)
    return Claim(*place, best.coefficient, has_effect=has_effect, sentence=sentence, why=why)


def write_study(study: Study) -> tuple[Claim, Samples]:
    """Write a study's figures and texts, those of earlier commands among them.

    Return what it says, and answers side by side.
    """
    remember(study)
    study = whole(study)
    answers = read_answers(study)
    claim = make_claim(study, answers)
    given_up = study.given_up()
    missing = tuple(f"{n} {what}: no figure counts them" for what, n in given_up.items())
    claim = replace(claim, why=(*claim.why, *missing), n_missing=sum(given_up.values()))
    texts = _texts(study)
    write_atomic(study.folder.path / "responses.csv", _csv(study, answers, texts))
    samples = _side_by_side(study, answers, texts)
    facts = {
        "claim": asdict(claim),
        "samples": samples,
        "columns": [str(c) for c in _shown_conditions(study, answers)],
        "pool": study.pool,
        "activations_sha256": study.activations_sha256,
        "model": study.record.sampling.model,
        "judge": study.settings.judge.model,
        "coherence_by": "likelihood" if study.settings.judge.is_local else "judge",
        "coherence_least": study.asked.coherence,
        "n_examples": study.asked.n_examples,
        "n_random": study.asked.n_random,
        "n_questions": min(len(study.trait.questions), study.asked.n_examples),
        "norms": {f"{t.method} {t.layer}": t.norm for t in study.vectors.targets},
        "schema_version": SCHEMA_VERSION,
    }
    write_table(study.owner.steering_table, _table(study, answers), facts)
    return claim, samples


def _table(study: Study, answers: Answers) -> pl.DataFrame:
    import polars as pl

    schema = dict.fromkeys(COLUMNS, pl.String)
    schema |= dict.fromkeys(("coefficient", "value", "low", "high"), pl.Float64)
    schema |= dict.fromkeys(("layer", "n"), pl.Int32)
    return pl.DataFrame(list(rows(study, answers)), schema=schema).fill_nan(None)


def read_study(folder: TraitFolder) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return a trait's figures of steering, in `COLUMNS`, and the facts beside them.

    Raise UsageError where there are none, or the file was changed.
    """
    return read_table(folder.steering_table, COLUMNS, folder.step("steer"))


def _texts(study: Study) -> dict[int, str]:
    """Return the responses by their position in the plan."""
    state = study.state
    places = np.flatnonzero(~state.responses.pending())
    found = state.read_responses(places)
    return {int(p): r.response for p, r in zip(places, found, strict=True)}


def _csv(study: Study, answers: Answers, texts: dict[int, str]) -> bytes:
    plan, lines = study.plan, [csv_line(CSV_COLUMNS)]
    for place, text in texts.items():
        condition = plan.condition(place)
        sample = plan.sample(place, study.trait, study.prompts)
        head = [condition.kind, condition.method, condition.layer, condition.positions]
        if condition.layer < 0:
            head[2] = ""
        known = [answers.scores[place], answers.coherence[place]]
        said = ["" if np.isnan(value) else f"{value:.2f}" for value in known]
        cells = [f"{condition.coefficient:g}", sample.question, sample.instruction, text, *said]
        lines.append(csv_line([*head, *cells]))
    return "".join(lines).encode("utf-8", "backslashreplace")


def _shown_conditions(study: Study, answers: Answers) -> list[Condition]:
    """Return unsteered, the furthest coherent coefficient, one half way, and the next beyond."""
    target = study.vectors.targets[0]
    place = (target.method, target.layer)
    mine = [
        c for c in study.plan.conditions if c.kind == "steered" and (c.method, c.layer) == place
    ]
    positive = [c for c in mine if c.coefficient > 0]
    best = furthest(answers, place, study.asked.coherence)
    index = positive.index(best) if best in positive else -1
    chosen = {max(index - 1, 0), max(index, 0), min(index + 1, len(positive) - 1)}
    return [UNSTEERED, *(positive[i] for i in sorted(chosen) if positive)]


def _side_by_side(study: Study, answers: Answers, texts: dict[int, str]) -> Samples:
    """Return answers to a few questions, spread over the study's, under the shown conditions."""
    plan, found = study.plan, []
    shown = _shown_conditions(study, answers)
    asked = range(min(len(study.trait.questions), study.asked.n_examples))
    answered = [k for k in asked if all(int(plan.of(c)[k]) in texts for c in shown)]
    spread = np.linspace(0, len(answered) - 1, min(_SHOWN, len(answered)))
    for k in (answered[i] for i in spread.round().astype(int).tolist()):
        beside = tuple(texts.get(int(plan.of(c)[k]), "") for c in shown)
        found.append((study.trait.questions[k % len(study.trait.questions)], beside))
    return tuple(found)


def _figures(
    answers: Answers, best: Condition, over: Estimate, beyond: Estimate, least: str
) -> tuple[str, ...]:
    answers = answers.beside(best)
    plain, _ = answers.mean(answers.scores, UNSTEERED)
    score, _ = answers.mean(answers.scores, best)
    coherence, _ = answers.mean(answers.coherence, best)
    prompt, _ = answers.mean(answers.scores, PROMPT)
    return (
        f"it moves the mean score from {plain.value:.1f} to {score.value:.1f} ({_ranged(over)})",
        f"against random vectors of that length the difference is {_beyond(beyond)}",
        f"the pos instruction alone reaches {prompt.value:.1f}",
        f"coherence there is {coherence.value:.0f} (at least {least} holds)",
    )


def _too_few(answers: Answers, best: Condition) -> tuple[str, ...]:
    """Return in words which numbers are below those that a claim needs."""
    _, questions = answers.difference(best, UNSTEERED)
    counts = {
        "questions have scores both steered and unsteered": questions,
        "random vectors have scores (`n_random`; each needs an answer, `n_examples`)": len(
            answers.random_gaps(best)
        ),
    }
    return tuple(f"{n} {what}, {LEAST} are needed" for what, n in counts.items() if n < LEAST)


def _of_judge(answers: Answers) -> tuple[str, ...]:
    """Return that the judge could not have shown it, where it does not see the trait asked for."""
    control, _ = answers.difference(PROMPT, UNSTEERED)
    if control.low > 0:
        return ()
    if control.high < 0:
        opposite = (
            "the judge scores answers under the pos instruction below unsteered ones "
            f"({_ranged(control)}): it measures something else; take another judge"
        )
        return (opposite,)
    said = (
        "the judge does not tell the pos instruction itself from unsteered answers "
        f"({_ranged(control)}): it could not have shown an effect of that size; take another "
        "judge, or more examples"
    )
    return (said,)


def _ablated(answers: Answers, condition: Condition, least: float) -> tuple[str, ...]:
    score, _ = answers.mean(answers.scores, condition)
    below, _ = answers.difference(condition, PROMPT)
    beyond, _ = answers.over_random(condition)
    said = (
        "with its direction taken out of every state, the pos instruction reaches "
        f"{score.value:.1f} ({_ranged(below)}); against random directions taken out the difference "
        f"is {_beyond(beyond)}"
    )
    coherence, _ = answers.mean(answers.coherence, condition)
    intact, _ = answers.mean(answers.coherence, PROMPT)
    there = (
        f"coherence without that direction is {coherence.value:.0f}, under the pos instruction "
        f"alone {intact.value:.0f} (at least {least:g} holds)"
    )
    if coherence.value < min(least, intact.low):
        there += ": the texts break, and their scores say little of the trait"
    return (said, there)


def _where(condition: Condition) -> str:
    words = {"response": "the response", "prompt": "the prompt", "all": "prompt and response"}
    return words[condition.positions or "all"]


def _ranged(estimate: Estimate) -> str:
    return f"{estimate.value:+.1f}, 95 % interval {estimate.low:+.1f} to {estimate.high:+.1f}"


def _beyond(estimate: Estimate) -> str:
    """Return a difference from random vectors, or why it has no interval."""
    if math.isfinite(estimate.low):
        return _ranged(estimate)
    return (
        f"{estimate.value:+.1f}, without an interval: how far random vectors lie apart cannot be "
        "told from the answers to one vector or one question; take more (`n_random`, `n_examples`)"
    )
