"""A run's real backends: the judge is asked first, models loaded, then taken down again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import AccessError, EngineDiedError, StoppedError, UsageError
from ..generation import VllmEngine, check_architecture
from ..judging import (
    EndpointJudge,
    JudgeProfile,
    LocalJudge,
    NextTokenEngine,
    need_words,
)
from ..models import (
    ModelRef,
    Thought,
    check_split,
    check_support,
    check_weights,
    find_model,
)
from ..outputs import measurement
from ..settings import RunSettings
from .backends import Backends
from .ending import to_the_end
from .foresight import few_questions, foresee, foresee_verdicts
from .lengths import longest_sequence
from .log import append, last_error
from .models import LocalModels, ModelsWanted
from .replicated import ReplicatedModels, is_replicated
from .trait_run import TraitRun
from .watchdog import tie_children


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What backends are wanted for."""

    ref: ModelRef
    settings: RunSettings
    runs: Sequence[TraitRun]
    generates: bool
    judges: bool
    captures: bool
    log: Path
    notice: Callable[[str], None]
    steers: bool = False
    """Whether the generator is to be a `SteeredEngine`."""

    def longest(self) -> int:
        """Return what `longest_sequence` does of this work."""
        how = (self.ref, self.settings, self.runs, self.thought)
        reads = self.generates and self.settings.capture_rows != "none"
        return longest_sequence(*how, judges=self.judges, reads=reads)

    @property
    def thought(self) -> Thought | None:
        """How the model thinks before it responds; None where it does not, or is not to respond."""
        if not self.generates or not any(run.state.record.thinks for run in self.runs):
            return None
        return self.runs[0].tokenize.thought

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end the model's turn, beside those that its files name."""
        return self.runs[0].tokenize.ends if self.generates and self.runs else ()


@asynccontextmanager
async def open_backends(work: Work) -> AsyncIterator[Backends]:
    """Load what a run needs, no more; take it down at the end.

    Raise AccessError, UsageError, ResourceError or EngineDiedError where something cannot be had.
    """
    loader = _Loader(work)
    try:
        yield await loader.load()
    finally:
        await to_the_end(loader.close())


def find_judge(name: str, generating: ModelRef) -> tuple[ModelRef, Any]:
    """Return the model of a local judge, `local` or `local:MODEL`, and its tokenizer; no weights.

    Raise AccessError where it cannot be had, or cannot say Yes and No.
    """
    ref = generating
    if name != "local":
        try:
            ref = find_model(name.partition(":")[2])
        except AccessError as error:
            raise AccessError(f"`judge_model` {name}: {error}") from None
        check_support(ref, captures=False)
    return ref, need_words(ref)


