"""The run: generation feeds judging and capture, records go to the store, traits end one by one.

One asyncio process. All traits share one stream in the order given, with no barrier per trait or
polarity. Nothing slow runs on the event loop: Parquet, export and tokenizing are on threads, models
in processes of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ResourceError, StoppedError, TraitmillError
from ..settings import RunSettings
from ..traits import Plan
from .backends import STAGES, Backends, Clock
from .backends import Stage as Name
from .backlog import Backlog, Item, Planned, Samples, Waiting
from .capturing import rows_of_a_call
from .ending import on_thread, to_the_end
from .stage import Stage, is_engine_free, is_stuck
from .trait_run import TraitRun
from .writer import Writer

MAX_JUDGING = 1024
_DRAIN_S = 5.0


class Pipeline:
    """One run over some traits. Call `run` once."""

    def __init__(
        self,
        runs: Sequence[TraitRun],
        settings: RunSettings,
        backends: Backends,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.runs, self.settings, self.backends, self.notice = runs, settings, backends, notice
        self.clocks: dict[Name, Clock] = {stage: Clock() for stage in STAGES}
        self.interrupted = False
        self._started = 0.0
        self._changed = asyncio.Event()
        self._engine_free = asyncio.Event()
        self._writer = Writer(settings.execution.flush_seconds, self._fail_trait)
        self._samples = Samples()
        self._to_judge, self._to_capture = Backlog(self._writer), Backlog(self._writer)
        self._row_limit = 1
        self._patience = 0.0
        self.stages = self._make_stages()
        self.captures = settings.capture_rows != "none" and backends.capturer is not None
        if backends.judge_error is not None:
            self._stop_stage(self.stages["judging"], backends.judge_error)

    def _make_stages(self) -> dict[Name, Stage[Any]]:
        in_flight, judging, captures = 1, MAX_JUDGING, 1
        if self.backends.capturer is not None:
            captures = self.backends.capturer.calls
        if self.backends.generator is not None:
            in_flight = self.backends.generator.max_in_flight
        if self.settings.judge.is_local:
            # It holds answers until its offset is known: a limit could keep out those it waits for.
            judging = 1 << 30
        work: dict[Name, tuple[Waiting, Any, Any, int]] = {
            "generation": (self._samples, self._samples.take, self._generate, in_flight),
            "judging": (self._to_judge, self._to_judge.take, self._judge, judging),
            "capture": (self._to_capture, self._next_to_capture, self._capture, captures),
        }
        changed = self._changed.set
        return {name: Stage(name, *how, changed, self._stop_stage) for name, how in work.items()}

    @property
    def errors(self) -> dict[Name, TraitmillError]:
        """Stages that stopped as a whole."""
        return {name: stage.error for name, stage in self.stages.items() if stage.error}

    @property
    def elapsed(self) -> float:
        """Seconds since `run` began, 0 before."""
        if not self._started:
            return 0.0
        return time.monotonic() - self._started

    @property
    def judges(self) -> bool:
        """Whether responses are to be judged, be it that the judge has stopped."""
        return self.backends.judge is not None or self.backends.judge_error is not None

    # --- the run ---

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Work until every trait is settled, or `stop` is set. Records in hand are flushed either
        way."""
        self._started = time.monotonic()
        for run in self.runs:
            self._open(run)
        try:
            await self._run(stop or asyncio.Event())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            await to_the_end(self._writer.finish())

    async def _run(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            work = [group.create_task(self._writer.work())]
            if self.backends.generator is not None:
                work.append(group.create_task(self.stages["generation"].work(group)))
            if self.backends.judge is not None:
                work.append(group.create_task(self.stages["judging"].work(group)))
            if self.captures:
                work.append(group.create_task(self._capture_all(group)))
            stopping = group.create_task(self._interrupt_at(stop))
            await self._settle()
            for task in (*work[1:], stopping):  # no more intake
                task.cancel()
            if self.interrupted:
                self.stages["generation"].cancel()
                self.stages["capture"].cancel()
                await self.stages["judging"].drain(_DRAIN_S)  # answers that are paid for
            work[0].cancel()

    async def _interrupt_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.interrupted = True
        self.backends.on_interrupt()
        self._changed.set()

    def _open(self, run: TraitRun, before: Plan | None = None) -> None:
        """Take up a trait's work from what is stored: of samples that `before` has not, if given.

        A plan that was larger once has rows of a round that is only now added.
        """
        ids = run.state.plan.ids
        new = np.ones(len(ids), bool) if before is None else before.positions(ids) < 0
        if self.backends.generator is not None:
            self._samples.add(run, [place for place in run.ungenerated() if new[place]])
        for backlog, owed in (
            (self._to_judge, run.unjudged() if self.judges else ()),
            (self._to_capture, run.uncaptured() if self.captures else ()),
        ):
            backlog.owe(run, [bytes(ids[place]) for place in owed if new[place]])

    # --- generation ---

    async def _generate(self, items: list[Planned]) -> None:
        generator = self.backends.generator
        assert generator is not None  # noqa: S101 - the stage works only with one
        [(run, sample)] = items
        clock = self.clocks["generation"]
        clock.begin(self.elapsed)
        response = await generator.generate(sample)
        tokens = len(response.thought_token_ids) + len(response.response_token_ids)
        clock.count(self.elapsed, tokens)
        self._writer.add_response(run, response)
        if response.status != "failed":
            run.done["generation"] += 1
        if response.status == "ok":
            if self.judges:
                self._to_judge.offer(run, response)
            if self.captures and self.settings.capture_rows == "all":
                self._to_capture.offer(run, response)
            return
        self.backends.on_skipped(response)
        if response.error:
            self.notice(f"{run.name}: sample {sample.id} {response.status}: {response.error}")

    # --- judging ---

    async def _judge(self, items: list[Item]) -> None:
        judge = self.backends.judge
        assert judge is not None  # noqa: S101 - the stage works only with one
        [(run, response)] = items
        clock = self.clocks["judging"]
        clock.begin(self.elapsed)
        verdict = await judge.judge(run.trait, response)
        if not run.judge_is_saved:  # before the first row that it is of
            run.save_judge()  # not behind a part being written: a kill would lose the verdict
        clock.count(self.elapsed, verdict.input_tokens + verdict.output_tokens)
        self._writer.add_verdict(run, verdict)
        if verdict.status != "failed":
            run.done["judging"] += 1
        if not self.captures or self.settings.capture_rows != "kept" or verdict.score is None:
            return
        kept = run.newly_kept(response.sample, verdict.score)
        if kept == [response.sample.id.encode()]:
            self._to_capture.offer(run, response)
        else:  # a pair: one of the two has gone from memory
            self._to_capture.owe(run, kept)

    # --- capture ---

    async def _capture_all(self, group: asyncio.TaskGroup) -> None:
        capturer = self.backends.capturer
        assert capturer is not None  # noqa: S101 - the stage works only with one
        if not capturer.beside_generation:
            await self._engine_free.wait()
        try:
            facts = await capturer.open()
            for run in self.runs:
                run.begin_capture(facts, capturer.placement)
        except TraitmillError as error:
            self._stop_stage(self.stages["capture"], error)
            return
        self._row_limit = rows_of_a_call(facts, len(self.settings.capture.pools))
        if not facts.device.startswith("cpu"):
            # Beside generation, calls of a few rows would leave the GPU idle and take its turns.
            self._patience = self.settings.execution.flush_seconds
        await self.stages["capture"].work(group)

    async def _next_to_capture(self) -> list[Item]:
        return await self._to_capture.take_in_plan_order(self._row_limit, self._patience)

    async def _capture(self, items: list[Item]) -> None:
        capturer = self.backends.capturer
        assert capturer is not None  # noqa: S101 - the stage works only with one
        clock = self.clocks["capture"]
        clock.begin(self.elapsed)
        activations = await capturer.capture([response for _, response in items])
        for run in dict.fromkeys(run for run, _ in items):
            run.checked(capturer.self_check)
        for (run, response), activation in zip(items, activations, strict=True):
            tokens = response.spans["response"][1]
            clock.count(self.elapsed, tokens)
            self._writer.add_activation(run, activation)
            if activation.error:
                self.notice(f"{run.name}: {activation.error}")
            else:
                run.done["capture"] += 1
        await self._writer.flush()  # bounds what is in memory, while the next call computes

    # --- ends ---

    def _stop_stage(self, stage: Stage[Any], error: TraitmillError) -> None:
        """A stage cannot go on; the others finish what they have."""
        if self.interrupted and isinstance(error, StoppedError):
            return
        if stage.error is None:
            stage.error = error
            self.notice(f"{stage.name} stopped: {error}")
            if stage.name != "capture":
                self.backends.on_starved()
        self._changed.set()

    def _fail_trait(self, run: TraitRun, error: TraitmillError) -> None:
        """Nothing of a trait can be stored any more: what is under way must not be paid for."""
        if run.error is None:
            run.error = error
            self.notice(f"{run.name}: {error}")
            for stage in self.stages.values():
                stage.backlog.drop(run)
            self.stages["judging"].cancel(run)
        self._changed.set()

    async def _settle(self) -> None:
        """Finish traits as their last records arrive; return when nothing more can happen."""
        while not self.interrupted:
            self._changed.clear()
            for run in self.runs:
                if not run.settled:
                    await self._advance(run)
            if is_engine_free(self.stages, self.runs):
                self._engine_free.set()
                self._to_capture.push()
            over = all(run.settled or is_stuck(self.stages, run) for run in self.runs)
            if over and not self.stages["generation"].busy:
                return
            await self._changed.wait()

    async def _advance(self, run: TraitRun) -> None:
        """Add a round to a trait, or finish it, when its records are there."""
        if self.stages["generation"].left(run) or self.stages["judging"].left(run):
            return
        try:
            if not run.decided:
                before = run.state.plan
                async with self._writer.paused(run):
                    more = await on_thread(run.next_round)
                if more:  # what is still to be captured of earlier rounds stays in its queue
                    self._open(run, before)
                self._changed.set()
                if more:
                    return
            if self.stages["capture"].left(run) == 0:
                await self._writer.flush(run)
                if run.error is None:
                    await on_thread(run.finish)
        except TraitmillError as error:
            self._fail_trait(run, error)
        except OSError as error:
            where = error.filename or run.folder.path
            self._fail_trait(
                run, ResourceError(f"{where} cannot be written: {error.strerror or error}")
            )
