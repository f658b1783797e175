"""The front door of steering: what a trait's vectors do to answers, measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import storage
from ..errors import ExitCode, TraitmillError, UsageError
from ..models import check_support, lazy_tokenizer
from ..run import (
    STEERING,
    Listener,
    OpenBackends,
    Progress,
    Work,
    check_judge,
    check_machine,
    generating_model,
    new_log,
    on_thread,
    open_backends,
    recorded_trait,
    resolve,
)
from ..settings import RunSettings, plain_arguments
from ..storage import TraitFolder, lock_traits, select
from ..traits import load_traits
from ..vectors import kept_pool
from .conditions import Positions, check_coefficients
from .findings import Claim, write_study
from .history import whole
from .kept import OWN, keep, with_kept
from .making import Which, make_study
from .study import Asked, Study
from .working import Outcome, work_on


@dataclass(frozen=True, slots=True)
class SteeredTrait:
    """What steering with one trait's vectors came to."""

    name: str
    folder: TraitFolder
    claim: Claim
    samples: tuple[tuple[str, tuple[str, ...]], ...]
    """A question, and the beginning of an answer to it for each coefficient, in words."""

    def __repr__(self) -> str:
        claim = self.claim
        at = f"{claim.method} at layer {claim.layer}, coefficient {claim.coefficient}"
        missing = f", {claim.n_missing} missing" if claim.n_missing else ""
        said = claim.sentence.partition(":")[0][:40]
        return f"SteeredTrait({self.name}: {said}, {at}{missing})"


@dataclass(frozen=True, slots=True)
class SteeringResult:
    """How steering ended, by trait."""

    traits: Mapping[str, SteeredTrait]
    errors: Mapping[str, TraitmillError]
    interrupted: bool
    seconds: float
    log: Path | None
    """None where no model was loaded."""

    def __repr__(self) -> str:
        [shown] = self.traits.values() if len(self.traits) == 1 else [f"{len(self.traits)} steered"]
        return f"SteeringResult({shown}, {len(self.errors)} failed)"

    @property
    def exit_code(self) -> ExitCode:
        """The exit code that the command ends with."""
        if self.interrupted:
            return ExitCode.INTERRUPTED
        if self.errors:
            return max(error.exit_code for error in self.errors.values())
        missing = any(trait.claim.n_missing for trait in self.traits.values())
        return ExitCode.FAILED_SAMPLES if missing else ExitCode.OK


@plain_arguments
async def steer(
    experiment: Path | str,
    traits: Sequence[str] | str | None = None,
    *,
    methods: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    coefficients: Sequence[float] | None = None,
    positions: Positions | None = None,
    n_examples: int | None = None,
    n_random: int | None = None,
    coherence: float | None = None,
    ablate: bool = False,
    pool: str | None = None,
    force_unlock: bool = False,
    listener: Listener | None = None,
    stop: asyncio.Event | None = None,
    backends: OpenBackends = open_backends,
    **given: Any,
) -> SteeringResult:
    """Generate answers with a trait's vectors added, judge them, and say what the vectors do.

    The vectors are those of `methods` at `layers`, by default the difference of means at the layer
    nearest the middle that reads the trait as well as the best (`choice`), of the pool that the
    folder was last fitted on. `coefficients` are in units of the layer's mean residual norm; None
    is a grid of both signs, made finer where coherence breaks. `n_examples` responses are generated
    of each coefficient, of the model unsteered, under a pos instruction, and with `n_random` random
    vectors. `coherence` is the least mean that holds. With `ablate`, directions are also taken out
    of every state, under a pos instruction. `given` are settings by name. What is not given is as
    the folder was last steered, else the run's, else the default.

    Raise UsageError, AccessError, LockedError or DefinitionError before anything loads. What goes
    wrong later stands in the result. A coroutine: await it.
    """
    listener = listener or Listener()
    ours = zip(OWN, (positions, n_examples, n_random, coherence), strict=True)
    named = given | {name: each for name, each in ours if each is not None}
    folders = select(experiment, traits)
    how, kept = with_kept(folders.values(), named)
    own = {name: how.pop(name, OWN[name]) for name in OWN}
    asked = _asked(coefficients, ablate=ablate, **own)
    edited = {each.name: each for each in load_traits({n: f.path for n, f in folders.items()})}
    records = {name: storage.need_record(folder) for name, folder in folders.items()}
    settings = _settings(folders, how, named, kept, listener)
    check_support(ref := generating_model(records), captures=False)
    prompts = lazy_tokenizer(ref)
    with lock_traits(list(folders.values()), force_unlock=force_unlock):
        studies = [
            make_study(
                recorded_trait(name, records[name], edited[name]),
                folder,
                settings[name],
                prompts(records[name].created, settings[name].sampling),
                asked,
                Which(methods, layers, pool or kept_pool(folder)),
                listener.notice,
            )
            for name, folder in folders.items()
        ]
        stop = stop or asyncio.Event()
        return await _steer(studies, {**how, **own}, ref, listener, stop, backends)


