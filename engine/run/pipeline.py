"""The run: generation feeds judging and capture, every record goes to the store, a trait is exported when done.

One asyncio process. All traits share one stream in the order given, with no barrier per trait or polarity. Nothing
slow runs on the event loop: Parquet, export and tokenizing are on threads, models in processes of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..capture.process import capture_records, capture_row
from ..errors import ResourceError, TraitmillError
from ..records import Response, Sample
from ..settings import RunSettings
from ..storage.schemas import KINDS
from .backends import STAGES, Backends, Clock, Generator, Judge, Stage
from .backlog import Backlog, Item
from .job import TraitJob
from .writer import Recorder

_SAMPLES_AHEAD = 64
_IDLE_S = 0.05
_CAPTURE_CHUNK_ROWS, _CPU_CHUNK_ROWS = 256, 64
"""Rows of one call: several batches, so that rows of like length meet, and seconds of work, which a kill may cost."""
_CAPTURES = 2
"""Calls under way: while the results of one travel and are stored, the next is computed."""
_CAPTURE_CHUNK_BYTES = 64 << 20
_DRAIN_S = 5.0
MAX_JUDGING = 1024


@dataclass(slots=True)
class Pipeline:
    """One run over some traits. Call `run` once; `stop` asks it to end early."""

    jobs: Sequence[TraitJob]
    settings: RunSettings
    backends: Backends
    notice: Callable[[str], None] = lambda _: None
    on_finished: Callable[[TraitJob], None] = lambda _: None
    clocks: dict[Stage, Clock] = field(default_factory=lambda: {stage: Clock() for stage in STAGES})
    errors: dict[Stage, TraitmillError] = field(default_factory=dict)
    """Stages that stopped as a whole."""
    interrupted: bool = False
    _started: float = 0.0
    _recorder: Recorder = field(init=False)
    _judging: Backlog = field(init=False)
    _capturing: Backlog = field(init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _expanded: asyncio.Queue[tuple[TraitJob, list[Sample]]] = field(init=False)
    _bug: asyncio.Future[None] = field(init=False)
    """Of a call's task: what no stage expects."""
    _generating: set[asyncio.Task[None]] = field(default_factory=set)
    _judged: set[asyncio.Task[None]] = field(default_factory=set)
    _being_judged: defaultdict[TraitJob, set[asyncio.Task[None]]] = field(
        default_factory=lambda: defaultdict(set)
    )
    _captured: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        """Work until every trait is settled, or `stop` was called. Records in hand are flushed either way."""
        self._started = time.monotonic()
        self._recorder = Recorder(self.settings.execution.flush_seconds, self._fail_trait)
        self._judging, self._capturing = Backlog(self._recorder), Backlog(self._recorder)
        for job in self.jobs:
            self._open(job)
        self._expanded = asyncio.Queue(maxsize=2)
        self._bug = asyncio.get_running_loop().create_future()
        recording = asyncio.create_task(self._recorder.run())
        work = (
            self._expand(),
            self._feed(),
            self._judge_all(),
            self._capture_all(),
            self._settle(),
        )
        tasks = [asyncio.create_task(part) for part in work]
        try:
            await asyncio.wait([*tasks, recording, self._bug], return_when=asyncio.FIRST_COMPLETED)
            for task in (*tasks, recording, self._bug):
                if task.done():
                    task.result()  # a bug in a stage must not look like an end
            for task in (*tasks, *self._generating):  # no more intake
                task.cancel()
            if self.interrupted and self._judged:  # answers already paid for
                await asyncio.wait(self._judged, timeout=_DRAIN_S)
        finally:
            ending = (
                *tasks,
                recording,
                self._bug,
                *self._generating,
                *self._judged,
                *self._captured,
            )
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            await self._recorder.flush()
            self._recorder.close()

    def stop(self) -> None:
        """End early: intake stops, answers in flight get a few seconds, everything in hand is flushed."""
        self.interrupted = True
        self.backends.on_interrupt()
        if self._started:
            self._changed.set()

    def manifest_changed(self, job: TraitJob) -> None:
        """Have a trait's manifest written before any record that comes after this call."""
        self._recorder.write_manifest(job)

    @property
    def elapsed(self) -> float:
        """Seconds since `run` began, 0 before."""
        return time.monotonic() - self._started if self._started else 0.0

    # --- work ------------------------------------------------------------------------------------------------

    def _open(self, job: TraitJob) -> None:
        """Set a trait's work from what is stored."""
        job.plan_work(generate=self.backends.generator is not None)
        unjudged = job.unjudged() if self.backends.judge else np.zeros(0, np.int64)
        uncaptured = job.uncaptured() if self._captures else np.zeros(0, np.int64)
        job.todo.judging, job.todo.capture = len(unjudged), len(uncaptured)
        ids = job.view.plan.ids
        self._judging.owe(job, ids[unjudged].tolist())
        self._capturing.owe(job, ids[uncaptured].tolist())

    def _start(
        self, call: Coroutine[Any, Any, None], among: set[asyncio.Task[None]]
    ) -> asyncio.Task[None]:
        """Start one call to a backend, of which many are under way."""
        task = asyncio.create_task(call)
        among.add(task)
        task.add_done_callback(among.discard)
        task.add_done_callback(self._call_ended)
        return task

    def _call_ended(self, task: asyncio.Task[None]) -> None:
        self._changed.set()  # after the task has left its set: whether calls are under way decides about the end
        if not task.cancelled() and (error := task.exception()) and not self._bug.done():
            self._bug.set_exception(error)

    @property
    def _captures(self) -> bool:
        return self.settings.capture_rows != "none" and bool(
            self.backends.capturer or self.backends.before_capture
        )

    async def _expand(self) -> None:
        """Build samples off the event loop, ahead of the engine."""
        while True:
            job = next((job for job in self.jobs if job.pending and job.error is None), None)
            if job is None:
                await asyncio.sleep(_IDLE_S)
                continue
            positions = [
                job.pending.popleft() for _ in range(min(_SAMPLES_AHEAD, len(job.pending)))
            ]
            samples = await asyncio.to_thread(job.samples, positions)
            await self._expanded.put((job, samples))

    async def _feed(self) -> None:
        generator = self.backends.generator
        if generator is None:
            await asyncio.Event().wait()
            return
        slots = asyncio.Semaphore(generator.max_in_flight)
        while True:
            job, samples = await self._expanded.get()
            for sample in samples:
                await slots.acquire()
                if "generation" in self.errors or job.error is not None:
                    slots.release()
                    continue
                task = self._start(self._generate(generator, job, sample), self._generating)
                task.add_done_callback(lambda _: slots.release())

    async def _generate(self, generator: Generator, job: TraitJob, sample: Sample) -> None:
        self.clocks["generation"].begin(self.elapsed)
        try:
            response = await generator.generate(sample)
        except TraitmillError as error:
            self.stop_stage("generation", error)
            return
        self.clocks["generation"].count(self.elapsed, len(response.response_token_ids))
        self._recorder.add(job, "responses", response)
        if response.status == "ok":
            if self.backends.judge:
                job.todo.judging += 1
                self._judging.offer(job, response)
            if self._captures and self.settings.capture_rows == "all":
                self._want_capture(job, response)
        else:
            self.backends.on_skipped(response)
            if response.error:
                self.notice(f"{job.name}: sample {sample.id} {response.status}: {response.error}")
        job.todo.generation -= 1
        self._changed.set()

    async def _judge_all(self) -> None:
        judge = self.backends.judge
        if judge is None:
            await asyncio.Event().wait()
            return
        while True:
            for item in await self._judging.take(MAX_JUDGING):
                if "judging" not in self.errors and item[0].error is None:
                    under_way = self._being_judged[item[0]]
                    task = self._start(self._judge(judge, item), self._judged)
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
            # A local judge parks answers until its offset is known, so a limit could keep out those it waits for.
            while len(self._judged) >= MAX_JUDGING and not self.settings.judge.is_local:
                await asyncio.wait(self._judged, return_when=asyncio.FIRST_COMPLETED)

    async def _judge(self, judge: Judge, item: Item) -> None:
        job, response = item
        self.clocks["judging"].begin(self.elapsed)
        try:
            verdict = await judge.judge(job.trait, response)
        except TraitmillError as error:
            if not self.interrupted:
                self.stop_stage("judging", error)
            return
        if job.view.manifest.take_up_judge():
            self._recorder.write_manifest(job)
        self.clocks["judging"].count(self.elapsed, verdict.input_tokens + verdict.output_tokens)
        self._recorder.add(job, "verdicts", verdict)
        if self._captures and self.settings.capture_rows == "kept" and verdict.score is not None:
            high = verdict.score >= self.settings.selection.threshold
            if high == (response.sample.polarity == "pos"):
                self._want_capture(job, response)
        job.todo.judging -= 1
        self._changed.set()

    def _want_capture(self, job: TraitJob, response: Response) -> None:
        job.todo.capture += 1
        self._capturing.offer(job, response)

    async def _capture_all(self) -> None:
        if not self._captures:
            await asyncio.Event().wait()
            return
        if self.backends.before_capture is not None:
            while not self._engine_idle():  # noqa: ASYNC110 - decided from many counts; ten looks a second are cheap
                await asyncio.sleep(0.1)
        try:
            if self.backends.before_capture is not None and (
                facts := await self.backends.before_capture()
            ):
                self.backends.capture_facts = facts
        except TraitmillError as error:
            self.stop_stage("capture", error)
        slots = asyncio.Semaphore(_CAPTURES)
        while "capture" not in self.errors:
            await slots.acquire()
            items = await self._next_to_capture()
            self._start(self._capture(items), self._captured).add_done_callback(
                lambda _: slots.release()
            )
        await asyncio.Event().wait()

    def _engine_idle(self) -> bool:
        """Whether nothing more will be asked of the generation engine: capture may take its memory."""
        may_add_rounds = not {"generation", "judging"} & self.errors.keys()
        waits_for_rounds = self.settings.counts.min_kept and may_add_rounds
        needs_judging = self.settings.judge.is_local or waits_for_rounds
        if "generation" not in self.errors and any(
            j.todo.generation for j in self.jobs if j.error is None
        ):
            return False
        return not (
            needs_judging
            and "judging" not in self.errors
            and any(
                j.todo.judging or (waits_for_rounds and not j.decided)
                for j in self.jobs
                if j.error is None
            )
        )

    async def _next_to_capture(self) -> list[Item]:
        facts = self.backends.capture_facts
        assert facts is not None  # noqa: S101 - set by whoever starts the run, or before capture
        row_bytes = 4 * len(facts.layers) * facts.hidden_dim * len(self.settings.capture.pools)
        rows = _CPU_CHUNK_ROWS if facts.device == "cpu" else _CAPTURE_CHUNK_ROWS
        limit = max(1, min(rows, _CAPTURE_CHUNK_BYTES // row_bytes))
        # Beside generation, calls of a few rows would leave the GPU idle and take their turns from generation.
        latest = time.monotonic() + self.settings.execution.flush_seconds
        while facts.device != "cpu" and len(self._capturing) < limit and time.monotonic() < latest:
            if self._engine_idle():
                break
            await asyncio.sleep(_IDLE_S)
        return [
            item
            for item in await self._capturing.take_in_plan_order(limit)
            if item[0].error is None
        ]

    async def _capture(self, items: list[Item]) -> None:
        facts, capturer = self.backends.capture_facts, self.backends.capturer
        assert facts is not None and capturer is not None  # noqa: S101, PT018 - as above
        self.clocks["capture"].begin(self.elapsed)
        try:
            results = await capturer.capture([capture_row(response) for _, response in items])
        except TraitmillError as error:
            self.stop_stage("capture", error)
            return
        for job in dict.fromkeys(job for job, _ in items):  # on disk before the rows they describe
            if job.view.manifest.note_capture(
                facts.recorded(self.settings.execution.batch_size), capturer.self_check
            ):
                self._recorder.write_manifest(job)
        lacking = {
            job: iter(
                job.lacking_pools([response.sample.id for owner, response in items if owner is job])
            )
            for job in dict.fromkeys(job for job, _ in items)
        }
        for (job, response), result in zip(items, results, strict=True):
            self.clocks["capture"].count(
                self.elapsed, len(response.sample.prompt_token_ids) + response.n_pooled
            )
            if pools := next(lacking[job]):
                self._recorder.add(job, "activations", capture_records(result, pools, facts))
            if result.error:
                self.notice(f"{job.name}: {result.error}")
            job.todo.capture -= 1
        await self._recorder.flush()  # bounds what is in memory, while the next call computes
        for job in dict.fromkeys(
            job for job, _ in items
        ):  # never before a row: files would pass as of another set
            if job.view.manifest.take_up_capture():
                self._recorder.write_manifest(job)
        self._changed.set()

    # --- ends ------------------------------------------------------------------------------------------------

    def stop_stage(self, stage: Stage, error: TraitmillError) -> None:
        """A stage cannot go on; the others finish what they have."""
        if stage not in self.errors:
            self.errors[stage] = error
            self.notice(f"{stage} stopped: {error}")
            if stage == "generation":
                for job in self.jobs:
                    job.pending.clear()
            if stage != "capture":
                self.backends.on_starved()
        self._changed.set()

    def _fail_trait(self, job: TraitJob, error: TraitmillError) -> None:
        if job.error is None:
            job.error = error
            self.notice(f"{job.name}: {error}")
            job.pending.clear()
            for task in self._being_judged[
                job
            ]:  # nothing of it could be stored: it must not be paid for
                task.cancel()
        self._changed.set()

    async def _settle(self) -> None:
        """Finish traits as their last records arrive; return when nothing more can happen."""
        while not self.interrupted:
            self._changed.clear()
            for job in self.jobs:
                if not job.settled:
                    await self._advance(job)
            if all(job.settled or self._stuck(job) for job in self.jobs) and not self._generating:
                return
            await self._changed.wait()

    def _stuck(self, job: TraitJob) -> bool:
        """Whether all that is left of a trait belongs to stages that stopped, and no answer is under way.

        Calls to a judge outlast its stage: what they bring has been paid for. Each ends at its deadline at the latest.
        """
        if self._being_judged[job]:
            return False
        left = {
            "generation": job.todo.generation,
            "judging": job.todo.judging,
            "capture": job.todo.capture,
        }
        return any(left.values()) and all(stage in self.errors for stage, n in left.items() if n)

    async def _advance(self, job: TraitJob) -> None:
        if job.todo.generation or job.todo.judging:
            return
        try:
            if not job.decided:
                async with self._recorder.paused(job):
                    more = await asyncio.to_thread(job.next_round)
                if more:  # what is still to be captured of earlier rounds stays in its queue
                    job.plan_work(generate=self.backends.generator is not None)
                    self._changed.set()
                    return
            if job.todo.capture == 0:
                await self._recorder.flush(job)
                await asyncio.to_thread(_finish, job)
        except TraitmillError as error:
            self._fail_trait(job, error)
            return
        except OSError as error:
            self._fail_trait(
                job, ResourceError(f"{job.folder} cannot be written: {error.strerror or error}")
            )
            return
        if job.finished:
            self.on_finished(job)


def _finish(job: TraitJob) -> None:
    job.export()
    for kind in KINDS:
        job.view.store.parts.compact(kind)
    job.finished = True
