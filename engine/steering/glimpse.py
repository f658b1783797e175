"""A first look: a few questions answered at a few coefficients, neither judged nor stored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import storage
from ..models import lazy_tokenizer
from ..run import (
    Listener,
    OpenBackends,
    Progress,
    Work,
    generating_model,
    new_log,
    on_thread,
    open_backends,
    recorded_trait,
    resolve,
)
from ..settings import DEFAULT_POOL
from ..storage import lock_traits, select
from .conditions import UNSTEERED, check_coefficients
from .making import Which, make_study
from .plan import shift_of
from .study import Asked, Study
from .study_run import StudyRun

Answers = list[tuple[str, list[str]]]
"""A question, and an answer to it for each coefficient, 0 first."""


async def glimpse(
    experiment: Path | str,
    trait: str,
    *,
    coefficients: Sequence[float],
    n_questions: int,
    listener: Listener | None = None,
    backends: OpenBackends = open_backends,
) -> Answers:
    """Return answers to a trait's first questions, with the vector that `steer` takes.

    The settings are those of the trait's run. Raise as `steer` does.
    """
    listener = listener or Listener()
    [(name, folder)] = select(experiment, [trait]).items()
    record = storage.need_record(folder)
    settings, _ = resolve({name: folder}, {"capture": "none"})
    ref = generating_model({name: record})
    prompts = lazy_tokenizer(ref)(record.created, settings[name].sampling)
    asked = Asked(
        positions="response",
        coefficients=check_coefficients(coefficients),
        n_random=1,
        n_examples=n_questions,
        coherence=0.0,
    )
    which = Which(None, None, DEFAULT_POOL)
    with lock_traits([folder]):
        study = make_study(
            recorded_trait(name, record),
            folder,
            settings[name],
            prompts,
            asked,
            which,
            lambda _: None,
        )
        run = await on_thread(study.open)
        log = new_log(folder.experiment)
        work = Work(
            ref=ref,
            settings=settings[name],
            runs=[run],
            generates=True,
            judges=False,
            captures=False,
            log=log,
            notice=listener.notice,
            steers=True,
        )
        listener.began(Progress(log, captures=False, runs=[run]))
        try:
            async with backends(work) as opened:
                return await _answers(study, run, opened.generator)
        finally:
            listener.ended()


async def _answers(study: Study, run: StudyRun, engine: Any) -> Answers:
    await engine.load_vectors(study.vectors.numbered())
    plan = study.plan
    shown = [c for c in plan.conditions if c == UNSTEERED or c.kind == "steered"]
    places = [plan.of(condition).tolist() for condition in shown]
    samples = [run.samples(each) for each in places]
    found = await asyncio.gather(
        *(
            engine.steered(sample, shift_of(plan, study.vectors, sample))
            for each in samples
            for sample in each
        )
    )
    texts = [response.response for response in found]
    count = len(samples[0])
    by_condition = [texts[i * count : (i + 1) * count] for i in range(len(shown))]
    return [
        (sample.question, [answers[k] for answers in by_condition])
        for k, sample in enumerate(samples[0])
    ]