def _settings(
    folders: Mapping[str, TraitFolder],
    how: Mapping[str, Any],
    named: Mapping[str, Any],
    kept: str | None,
    listener: Listener,
) -> dict[str, RunSettings]:
    settings, remarks = resolve(folders, {**how, "capture": "none"}, STEERING, resets=False)
    first = next(iter(settings.values()))
    check_machine(folders, first)
    check_judge(first, named)  # an address that a folder keeps is one that nobody has named
    for line in filter(None, [*remarks, kept]):
        listener.notice(line)
    return settings


def _asked(
    coefficients: Sequence[float] | None,
    *,
    positions: Positions,
    n_random: int,
    n_examples: int,
    coherence: float,
    ablate: bool,
) -> Asked:
    for name, value in (("n_random", n_random), ("n_examples", n_examples)):
        if not 1 <= value <= 10_000:
            raise UsageError(f"`{name}` must be a whole number from 1 to 10,000, not {value}")
    if not 0 <= coherence <= 100:
        raise UsageError(f"`coherence` must lie between 0 and 100, not {coherence}")
    chosen = None if coefficients is None else check_coefficients(coefficients)
    return Asked(
        positions=positions,
        coefficients=chosen,
        n_random=n_random,
        n_examples=n_examples,
        coherence=coherence,
        ablate=ablate,
    )


async def _steer(
    studies: Sequence[Study],
    how: Mapping[str, Any],
    ref: Any,
    listener: Listener,
    stop: asyncio.Event,
    backends: OpenBackends,
) -> SteeringResult:
    started = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    log = None
    unfinished = [study for study in studies if await on_thread(_is_left, study)]
    if unfinished:
        runs = [await on_thread(study.open) for study in unfinished]
        log = new_log(unfinished[0].owner.experiment)
        work = Work(
            ref=ref,
            settings=unfinished[0].settings,
            runs=runs,
            generates=True,
            judges=True,
            captures=False,
            log=log,
            notice=listener.notice,
            steers=True,
        )
        progress = Progress(log, captures=False, runs=runs)
        listener.began(progress)
        try:
            async with AsyncExitStack() as stack:
                opened = await stack.enter_async_context(backends(work))
                progress.backends = opened
                keep([study.owner for study in studies], how)
                for study, run in zip(unfinished, runs, strict=True):
                    if not stop.is_set():
                        found = await work_on(study, run, opened, progress, stop)
                        outcomes[study.owner.name] = found
        finally:
            listener.ended()
    else:
        keep([study.owner for study in studies], how)
        listener.notice("everything is done already: no model is loaded")
    return _result(studies, outcomes, stop, log, started)


def _is_left(study: Study) -> bool:
    """Whether anything of a study is to be done; rounds that are finished are stepped over."""
    while True:
        if study.left():
            return True
        if study.settings.judge.is_local and study.scale is None:
            return True
        if not study.refine():
            break
    conditions = [c for c in study.plan.conditions if c.kind != "prompt"]
    shown = whole(study)
    return any(shown.side_effects(condition) is None for condition in conditions)


def _result(
    studies: Sequence[Study],
    outcomes: Mapping[str, Outcome],
    stop: asyncio.Event,
    log: Path | None,
    started: float,
) -> SteeringResult:
    steered, errors = {}, {}
    interrupted = stop.is_set() or any(each.interrupted for each in outcomes.values())
    for study in studies:
        name = study.owner.name
        outcome = outcomes.get(name)
        if outcome is not None and outcome.error is not None:
            errors[name] = outcome.error
        elif not interrupted:
            claim, samples = write_study(study)
            steered[name] = SteeredTrait(name, study.owner, claim, samples)
    return SteeringResult(steered, errors, interrupted, time.monotonic() - started, log)
