"""The test stand: one engine and one capture worker under the real pipeline, with a judge that only
takes time, or a real one.

Each run writes its records and files into a folder of its own that is thrown away. Between runs
vLLM's prefix cache is emptied, so that a repeat computes what the first run computed.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import ROOT
from traitmill.engine.capture import CaptureProcess
from traitmill.engine.capture.process import CaptureFacts
from traitmill.engine.errors import UsageError
from traitmill.engine.generation.sizing import GPU_SEQUENCES, size_engine
from traitmill.engine.generation.vllm_engine import VllmEngine, on_gpu
from traitmill.engine.judging.scoring import judge_key
from traitmill.engine.models.chat import lazy_tokenizer
from traitmill.engine.models.hub import ModelRef
from traitmill.engine.models.machine import free_host_memory
from traitmill.engine.models.placement import Placement, choose_placement
from traitmill.engine.records import Activation, Response, Sample, Verdict
from traitmill.engine.run.backends import STAGES, Backends, Clock, Judge, Stage
from traitmill.engine.run.pipeline import Pipeline
from traitmill.engine.run.prepare import Wanted, open_run
from traitmill.engine.run.watchdog import tie_children
from traitmill.engine.settings import (
    CaptureSettings,
    Execution,
    JudgeSettings,
    RunSettings,
    SampleCounts,
    Sampling,
)
from traitmill.engine.storage import TraitFolder, now
from traitmill.engine.traits import make_plan
from traitmill.engine.traits.definition import DEFINITION_FILE, Trait, load_traits

EXPERIMENT = ROOT / "experiments" / "demo"
TRAITS = ("fairy_tale", "poem")
SIDES = 2 * len(TRAITS)
"""A run's samples are shared evenly by each trait's two sides."""
JUDGING = JudgeSettings(model="sleeping")
_WARM_UP = SIDES
_FORGET_TRIES = 50
_ROOM_FOR_PROMPT = 128


class SleepingJudge:
    """Answers after `latency` seconds; every response passes."""

    def __init__(self, latency: float) -> None:
        self._latency = latency

    async def judge(self, trait: Trait, response: Response) -> Verdict:
        await asyncio.sleep(self._latency)
        return Verdict(
            trait=trait.name,
            sample_id=response.sample.id,
            judge_key=judge_key(JUDGING, trait),
            status="scored",
            score=90.0 if response.sample.polarity == "pos" else 10.0,
            mode="integer",
            model=JUDGING.model,
        )


@dataclass
class TimedClock(Clock):
    """A stage's clock that keeps the time of every record."""

    times: list[float] = field(default_factory=list)

    def count(self, now: float, tokens: int = 0) -> None:
        self.times.append(now)
        Clock.count(self, now, tokens)


@dataclass(frozen=True, slots=True)
class Run:
    """Figures of one run, in seconds since it began."""

    makespan: float
    """To the last file on disk, model loads apart."""
    seconds: dict[Stage, float]
    """Each stage from its first piece of work to its last record; they overlap."""
    times: dict[Stage, list[float]]
    """When each record was done."""
    tokens: int
    """Generated."""
    running: float
    """Mean sequences in a scheduler step; 0 where nothing was generated."""

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds["generation"]


