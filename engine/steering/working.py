"""A study's work on loaded models: responses, verdicts, and what the engine alone can tell."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ..errors import FailedSamplesError, TraitmillError
from ..generation import Shift
from ..records import Response, Sample
from ..run import Backends, Pipeline, Progress, on_thread
from .conditions import Condition
from .fluency import shuffled
from .history import whole
from .plan import StudyPlan, Vectors, shift_at, shift_of
from .study import Study
from .study_run import StudyRun


class Steerable(Protocol):
    """What a study needs of an engine; `generation.SteeredEngine` is one."""

    @property
    def max_in_flight(self) -> int: ...
    async def load_vectors(self, vectors: Sequence[tuple[int, np.ndarray]]) -> None: ...
    async def steered(self, sample: Sample, shift: Shift | None) -> Response: ...
    async def logprobs(
        self, prompt: Sequence[int], response: Sequence[int], shift: Shift | None
    ) -> tuple[float, ...] | None: ...


class SteeredGenerator:
    """Makes a plan's responses, each under its condition.

    A response's `logprobs` are the unsteered model's, after the question without an instruction and
    the thought that it followed.
    """

    def __init__(self, engine: Steerable, study: Study, plan: StudyPlan) -> None:
        self._engine, self._study, self._plan = engine, study, plan

    @property
    def max_in_flight(self) -> int:
        return self._engine.max_in_flight

    async def generate(self, sample: Sample) -> Response:
        """Generate one response. Raise EngineDiedError."""
        shift = shift_of(self._plan, self._study.vectors, sample)
        response = await self._engine.steered(sample, shift)
        if response.status != "ok":
            return response
        before = (*self._study.prompts("", sample.question), *response.thought_token_ids)
        found = await self._engine.logprobs(before, response.response_token_ids, None)
        return replace(response, logprobs=found)


@dataclass(slots=True)
class Outcome:
    """How the work on a study ended."""

    interrupted: bool = False
    error: TraitmillError | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more is to be done."""
        return self.interrupted or self.error is not None


async def work_on(
    study: Study, run: StudyRun, backends: Backends, progress: Progress, stop: asyncio.Event
) -> Outcome:
    """Do what is left of a study, round by round. `run` is its first round, opened.

    What is done is stored; what goes wrong stands in the outcome.
    """
    engine: Any = backends.generator
    try:
        await engine.load_vectors(study.vectors.numbered())
        while True:
            outcome = await _round(study, run, backends, progress, stop)
            if outcome.over or not study.refine():
                break
            study.notice(f"{study.owner.name}: a round of {_said(study)}")
            run = await on_thread(study.open)
        if not outcome.over:
            await _side_effects(study, await on_thread(whole, study), engine, stop)
            outcome.interrupted = stop.is_set()
    except TraitmillError as error:
        return Outcome(error=error)
    return outcome


def _said(study: Study) -> str:
    count = sum(len(coefficients) for coefficients in study.grid.values())
    return f"{count} coefficients, closer to where coherence breaks"


async def _round(
    study: Study, run: StudyRun, backends: Backends, progress: Progress, stop: asyncio.Event
) -> Outcome:
    """Generate what the round lacks, and have it judged.

    What failed is an error: coefficients chosen by the rest would be others than those of all.
    """
    engine: Any = backends.generator
    own = replace(backends, generator=SteeredGenerator(engine, study, study.plan))
    outcome = await _through(study, run, own, progress, stop)
    if outcome.over:
        return outcome
    coherence = await on_thread(study.open_coherence)
    if coherence is not None:
        judged = run.judge
        if coherence.judge.profile is None:
            coherence.learn(profile=judged.profile, endpoint=judged.endpoint)
        own = replace(backends, generator=None)
        outcome = await _through(study, coherence, own, progress, stop)
        if outcome.over:
            return outcome
    failed = await on_thread(study.failed)
    if failed:
        raise FailedSamplesError(
            f"{study.owner.name}: {failed} failed, so its figures wait; they are tried once more "
            "when the same command is run again"
        )
    if coherence is None:
        await _measure_scale(study, engine)
    return outcome


async def _through(
    study: Study, run: StudyRun, backends: Backends, progress: Progress, stop: asyncio.Event
) -> Outcome:
    pipeline = Pipeline([run], study.settings, backends, study.notice)
    progress.runs, progress.pipeline = [run], pipeline
    await pipeline.run(stop)
    await on_thread(study.open)  # the end of a run merges the parts it has indexed
    error = next(iter(pipeline.errors.values()), run.error)
    return Outcome(pipeline.interrupted, error)


async def _measure_scale(study: Study, engine: Steerable) -> None:
    """Measure what unsteered answers and their tokens in random order are worth."""
    if study.scale is not None:
        return
    answers = study.answers()
    mixed = [shuffled(each.response_token_ids, each.sample.seed) for each in answers]
    bare = [(*study.prompts("", a.sample.question), *a.thought_token_ids) for a in answers]
    found = await asyncio.gather(
        *(engine.logprobs(prompt, ids, None) for prompt, ids in zip(bare, mixed, strict=True))
    )
    lost = [float(np.mean(each)) for each in found if each]
    own = [float(np.mean(each.logprobs)) for each in answers if each.logprobs]
    study.note_scale(own, lost, [each.response_token_ids for each in answers])


async def _side_effects(study: Study, shown: Study, engine: Steerable, stop: asyncio.Event) -> None:
    """Measure how likely the model's own unsteered answers are under each condition.

    Those of what is `shown`: with fewer examples than before, the same as before.
    """
    answers = await on_thread(shown.answers)
    for condition in study.plan.conditions:
        known = condition.kind == "prompt" or shown.side_effects(condition) is not None
        if known or stop.is_set():
            continue
        found = await asyncio.gather(
            *(
                _likelihood(engine, study.vectors, condition, k, answer)
                for k, answer in enumerate(answers)
            )
        )
        shown.note_side_effects(condition, list(found))


async def _likelihood(
    engine: Steerable, vectors: Vectors, condition: Condition, k: int, answer: Response
) -> float | None:
    prompt = answer.sample.prompt_token_ids
    shift = shift_at(vectors, condition, k, len(prompt))
    before = (*prompt, *answer.thought_token_ids)
    found = await engine.logprobs(before, answer.response_token_ids, shift)
    return float(np.mean(found)) if found else None
