"""The test stand: one engine and one capture process under the front door, with a judge that only
takes time, or a real one.

Each run writes its records and files into a folder of its own that is thrown away. Between runs
vLLM's prefix cache is emptied, so that a repeat computes what the first run computed.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from benchmarks.common import ROOT
from traitmill.engine.errors import UsageError
from traitmill.engine.generation import EngineSize, VllmEngine
from traitmill.engine.judging import judge_key
from traitmill.engine.models import ModelRef, lazy_tokenizer
from traitmill.engine.models.machine import free_host_memory
from traitmill.engine.records import Response, Sample, Verdict
from traitmill.engine.run import STAGES, Backends, Clock, Judge, Stage, Work, generate
from traitmill.engine.run.models import LocalModels, ModelsWanted
from traitmill.engine.run.watchdog import tie_children
from traitmill.engine.settings import JudgeSettings, Sampling, apply
from traitmill.engine.storage import now
from traitmill.engine.traits import Trait, load_traits, make_plan

EXPERIMENT = ROOT / "experiments" / "demo"
TRAITS = ("fairy_tale", "poem")
SIDES = 2 * len(TRAITS)
"""A run's samples are shared evenly by each trait's two sides."""
JUDGE = "sleeping"
_ROOM_FOR_PROMPT = 128
_FORGET_TRIES = 50


class SleepingJudge:
    """Answers after `latency` seconds; every response passes."""

    def __init__(self, latency: float) -> None:
        self._latency = latency

    async def judge(self, trait: Trait, response: Response) -> Verdict:
        await asyncio.sleep(self._latency)
        return Verdict(
            trait=trait.name,
            sample_id=response.sample.id,
            judge_key=judge_key(JudgeSettings(model=JUDGE), trait),
            status="scored",
            score=90.0 if response.sample.polarity == "pos" else 10.0,
            mode="integer",
            model=JUDGE,
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
    sampling = _sampling(ref, max_new_tokens)
    tokenize = lazy_tokenizer(ref)(now(), sampling)
    found = []
    for trait in load_traits({name: EXPERIMENT / name for name in TRAITS}):
        plan = make_plan(trait, {"pos": n // SIDES, "neg": n // SIDES}, sampling, tokenize)
        found += [plan.sample(place, trait, tokenize) for place in range(len(plan))]
    return found


def whole(n: int) -> int:
    """`n` rounded up so that all sides are equal."""
    return -(-n // SIDES) * SIDES


def _sampling(ref: ModelRef, max_new_tokens: int) -> Sampling:
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
        to be free, by default what is."""
        self.ref = ref
        self.load_s = 0.0
        self._given: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "capture": "all" if captures else "none",
        }
        settings = replace(apply(self._given), sampling=_sampling(ref, max_new_tokens))
        longest = max_new_tokens + _ROOM_FOR_PROMPT
        wanted = ModelsWanted(
            ref=ref, settings=settings, engine=True, captures=captures, longest=longest
        )
        self._models = LocalModels(wanted, notice=lambda _: None, last_error=str)
        self._steps: list[int] = []
        self._engine_type = partial(engine, stat_loggers=[_watch(self._steps)] if watched else [])
        self._free = free_host_memory if free_bytes is None else lambda: free_bytes
        self._engine: VllmEngine | None = None

    @property
    def engine(self) -> VllmEngine:
        assert self._engine is not None, "open the stand first"
        return self._engine

    @property
    def size(self) -> EngineSize:
        return self.engine.size

    async def open(self) -> None:
        """Load both models as the product does, and warm them up. Raises UsageError where a GPU
        does not hold capture beside generation."""
        tie_children()
        start = time.perf_counter()
        await self._models.prepare()
        placement = self._models.placement
        if self._models.gpu and placement and placement.mode == "in turn":
            raise UsageError(
                f"benchmarks on a GPU capture beside generation, and here it is: {placement.line}"
            )
        module = "traitmill.engine.run.models"
        with (
            patch(f"{module}.VllmEngine", self._engine_type),
            patch(f"{module}.free_host_memory", self._free),
        ):
            await self._models.load()
            capturer = self._models.capturer
            if capturer is not None and not capturer.loads_now:
                await capturer.load()
        self._engine = self._models.generator
        self.load_s = time.perf_counter() - start
        await self.run(SIDES, SleepingJudge(0.0))

    async def run(
        self, n: int, judge: Judge | None, *, close_engine: bool = False, **judging: Any
    ) -> Run:
        """Run `n` samples. `judging` are settings of a real judge. `close_engine` makes room for
        capture as the product does on a CPU, and ends the stand's use."""
        await self._forget()
        self._steps.clear()
        began = 0.0

        @asynccontextmanager
        async def backends(_work: Work) -> AsyncIterator[Backends]:
            nonlocal began
            began = time.perf_counter()
            yield Backends(generator=self.engine, judge=judge, capturer=self._models.capturer)

        given = {"judge_model": JUDGE, "judge_base_url": "http://127.0.0.1:9/v1"} | judging
        closing = self._models._close_engines if close_engine else _nothing  # noqa: SLF001
        if self._models.capturer is not None:
            self._models.capturer._make_room = closing  # noqa: SLF001 - only a benchmark runs again
        with (
            TemporaryDirectory() as temp,
            patch("traitmill.engine.run.pipeline.Clock", TimedClock),
        ):
            result = await generate(
                _copied(Path(temp) / "bench"),
                TRAITS,
                model=self.ref.name,
                backends=backends,
                n_examples=n // SIDES,
                **self._given | given,
            )
            makespan = time.perf_counter() - began
        if result.errors:
            raise result.errors[0]
        clocks: dict[Stage, Any] = {stage: result.clocks[stage] for stage in STAGES}
        return Run(
            makespan=makespan,
            seconds={stage: clock.seconds for stage, clock in clocks.items()},
            times={stage: clock.times for stage, clock in clocks.items()},
            tokens=clocks["generation"].tokens,
            running=statistics.fmean(self._steps) if self._steps else 0.0,
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
        await self._models.close()


async def _nothing() -> None:
    """The engine stays for the next run."""


def _copied(experiment: Path) -> Path:
    for name in TRAITS:
        (experiment / name).mkdir(parents=True)
        shutil.copy(EXPERIMENT / name / "trait_definition.json", experiment / name)
    return experiment


def _watch(steps: list[int]) -> Callable[..., Any]:
    """vLLM's stat logger that notes the running sequences of each scheduler step."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Watch(StatLoggerBase):  # type: ignore[misc]  # vllm is not followed
        def __init__(self, vllm_config: object, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: object, **_: object) -> None:
            if scheduler_stats is not None and iteration_stats is not None:
                steps.extend(filter(None, [scheduler_stats.num_running_reqs]))

        def log_engine_initialized(self) -> None:
            pass

    return Watch


def longest_prompt(samples: Sequence[Sample]) -> int:
    """Tokens."""
    return max(len(sample.prompt_token_ids) for sample in samples)
