"""A run's judge, fitted to the verdict sets it goes on with: by what earlier runs learned of it and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ..errors import AccessError, UsageError
from ..judging.capabilities import JudgeProfile
from ..judging.endpoint import EndpointJudge
from ..judging.local import LocalJudge, need_words
from ..models.hub import ModelRef, find_model
from ..outputs.export import measurements
from ..settings import RunSettings
from .job import TraitJob


def endpoint_judge(
    jobs: Sequence[TraitJob], settings: RunSettings, notice: Callable[[str], None]
) -> EndpointJudge:
    """A remote judge for these traits, not opened yet.

    Raises UsageError where their verdict sets were measured in different ways: one judge measures in one.
    """
    measured = {job.name: mode for job in jobs for mode in measurements(job.view)}
    if len(set(measured.values())) > 1:
        listed = ", ".join(f"{name} as {mode}" for name, mode in measured.items())
        raise UsageError(
            f"the traits' verdicts were measured in different ways ({listed}); run them one by one"
        )
    mode: Any = next(iter(measured.values()), None)
    judging, limits = settings.judge, settings.limits
    judge = EndpointJudge(judging, limits, mode=mode, on_event=notice)
    profile = _stored_profile(jobs, judge.where)
    return (
        judge
        if profile is None
        else EndpointJudge(judging, limits, profile=profile, mode=mode, on_event=notice)
    )


def _stored_profile(jobs: Sequence[TraitJob], where: str) -> JudgeProfile | None:
    """What an earlier run learned of this judge at this endpoint; None where none did, or another version wrote it."""
    for job in jobs:
        facts = _facts(job)
        with suppress(TypeError):
            if facts.get("profile") and facts.get("endpoint") == where:
                return JudgeProfile.from_json(facts["profile"])
    return None


def note_profile(jobs: Sequence[TraitJob], judge: EndpointJudge, profile: JudgeProfile) -> None:
    """Keep what was learned, for later runs."""
    learned = {"profile": profile.as_json(), "endpoint": judge.where}
    for job in jobs:
        facts = _facts(job)
        if any(facts.get(name) != value for name, value in learned.items()):
            facts.update(learned)
            job.view.manifest.save(job.folder)


def find_judge(name: str, generating: ModelRef) -> tuple[ModelRef, Any]:
    """The model of a local judge, `local` or `local:MODEL`, and its tokenizer; no weights.

    Raises AccessError where it cannot be had, or cannot say Yes and No.
    """
    try:
        ref = generating if name == "local" else find_model(name.partition(":")[2])
    except AccessError as error:
        raise AccessError(f"--judge_model {name}: {error}") from None
    return ref, need_words(ref)


def open_traits(judge: LocalJudge, jobs: Sequence[TraitJob]) -> None:
    """Tell a local judge which samples will fix each trait's offset, or the offset that is fixed already."""
    for job in jobs:
        ids = job.view.plan.ids
        expected = {*job.pending, *map(int, job.unjudged())}
        waiting = [position for position in job.calibration() if position in expected]
        judge.open_trait(job.name, (ids[p].decode() for p in waiting), job.offset)


def _facts(job: TraitJob) -> dict[str, Any]:
    return job.view.manifest.judges[job.view.manifest.judge_key]