def workload(ref: ModelRef, n: int, max_new_tokens: int) -> list[Sample]:
    """`n` samples as a run of the product has them, for methods that know no traits."""
    sampling = _identity(ref, max_new_tokens)
    tokenize = lazy_tokenizer(ref)(now(), sampling)
    found = []
    for trait in load_traits({name: EXPERIMENT / name for name in TRAITS}):
        plan = make_plan(trait, {"pos": n // SIDES, "neg": n // SIDES}, sampling, tokenize)
        found += [plan.sample(place, trait, tokenize) for place in range(len(plan))]
    return found


def whole(n: int) -> int:
    """`n` rounded up so that all sides are equal."""
    return -(-n // SIDES) * SIDES


def _identity(ref: ModelRef, max_new_tokens: int) -> Sampling:
    return Sampling(model=ref.name, revision=ref.revision, max_new_tokens=max_new_tokens)


class Stand:
    """Open it once, run on it often, close it."""

    def __init__(
        self,
        ref: ModelRef,
        max_new_tokens: int,
        *,
        batch_size: int | None = None,
        captures: bool = True,
        engine: type[VllmEngine] = VllmEngine,
        watched: bool = True,
        free_bytes: int | None = None,
    ) -> None:
        """`batch_size` is what `--batch_size` is, None is auto; `watched` counts the running
        sequences, which costs vLLM a little at each step; `free_bytes` is host memory that is taken
        to be free, by default what is. Raises UsageError where a GPU does not hold capture beside
        generation."""
        self.ref = ref
        self.load_s = 0.0
        self._identity = _identity(ref, max_new_tokens)
        self._speed = Execution(batch_size=batch_size)
        self._captures = captures
        self._steps: list[tuple[float, int]] = []
        self._gpu = on_gpu()
        longest = max_new_tokens + _ROOM_FOR_PROMPT
        self._placement = self._place(longest) if captures else None
        free = free_host_memory() if free_bytes is None else free_bytes
        # As the product sizes it.
        self.size = size_engine(
            ref, self._speed, longest, on_gpu=self._gpu, free_bytes=free, placement=self._placement
        )
        watches = [_watch(self._steps)] if watched else []
        self.engine = engine(
            ref, self._identity, self._speed, self.size, on_gpu=self._gpu, stat_loggers=watches
        )
        self._worker: CaptureProcess | None = None
        self.facts: CaptureFacts | None = None

    def _settings(self, n: int, judging: JudgeSettings) -> RunSettings:
        return RunSettings(
            sampling=self._identity,
            counts=SampleCounts(n_examples=n // SIDES),
            judge=judging,
            capture_rows="all" if self._captures else "none",
            execution=self._speed,
        )

    def _place(self, longest: int) -> Placement:
        placement = choose_placement(
            self.ref.config,
            self._settings(SIDES, JUDGING),
            gpu=self._gpu,
            engine=True,
            sequences=self._speed.batch_size or GPU_SEQUENCES,
            tokens_per_sequence=longest,
        )
        if self._gpu and placement.mode not in ("apart", "co-resident"):
            raise UsageError(
                f"benchmarks on a GPU capture beside generation, and here it is: {placement.line}"
            )
        return placement

    async def open(self) -> None:
        """Load both models beside each other and warm them up."""
        tie_children()
        start = time.perf_counter()
        loads = [asyncio.to_thread(self.engine.start)]
        if self._placement is not None:
            execution = replace(self._speed, capture_device=self._placement.capture_device)
            self._worker = CaptureProcess(
                self.ref.source,
                self.ref.hub_revision,
                CaptureSettings(),
                execution,
                token_budget=self._placement.capture_tokens,
            )
            loads.append(self._load_capture())
        await asyncio.gather(*loads)
        self.load_s = time.perf_counter() - start
        await self.run(_WARM_UP, SleepingJudge(0.0))

    async def _load_capture(self) -> None:
        assert self._worker is not None
        self.facts = await self._worker.start()

    async def run(
        self,
        n: int,
        judge: Judge | None,
        *,
        judging: JudgeSettings = JUDGING,
        close_engine: bool = False,
    ) -> Run:
        """Run `n` samples. `judging` is what a real judge was made with. `close_engine` makes room
        for capture as the product does on a CPU, and ends the stand's use."""
        await self._forget()
        settings = self._settings(n, judging)

        capturer = None
        if self._worker is not None and self.facts is not None:
            capturer = _Placed(self, close_engine=close_engine)
        backends = Backends(generator=self.engine, judge=judge, capturer=capturer)
        clocks: dict[Stage, Clock] = {stage: TimedClock() for stage in STAGES}
        notices: list[str] = []
        self._steps.clear()
        with TemporaryDirectory() as temp:
            jobs = [
                open_run(
                    Wanted(
                        trait=trait,
                        folder=TraitFolder(folder),
                        settings=settings,
                        generates=True,
                        judges=True,
                    ),
                    self.ref,
                    lazy_tokenizer(self.ref),
                    notices.append,
                )
                for trait, folder in zip(*_copied(Path(temp)), strict=True)
            ]
            pipeline = Pipeline(jobs, settings, backends, notices.append)
            pipeline.clocks = clocks
            start = time.perf_counter()
            await pipeline.run()
            makespan = time.perf_counter() - start
            errors = [*pipeline.errors.values(), *(job.error for job in jobs if job.error)]
            if errors:
                raise errors[0]
        return Run(
            makespan=makespan,
            seconds={stage: clock.seconds for stage, clock in clocks.items()},
            times={
                stage: clock.times
                for stage, clock in clocks.items()
                if isinstance(clock, TimedClock)
            },
            tokens=clocks["generation"].tokens,
            running=statistics.fmean(running for _, running in self._steps) if self._steps else 0.0,
        )

    async def _forget(self) -> None:
        """Empty vLLM's prefix cache; the blocks of the last run may be free only a step after its
        end."""
        for _ in range(_FORGET_TRIES):
            if await self.engine._engine.reset_prefix_cache():  # noqa: SLF001 - only a benchmark repeats a run
                return
            await asyncio.sleep(0.1)
        raise RuntimeError(
            "vLLM's prefix cache could not be emptied: the run would not compute what others did"
        )

    async def close(self) -> None:
        await self.engine.close()
        if self._worker is not None:
            await self._worker.close()


class _Placed:
    """The stand's capture process as a run takes it: beside generation on a GPU, after it on a CPU."""

    def __init__(self, stand: Stand, *, close_engine: bool) -> None:
        self._stand, self._close_engine = stand, close_engine
        self.beside_generation = stand._gpu  # noqa: SLF001 - the stand's own
        self.placement = "stand"

    @property
    def self_check(self) -> dict[str, Any]:
        return self._process.self_check

    @property
    def _process(self) -> CaptureProcess:
        process = self._stand._worker  # noqa: SLF001 - as above
        assert process is not None
        return process

    async def open(self) -> CaptureFacts:
        if self._close_engine:
            await self._stand.engine.close()
        assert self._stand.facts is not None
        return self._stand.facts

    async def capture(self, responses: Sequence[Response]) -> list[Activation]:
        return await self._process.capture(responses)


def _copied(root: Path) -> tuple[list[Trait], list[Path]]:
    folders = {name: root / "bench" / name for name in TRAITS}
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        (folder / DEFINITION_FILE).write_bytes((EXPERIMENT / name / DEFINITION_FILE).read_bytes())
    return load_traits(folders), list(folders.values())


def _watch(steps: list[tuple[float, int]]) -> Callable[..., Any]:
    """vLLM's stat logger that notes (time, running sequences) of each scheduler step."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Watch(StatLoggerBase):  # type: ignore[misc]  # vllm is not followed
        def __init__(self, vllm_config: object, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: object, **_: object) -> None:
            if (
                scheduler_stats is not None
                and scheduler_stats.num_running_reqs
                and iteration_stats is not None
            ):
                steps.append((time.perf_counter(), scheduler_stats.num_running_reqs))

        def log_engine_initialized(self) -> None:
            pass

    return Watch


def longest_prompt(samples: Sequence[Sample]) -> int:
    """Tokens."""
    return max(len(sample.prompt_token_ids) for sample in samples)
