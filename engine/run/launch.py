"""A run's real backends: the judge is asked first, then models are loaded, then the pipeline runs until done."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from anyio import to_thread

from ..capture.process import CaptureFacts, CaptureWorker
from ..errors import EngineDiedError, ResourceError, StoppedError, UsageError
from ..generation.vllm_engine import GPU_SEQUENCES, VllmEngine, on_gpu, size_engine
from ..judging.local import LocalJudge
from ..judging.scoring import local_prompt
from ..models.hub import ModelRef
from ..models.machine import GIB, Shape, free_host_memory
from ..models.placement import Placement, choose_placement
from ..models.weights import check_weights
from ..settings import RunSettings
from ..storage.run_record import refuse_other_capture
from ..traits.definition import fill
from .backends import Backends
from .job import TraitJob
from .judges import endpoint_judge, find_judge, note_profile, open_traits
from .log import last_error
from .pipeline import Pipeline
from .watchdog import tie_children


class Launch:
    """Loads what a run needs, no more, and takes it down again."""

    def __init__(
        self,
        jobs: Sequence[TraitJob],
        settings: RunSettings,
        ref: ModelRef,
        log: Path,
        notice: Callable[[str], None],
        *,
        generate: bool,
        judge: bool,
        blocks: str | None = None,
    ) -> None:
        self._jobs = jobs
        self._settings = settings
        self._ref = ref
        self._log = log
        self._notice = notice
        self._blocks = blocks
        self._stop = asyncio.Event()
        self._engines: list[VllmEngine] = []
        self._worker: CaptureWorker | None = None
        self._judge: Any = None
        self._placement: Placement | None = None
        self._abandoned = False
        self._roomy = False
        self.backends = Backends()
        self.pipeline = Pipeline(jobs, settings, self.backends, notice)
        for job in jobs:
            job.plan_work(generate=generate)
            while generate and not job.pending and not len(job.unjudged()) and job.next_round():
                job.plan_work(
                    generate=generate
                )  # rounds that are finished already, or the first that is not
        unjudged = any(len(job.unjudged()) for job in jobs)
        self._generate = generate and (
            any(job.pending for job in jobs) or bool(settings.counts.min_kept and unjudged)
        )
        self._judges = judge and (self._generate or unjudged)
        new = self._generate and settings.capture_rows == "all"
        kept = self._judges and settings.capture_rows == "kept"
        self._captures = new or kept or any(len(job.uncaptured()) for job in jobs)
        for job in (
            jobs
        ):  # another judge or set whose records are all there needs no first one to be taken up
            taken_up = not self._judges and job.view.manifest.take_up_judge()
            if (not len(job.uncaptured()) and job.view.manifest.take_up_capture()) or taken_up:
                job.view.manifest.save(job.folder)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to generate, judge or capture: no model will be loaded."""
        return not (self._generate or self._judges or self._captures)

    @property
    def usage(self) -> Any:
        """What a remote judge has used so far; None for a local one."""
        return getattr(self._judge, "usage", None)

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Run to the end, to an interrupt, or to an error that no stage survives."""
        presses = 0

        def press() -> None:
            nonlocal presses
            presses += 1
            if presses > 1:
                os._exit(130)
            self._notice("stopping: flushing what is in hand (press again to leave at once)")
            self._stop.set()
            self.pipeline.stop()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, press)
        try:
            if not self.idle:
                tie_children()
                await self._unless_stopped(self._load())
            on_ready()
            if not self._stop.is_set():
                await self.pipeline.run()
        finally:
            if not self._abandoned:
                await self._close()

    async def _unless_stopped(self, work: Any) -> None:
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if task.done():
            task.result()
            return
        # A model being loaded cannot be stopped and is not waited for: the guardian ends its process with ours.
        self._abandoned = True
        task.cancel()

    async def _load(self) -> None:
        gpu = await asyncio.to_thread(on_gpu)
        judging = self._settings.judge
        needs_engine = self._generate or (self._judges and judging.model == "local")
        if (
            gpu
            and self._judges
            and judging.is_local
            and judging.model != "local"
            and (needs_engine or self._captures)
        ):
            raise UsageError(
                f"--judge_model {judging.model}: a GPU holds one generating model at a time, and nothing beside this "
                "one; use --judge_model local, or serve the judge elsewhere and name it with --judge_base_url"
            )
        local: tuple[ModelRef, Any] | None = None
        if self._judges and judging.is_local:
            local = await asyncio.to_thread(find_judge, judging.model, self._ref)
        elif self._judges:
            await self._open_endpoint()
        if needs_engine or self._captures:
            await asyncio.to_thread(check_weights, self._ref)
        if local is not None and local[0] is not self._ref:
            await asyncio.to_thread(check_weights, local[0])
        if self._captures:
            self._placement = await asyncio.to_thread(self._place, gpu=gpu, engine=needs_engine)
            if self._placement.line:
                self._notice(self._placement.line)
            # Decided before the loads: transformers cannot be imported from two threads at once.
            self._roomy = not gpu and await asyncio.to_thread(self._fits_beside_engine)
        loads: list[Awaitable[object]] = []
        if needs_engine:
            loads.append(self._start_engine(self._ref, gpu, self._placement))
        if self._captures:
            loads.append(self._start_capture())
        await asyncio.gather(*loads)
        if needs_engine and self._generate:
            self.backends.generator = self._engines[0]
        if local is not None:
            await self._open_local(gpu, *local)

    # --- engine ----------------------------------------------------------------------------------------------

    def _place(self, *, gpu: bool, engine: bool) -> Placement:
        return choose_placement(
            self._ref.config,
            self._settings,
            gpu=gpu,
            engine=engine,
            sequences=self._settings.execution.batch_size or GPU_SEQUENCES,
            tokens_per_sequence=self._longest() if gpu and engine else 0,
        )

    def _longest(self) -> int:
        """Tokens of the longest sequence the engine will see."""
        new = self._settings.sampling.max_new_tokens
        longest, room = (
            1,
            self._ref.context_length,
        )  # a prompt that fills it will not be generated from
        for job in self._jobs:
            samples = job.samples(job.distinct_pending())
            lengths = (len(sample.prompt_token_ids) for sample in samples)
            longest = max(longest, *(n + new for n in lengths if not room or n < room), 1)
            if self._judges and self._settings.judge.is_local:
                question = max(job.trait.questions, key=len)
                bare = job.tokenize(fill(local_prompt(job.trait), question=question, answer=""))
                longest = max(
                    longest, len(bare) + 2 * new
                )  # text may take more tokens than were sampled
        return longest

    async def _start_engine(
        self,
        ref: ModelRef,
        gpu: bool,
        placement: Placement | None,
        settings: RunSettings | None = None,
    ) -> VllmEngine:
        settings = settings or self._settings
        size = size_engine(
            ref,
            settings.execution,
            await asyncio.to_thread(self._longest),
            on_gpu=gpu,
            free_bytes=free_host_memory(),
            placement=placement,
        )
        engine = VllmEngine(
            ref,
            settings.sampling,
            settings.execution,
            size,
            on_gpu=gpu,
            sleep_mode=placement is not None and placement.mode == "sleep",
            last_error=lambda: last_error(self._log),
        )
        self._notice(f"loading {ref.name}: {size}")
        await to_thread.run_sync(engine.start, abandon_on_cancel=True)
        self._engines.append(engine)
        return engine

    # --- capture ---------------------------------------------------------------------------------------------

    def _fits_beside_engine(self) -> bool:
        """Whether host memory holds the capture model too, whatever its dtype, while the engine is at work."""
        return 3 * Shape.from_config(self._ref.config).weight_bytes(4) < free_host_memory() - GIB

    async def _start_capture(self) -> None:
        placement = self._placement
        assert placement is not None  # noqa: S101 - set by _load
        self._worker = CaptureWorker(
            self._ref,
            self._settings.capture,
            replace(self._settings.execution, capture_device=placement.capture_device),
            generation_dtype=self._settings.sampling.dtype,
            token_budget=placement.capture_tokens,
            blocks=self._blocks,
        )
        self.backends.capturer = self._worker
        if placement.mode in ("alone", "apart", "co-resident"):
            self.backends.capture_facts = await self._load_capture()
            return
        self.backends.before_capture = self._make_room
        if self._roomy:
            self.backends.capture_facts = (
                await self._load_capture()
            )  # while the engine's start leaves cores idle

    async def _make_room(self) -> CaptureFacts | None:
        """Generation has ended: its memory and cores are capture's."""
        try:
            asleep = self._placement is not None and self._placement.mode == "sleep"
            for engine in self._engines if asleep else ():
                await engine.sleep()
        except ResourceError as error:
            self._notice(f"{error}; it is stopped instead")
            asleep = False
        if not asleep:
            await self._close_engines()
        return None if self.backends.capture_facts else await self._load_capture()

    async def _load_capture(self) -> CaptureFacts:
        assert self._worker is not None and self._placement is not None  # noqa: S101, PT018 - set by _start_capture
        facts = replace(await self._worker.start(), placement=self._placement.mode)
        for job in self._jobs:
            refuse_other_capture(job.folder, job.view.manifest, asdict(facts))
        self._notice(
            f"capture on {facts.device}, {facts.dtype}, {facts.attention} attention; {facts.arithmetic}"
        )
        return facts

    # --- judges ----------------------------------------------------------------------------------------------

    async def _open_endpoint(self) -> None:
        judge = await asyncio.to_thread(endpoint_judge, self._jobs, self._settings, self._notice)
        self._judge = self.backends.judge = judge
        self.backends.on_interrupt = judge.interrupt
        try:
            profile = await judge.open()
        except (
            StoppedError
        ) as error:  # no quota, say: responses and activations can be had all the same
            self.pipeline.stop_stage("judging", error)
            return
        await asyncio.to_thread(note_profile, self._jobs, judge, profile)
        keys = {job.view.manifest.judge_key for job in self._jobs}
        self._notice(
            f"judge {self._settings.judge.model}: {len(keys)} judge prompt{'s' if len(keys) != 1 else ''}"
        )

    async def _open_local(self, gpu: bool, ref: ModelRef, tokenizer: Any) -> None:
        judging = self._settings.judge
        engine = self._engines[0] if self._engines else None
        if judging.model != "local":
            engine = await self._start_engine(ref, gpu, None, self._judge_engine_settings())
        if engine is None:
            raise EngineDiedError("the judging engine is not loaded")
        by_name = {job.name: job for job in self._jobs}

        def freeze(trait: str, offset: float) -> None:
            by_name[trait].freeze_offset(offset)
            self.pipeline.manifest_changed(by_name[trait])

        judge = LocalJudge(engine, tokenizer, judging, ref.name, freeze)
        open_traits(judge, self._jobs)
        self.backends.judge = self._judge = judge
        self.backends.on_skipped, self.backends.on_starved = judge.skip, judge.give_up

    def _judge_engine_settings(self) -> RunSettings:
        return replace(self._settings, execution=replace(self._settings.execution, batch_size=None))

    # --- ends ------------------------------------------------------------------------------------------------

    async def _close_engines(self) -> None:
        engines, self._engines = self._engines, []
        for engine in engines:
            await engine.close()

    async def _close(self) -> None:
        await self._close_engines()
        if self._worker is not None:
            await self._worker.close()
        if self._judge is not None:
            await self._judge.close()