class _Loader:
    def __init__(self, work: Work) -> None:
        self._work = work
        self._settings = work.settings
        self._home: LocalModels | None = None
        self._replicated: ReplicatedModels | None = None
        self._judge: EndpointJudge | LocalJudge | None = None

    async def load(self) -> Backends:
        work, judge = self._work, self._settings.judge
        tie_children()
        engine = work.generates or (work.judges and judge.model == "local")
        generating = engine or (work.judges and judge.is_local)
        wanted = ModelsWanted(
            ref=work.ref,
            settings=self._settings,
            engine=engine,
            captures=work.captures,
            longest=await asyncio.to_thread(work.longest) if generating else 0,
            thought=await asyncio.to_thread(lambda: work.thought),
            ends=await asyncio.to_thread(lambda: work.ends),
            steers=work.steers,
        )
        models = await self._choose(wanted)
        await models.prepare()
        self._refuse_second_model(wanted, gpu=models.gpu)
        if work.generates and not work.steers:
            foreseen = await asyncio.to_thread(
                foresee,
                work.ref,
                work.settings,
                work.runs,
                models.placement,
                models.replicas,
                thinks=wanted.thought is not None,
            )
            work.notice(foreseen.said)
            counts = work.settings.counts
            if work.captures and not counts.min_kept:
                lacking = few_questions([run.trait for run in work.runs], counts.n_examples)
                if lacking:
                    work.notice(lacking)
            models.wanted = replace(models.wanted, generation_s=foreseen.seconds)
        elif work.judges and not (judge.is_local or work.steers):
            work.notice(foresee_verdicts(work.settings, work.runs))
        await models.fetch()
        backends = Backends()
        local: tuple[ModelRef, Any] | None = None
        if work.judges and judge.is_local:
            local = await asyncio.to_thread(find_judge, judge.model, work.ref)
        if local is not None and local[0] is not work.ref:
            check_split(local[0], self._settings.execution.tensor_parallel_size)
            await asyncio.to_thread(check_architecture, local[0])
            await asyncio.to_thread(check_weights, local[0])
        if work.judges and local is None:  # after the weights: its first calls are paid for
            backends = await self._open_endpoint()
        await models.load()
        if work.generates:
            backends = replace(backends, generator=models.generator)
        if local is not None:
            judging: NextTokenEngine | None = models.generator
            if judge.model != "local":
                judging = await self._start_judging_engine(wanted, local[0])
            backends = self._open_local(backends, *local, judging)
        return replace(backends, capturer=models.capturer)

    async def _choose(self, wanted: ModelsWanted) -> LocalModels | ReplicatedModels:
        """Return the models in this process, or in several of Ray's; one engine steers."""
        work = self._work
        models = (wanted.engine or wanted.captures) and not work.steers
        if models and await asyncio.to_thread(is_replicated, self._settings.execution):
            self._replicated = ReplicatedModels(wanted, work.notice)
            return self._replicated
        self._home = LocalModels(
            wanted,
            notice=work.notice,
            note=partial(append, work.log),
            last_error=lambda: last_error(work.log),
        )
        return self._home

    async def _start_judging_engine(self, wanted: ModelsWanted, ref: ModelRef) -> VllmEngine:
        """Start the engine of a judge that is another model than the run's, in this process."""
        if self._home is None:
            work = self._work
            self._home = LocalModels(
                replace(wanted, engine=False, captures=False),
                notice=work.notice,
                last_error=lambda: last_error(work.log),
            )
        return await self._home.start_judging(ref)

    def _refuse_second_model(self, wanted: ModelsWanted, *, gpu: bool) -> None:
        judge = self._settings.judge
        other = self._work.judges and judge.is_local and judge.model != "local"
        if gpu and other and (wanted.engine or wanted.captures):
            raise UsageError(
                f"`judge_model` {judge.model}: a GPU holds one generating model at a time, and "
                "nothing beside this one; use local, or serve the judge elsewhere and name it with "
                "`judge_base_url`"
            )

    # --- judges ---

    async def _open_endpoint(self) -> Backends:
        work = self._work
        judge = await asyncio.to_thread(_endpoint_judge, work)
        self._judge = judge
        backends = Backends(judge=judge, usage=lambda: judge.usage, on_interrupt=judge.interrupt)
        try:
            profile = await judge.open()
        except StoppedError as error:  # no quota, say: responses and activations can be had
            return replace(backends, judge=None, judge_error=error)
        for run in work.runs:
            # Of one that has nothing to judge its files would say what no record does.
            if run.ungenerated() or len(run.unjudged()):
                run.learn(profile=profile.as_json(), endpoint=judge.where)
        prompts = len({run.state.judge_key for run in work.runs})
        plural = "" if prompts == 1 else "s"
        name = self._settings.judge.model
        work.notice(f"judge {name} at {judge.where}: {prompts} judge prompt{plural}")
        return backends

    def _open_local(
        self, backends: Backends, ref: ModelRef, tokenizer: Any, engine: NextTokenEngine | None
    ) -> Backends:
        work = self._work
        if engine is None:
            raise EngineDiedError("the judging engine is not loaded")
        by_name = {run.name: run for run in work.runs}
        for run in work.runs:
            run.begin_judging(ref)

        def freeze(trait: str, offset: float) -> None:
            by_name[trait].learn(offset=offset)

        judge = LocalJudge(engine, tokenizer, self._settings.judge, ref.name, freeze)
        self._judge = judge
        for run in work.runs:
            coming = run.ungenerated() if work.generates else []
            expected = {*coming, *run.unjudged().tolist()}
            waiting = [position for position in run.calibration() if position in expected]
            ids = [run.state.plan.ids[position].decode() for position in waiting]
            judge.open_trait(run.name, ids, run.offset, run.state.record.created)
        return replace(backends, judge=judge, on_skipped=judge.skip, on_starved=judge.give_up)

    # --- ends ---

    async def close(self) -> None:
        """Take down what was loaded."""
        if self._replicated is not None:
            await self._replicated.close()
        if self._home is not None:
            await self._home.close()
        if self._judge is not None:
            await self._judge.close()


def _endpoint_judge(work: Work) -> EndpointJudge:
    """Return a remote judge, not opened yet, that goes on as the traits' verdicts were measured.

    Raise UsageError where they were measured in different ways: one judge measures in one.
    """
    found = {run.name: measurement(run.state) for run in work.runs}
    measured = {name: mode for name, mode in found.items() if mode}
    if len(set(measured.values())) > 1:
        listed = ", ".join(f"{name} as {mode}" for name, mode in measured.items())
        raise UsageError(
            f"the traits' verdicts were measured in different ways ({listed}); run them one by one"
        )
    mode: Any = next(iter(measured.values()), None)
    settings = work.settings
    judge = EndpointJudge(settings.judge, settings.limits, mode=mode, on_event=work.notice)
    profile = _stored_profile(work.runs, judge.where)
    if profile is None:
        return judge
    return EndpointJudge(
        settings.judge, settings.limits, profile=profile, mode=mode, on_event=work.notice
    )


def _stored_profile(runs: Sequence[TraitRun], where: str) -> JudgeProfile | None:
    """Return what an earlier run learned of this judge at this endpoint, None where none did."""
    for run in runs:
        if run.judge.profile and run.judge.endpoint == where:
            with suppress(TypeError):  # another version wrote it
                return JudgeProfile.from_json(run.judge.profile)
    return None
