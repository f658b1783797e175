"""A run's real backends: the judge is asked first, models loaded, then taken down again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anyio import to_thread

from ..capture import CaptureFacts, CaptureProcess
from ..errors import AccessError, EngineDiedError, StoppedError, UsageError
from ..generation import GPU_SEQUENCES, VllmEngine, on_gpu, size_engine
from ..judging import EndpointJudge, JudgeProfile, LocalJudge, local_prompt, need_words
from ..models import (
    GIB,
    ModelRef,
    Placement,
    Shape,
    check_capture,
    check_split,
    check_support,
    check_weights,
    choose_placement,
    find_model,
    free_host_memory,
    generation_dtype,
    read_config,
    show_only,
)
from ..outputs import measurement
from ..records import Activation, Response
from ..settings import Execution, RunSettings
from ..traits import fill
from .backends import Backends
from .foresight import foresee
from .log import last_error
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

    def longest(self) -> int:
        """Return the tokens of the longest sequence that the engine will see."""
        new = self.settings.sampling.max_new_tokens
        longest = 1
        room = self.ref.context_length  # a prompt that fills it will not be generated from
        for run in self.runs:
            for length in run.prompt_lengths():
                if not room or length < room:
                    longest = max(longest, length + new)
            if self.judges and self.settings.judge.is_local:
                question = max(run.trait.questions, key=len)
                prompt = fill(local_prompt(run.trait), question=question, answer="")
                # Judged text may take more tokens than were sampled.
                longest = max(longest, len(run.tokenize("", prompt)) + 2 * new)
        return longest


@asynccontextmanager
async def open_backends(work: Work) -> AsyncIterator[Backends]:
    """Load what a run needs, no more; take it down at the end.

    Raise AccessError, UsageError, ResourceError or EngineDiedError where something cannot be had.
    """
    loader = _Loader(work)
    try:
        yield await loader.load()
    finally:
        await loader.close()


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
        self._engines: list[VllmEngine] = []
        self._capture: _Capture | None = None
        self._judge: EndpointJudge | LocalJudge | None = None
        self._gpu = False

    async def load(self) -> Backends:
        work, judge = self._work, self._settings.judge
        tie_children()
        self._gpu = await asyncio.to_thread(on_gpu)
        needs_engine = work.generates or (work.judges and judge.model == "local")
        self._refuse_second_model(needs_engine)
        # What cannot work is found out before a judge is paid or a weight downloaded.
        placement = None
        if needs_engine or work.captures:
            await asyncio.to_thread(self._check_model)
            placement = await asyncio.to_thread(self._place, needs_engine)
            if work.generates:
                said = await asyncio.to_thread(
                    foresee, work.ref, work.settings, work.runs, placement
                )
                work.notice(said)
        backends = Backends()
        local: tuple[ModelRef, Any] | None = None
        if work.judges and judge.is_local:
            local = await asyncio.to_thread(find_judge, judge.model, work.ref)
        if local is not None and local[0] is not work.ref:
            check_split(local[0], self._settings.execution.tensor_parallel_size)
            await asyncio.to_thread(check_weights, local[0])
        if work.judges and local is None:  # after the weights: its first calls are paid for
            backends = await self._open_endpoint()
        loads: list[Awaitable[object]] = []
        if placement is not None and placement.gpus:
            show_only(placement.gpus)
        if placement is not None and work.captures:
            if placement.line:
                work.notice(placement.line)
            self._capture = await self._make_capture(placement, needs_engine)
            if self._capture.loads_now:
                loads.append(self._capture.load())
        if needs_engine:
            loads.append(self._start_engine(work.ref, placement, self._settings.execution))
        await asyncio.gather(*loads)
        if needs_engine and work.generates:
            backends = replace(backends, generator=self._engines[0])
        if local is not None:
            backends = await self._open_local(backends, *local)
        return replace(backends, capturer=self._capture)

    def _check_model(self) -> None:
        ref = self._work.ref
        if self._work.captures:
            check_capture(ref.config, self._settings.capture, "cuda" if self._gpu else "cpu")
        check_weights(ref)

    def _refuse_second_model(self, needs_engine: bool) -> None:
        judge = self._settings.judge
        other = self._work.judges and judge.is_local and judge.model != "local"
        if self._gpu and other and (needs_engine or self._work.captures):
            raise UsageError(
                f"`judge_model` {judge.model}: a GPU holds one generating model at a time, and "
                "nothing beside this one; use local, or serve the judge elsewhere and name it with "
                "`judge_base_url`"
            )

    # --- engine and capture ---

    def _place(self, needs_engine: bool) -> Placement:
        longest = 0
        if self._gpu and needs_engine:
            longest = self._work.longest()
        return choose_placement(
            self._work.ref.config,
            self._settings,
            gpu=self._gpu,
            engine=needs_engine,
            capture=self._work.captures,
            sequences=self._settings.execution.batch_size or GPU_SEQUENCES,
            tokens_per_sequence=longest,
        )

    async def _start_engine(
        self, ref: ModelRef, placement: Placement | None, execution: Execution
    ) -> VllmEngine:
        size = size_engine(
            ref,
            execution,
            await asyncio.to_thread(self._work.longest),
            on_gpu=self._gpu,
            free_bytes=free_host_memory(),
            placement=placement,
            dtype=self._settings.sampling.dtype,
        )
        engine = VllmEngine(
            ref,
            self._settings.sampling,
            execution,
            size,
            on_gpu=self._gpu,
            last_error=lambda: last_error(self._work.log),
        )
        self._work.notice(f"loading {ref.name}: {size}")
        # A model being loaded cannot be stopped, and an interrupt does not wait for it.
        await to_thread.run_sync(engine.start, abandon_on_cancel=True)
        self._engines.append(engine)
        return engine

    async def _make_capture(self, placement: Placement, needs_engine: bool) -> _Capture:
        work = self._work
        beside = placement.mode in ("alone", "apart", "co-resident")
        loads_now = beside
        if not beside and not self._gpu:
            # While the engine's start leaves cores idle. Decided before the loads: transformers
            # cannot be imported from two threads at once.
            loads_now = await asyncio.to_thread(self._fits_beside_engine)
        process = CaptureProcess(
            work.ref.source,
            work.ref.hub_revision,
            self._settings.capture,
            replace(self._settings.execution, capture_device=placement.capture_device),
            generation_dtype=generation_dtype(
                read_config(work.ref.config), self._settings.sampling.dtype, gpu=self._gpu
            ),
            token_budget=placement.capture_tokens,
        )
        return _Capture(
            process,
            placement=placement.mode,
            beside_generation=beside or not needs_engine,
            loads_now=loads_now,
            make_room=self._close_engines,
            notice=work.notice,
        )

    def _fits_beside_engine(self) -> bool:
        """Return whether host memory holds the capture model too, whatever its dtype."""
        weights = Shape.from_config(self._work.ref.config).weight_bytes(4)
        return 3 * weights < free_host_memory() - GIB

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
            run.learn(profile=profile.as_json(), endpoint=judge.where)
        prompts = len({run.state.judge_key for run in work.runs})
        plural = "" if prompts == 1 else "s"
        work.notice(f"judge {self._settings.judge.model}: {prompts} judge prompt{plural}")
        return backends

    async def _open_local(self, backends: Backends, ref: ModelRef, tokenizer: Any) -> Backends:
        work = self._work
        if self._settings.judge.model != "local":
            execution = replace(self._settings.execution, batch_size=None)
            await self._start_engine(ref, None, execution)
        if not self._engines:
            raise EngineDiedError("the judging engine is not loaded")
        by_name = {run.name: run for run in work.runs}

        def freeze(trait: str, offset: float) -> None:
            by_name[trait].learn(offset=offset)

        judge = LocalJudge(self._engines[-1], tokenizer, self._settings.judge, ref.name, freeze)
        self._judge = judge
        for run in work.runs:
            expected = {*run.ungenerated(), *run.unjudged().tolist()}
            waiting = [position for position in run.calibration() if position in expected]
            ids = [run.state.plan.ids[position].decode() for position in waiting]
            judge.open_trait(run.name, ids, run.offset, run.state.record.created)
        return replace(backends, judge=judge, on_skipped=judge.skip, on_starved=judge.give_up)

    # --- ends ---

    async def _close_engines(self) -> None:
        engines, self._engines = self._engines, []
        for engine in engines:
            await engine.close()

    async def close(self) -> None:
        """Take down what was loaded. What is still loading is left to the watchdog."""
        if self._capture is not None:
            await self._capture.close()
        await self._close_engines()
        if self._judge is not None:
            await self._judge.close()


class _Capture:
    """A capture process as a run wants it: loaded at once, or when generation has made room."""

    def __init__(
        self,
        process: CaptureProcess,
        *,
        placement: str,
        beside_generation: bool,
        loads_now: bool,
        make_room: Callable[[], Awaitable[None]],
        notice: Callable[[str], None],
    ) -> None:
        self.placement = placement
        self.beside_generation, self.loads_now = beside_generation, loads_now
        self._process, self._make_room, self._notice = process, make_room, notice
        self._facts: CaptureFacts | None = None
        self._doubted = False

    @property
    def self_check(self) -> dict[str, Any]:
        return self._process.self_check

    async def load(self) -> None:
        """Load the model into its process."""
        self._facts = await self._process.start()
        facts = self._facts
        self._notice(
            f"capture on {facts.device}, {facts.dtype}, {facts.attention} attention; "
            f"{facts.arithmetic}"
        )

    async def open(self) -> CaptureFacts:
        if not self.beside_generation:
            await self._make_room()
        if self._facts is None:
            await self.load()
        assert self._facts is not None  # noqa: S101 - load has set it
        return self._facts

    async def capture(self, responses: Sequence[Response]) -> list[Activation]:
        found = await self._process.capture(responses)
        self._say_doubts()
        return found

    def _say_doubts(self) -> None:
        """Say once that rows are further off than rounding is on a CPU, and by how much."""
        seen = self._process.self_check
        if self._doubted or not seen.get("doubtful_rows"):
            return
        self._doubted = True
        states = max(seen["worst_state_deviation"].values())
        self._notice(
            f"self-check: further off than a CPU's rounding, though not by three times: up to "
            f"{states:.2g} in the pools, {seen['worst_logprob_deviation']:.2g} nats a token; the "
            "tolerances are not yet measured on GPUs, so look at metadata.json's self_check"
        )

    async def close(self) -> None:
        """End the process at once: it holds nothing that is not stored or to be done again."""
        await self._process.close()


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
