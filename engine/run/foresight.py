"""What a run says before anything loads: what is left to do, where, how long, for how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..models import ModelRef, Placement
from ..planning import job_of, judge_dollars, plan_run, work_words
from ..settings import RunSettings
from ..traits import FEW_QUESTIONS, Trait
from .trait_run import TraitRun


@dataclass(frozen=True, slots=True)
class Foresight:
    """What is left to generate."""

    said: str
    """The plan, as one paragraph."""
    seconds: float | None = None
    """Of generation, where the cards' speed is known."""


def foresee(
    ref: ModelRef,
    settings: RunSettings,
    runs: Sequence[TraitRun],
    placement: Placement | None,
    replicas: int = 1,
    *,
    thinks: bool = False,
) -> Foresight:
    """Return what is left to generate. `thinks`: a thought stands before each response.

    Prompts are counted in the model's own tokens. `placement` is that of each replica, None where
    they decide on machines of their own. Speed is foreseen of this machine's cards alone.
    """
    job = replace(
        job_of([run.trait for run in runs], settings),
        samples=sum(len(run.ungenerated()) for run in runs),
        unjudged=sum(len(run.unjudged()) for run in runs),
    )
    if thinks:
        job = replace(job, thought_tokens=settings.sampling.max_thinking_tokens)
    lengths = [length for run in runs for length in run.prompt_lengths()]
    if lengths:  # none where verdicts may still ask for another round
        job = replace(job, prompt_tokens=sum(lengths) / len(lengths), longest_prompt=max(lengths))
    if placement is not None and placement.limits is not None:
        plan = plan_run(ref.name, ref.config, settings, placement, job, replicas)
        known = plan.estimate
        return Foresight(str(plan), None if known is None else known.generation)
    where = "this CPU" if placement is not None else "the Ray cluster"
    where += f" in {replicas} replicas" * (replicas > 1)
    said = f"plan: {work_words(ref.name, job)}; on {where}, whose speed the first rows will show"
    dollars = judge_dollars(settings, job)
    return Foresight(f"{said}; judge about ${dollars:,.2f}" if dollars else said)


def foresee_verdicts(settings: RunSettings, runs: Sequence[TraitRun]) -> str:
    """Return what is left to judge of stored responses, and for how much."""
    job = replace(
        job_of([run.trait for run in runs], settings),
        samples=0,
        unjudged=sum(len(run.unjudged()) for run in runs),
    )
    dollars = judge_dollars(settings, job)
    said = f"plan: {job.verdicts:,} stored responses to judge, by {settings.judge.model}"
    return f"{said}; about ${dollars:,.2f}" if dollars else said


def few_questions(traits: Sequence[Trait], n_examples: int) -> str:
    """Say of the first trait that would be asked too few of its questions for a claim that it is.

    Empty where there is none. A definition with too few questions is for `check` to tell, and a
    first look at fewer responses than questions are needed claims nothing anyway.
    """
    for trait in traits:
        pairs, questions = len(trait.instructions), len(trait.questions)
        asked, enough = -(-n_examples // pairs), FEW_QUESTIONS * pairs
        if questions >= FEW_QUESTIONS <= n_examples and asked < FEW_QUESTIONS:
            return (
                f"`n_examples` {n_examples} asks {asked} of the {questions} questions of "
                f"{trait.name}, too few to claim anything of its vector: {FEW_QUESTIONS} are "
                f"needed, which take {enough} a side"
            )
    return ""
