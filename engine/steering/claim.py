"""What a study says of a vector: one sentence, and the figures that it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..statistics import Estimate
from .conditions import PROMPT, UNSTEERED, Condition, ablated
from .figures import Answers, furthest
from .study import Study


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
    """What it rests on, a figure each."""

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
        smallest = min(c for c in study.grid[place] if c > 0) if _has_positive(study) else 0.0
        said = (
            f"No effect can be stated: {name} breaks coherence (below {least}) at the smallest "
            f"coefficient tried, {smallest:g}; try smaller ones."
        )
        if not smallest:
            said = f"No effect can be stated: no positive coefficient of {name} was tried."
        return Claim(*place, None, has_effect=False, sentence=said)
    over, _ = answers.difference(best, UNSTEERED)
    beyond, _ = answers.over_random(best)
    has_effect = over.low > 0 and beyond.low > 0
    verdict = "The vector steers" if has_effect else "No effect is shown"
    sentence = (
        f"{verdict}: {name}, added at {best.coefficient:g} of the residual norm to {_where(best)}."
    )
    why = _figures(answers, best, over, beyond, least)
    if not has_effect:
        why += _of_judge(answers)
    if study.asked.ablate:
        why += _ablated(answers, ablated(*place))
    return Claim(*place, best.coefficient, has_effect=has_effect, sentence=sentence, why=why)


def _has_positive(study: Study) -> bool:
    return any(c > 0 for coefficients in study.grid.values() for c in coefficients)


def _figures(
    answers: Answers, best: Condition, over: Estimate, beyond: Estimate, least: str
) -> tuple[str, ...]:
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


def _of_judge(answers: Answers) -> tuple[str, ...]:
    """Return that the judge could not have shown it, where it does not see the trait asked for."""
    control, _ = answers.difference(PROMPT, UNSTEERED)
    if control.low > 0:
        return ()
    said = (
        "the judge does not tell the pos instruction itself from unsteered answers "
        f"({_ranged(control)}): it could not have shown an effect of that size; take another "
        "judge, or more examples"
    )
    return (said,)


def _ablated(answers: Answers, condition: Condition) -> tuple[str, ...]:
    score, _ = answers.mean(answers.scores, condition)
    below, _ = answers.difference(condition, PROMPT)
    beyond, _ = answers.over_random(condition)
    said = (
        "with its direction taken out of every state, the pos instruction reaches "
        f"{score.value:.1f} ({_ranged(below)}); against random directions taken out the difference "
        f"is {_beyond(beyond)}"
    )
    return (said,)


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
