"""The models of a run on one machine: an engine and a capture model, placed and loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from anyio import to_thread

from ..capture import CaptureProcess, check_blocks
from ..generation import (
    COMPILED_FROM_S,
    GPU_SEQUENCES,
    SteeredEngine,
    VllmEngine,
    check_architecture,
    on_gpu,
    size_engine,
)
from ..models import (
    GIB,
    Gpu,
    ModelRef,
    Placement,
    Thought,
    check_capture,
    check_weights,
    choose_placement,
    count_weights,
    fetch_weights,
    free_host_memory,
    generation_dtype,
    read_config,
    show_only,
    sized,
)
from ..settings import Execution, RunSettings
from .capturing import RunCapture


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsWanted:
    """Which models a run needs of its one model's name."""

    ref: ModelRef
    settings: RunSettings
    engine: bool
    captures: bool
    longest: int
    """Tokens of the longest sequence that an engine will see."""
    ends: tuple[int, ...] = ()
    """Tokens that end the model's turn, beside those that its files name."""
    thought: Thought | None = None
    """How the model thinks before it responds; None where it does not, or is not to respond."""
    steers: bool = False
    """Whether engines are to be `SteeredEngine`s."""
    generation_s: float | None = None
    """What generation is expected to take; None: not known."""

    @property
    def is_long(self) -> bool:
        """Whether an engine's compilation pays: as far as is known, it does."""
        return self.generation_s is None or self.generation_s >= COMPILED_FROM_S


def place(wanted: ModelsWanted, *, gpu: bool, cards: Sequence[Gpu] | None = None) -> Placement:
    """Return who gets which device of this machine, or of some of its cards.

    Raise UsageError or ResourceError.
    """
    return choose_placement(
        wanted.ref.config,
        wanted.settings,
        gpu=gpu,
        engine=wanted.engine,
        capture=wanted.captures,
        sequences=wanted.settings.execution.batch_size or GPU_SEQUENCES,
        tokens_per_sequence=wanted.longest if gpu and wanted.engine else 0,
        cards=cards,
        stored=count_weights(wanted.ref) if gpu else None,
    )


class LocalModels:
    """The models in processes of this one, on the devices it sees."""

    def __init__(
        self,
        wanted: ModelsWanted,
        *,
        notice: Callable[[str], None],
        last_error: Callable[[], str],
        note: Callable[[str], None] = lambda _: None,
        share: int = 1,
    ) -> None:
        """`share`: how many runs like this one divide the machine's memory. `note` takes lines for
        the log alone."""
        self.wanted, self._settings = wanted, wanted.settings
        self._notice, self._last_error, self._share = notice, last_error, share
        self._note = note
        self._engines: list[VllmEngine] = []
        self.placement: Placement | None = None
        """Who gets which device; None until `prepare`, and where nothing is loaded."""
        self.capturer: RunCapture | None = None
        self.gpu = False
        self.replicas = 1

    @property
    def generator(self) -> VllmEngine | None:
        """The run's engine; None without one."""
        return self._engines[0] if self._engines and self.wanted.engine else None

    async def prepare(self) -> None:
        """Find out what cannot work before a judge is paid or a weight downloaded.

        Raise UsageError, AccessError or ResourceError.
        """
        self.gpu = await asyncio.to_thread(on_gpu)
        if self.wanted.engine or self.wanted.captures:
            await asyncio.to_thread(check_model, self.wanted, gpu=self.gpu)
            if self.wanted.engine:
                await asyncio.to_thread(check_architecture, self.wanted.ref)
            self.placement = await asyncio.to_thread(place, self.wanted, gpu=self.gpu)

    async def fetch(self) -> None:
        """Download the weights that are not here yet, once for both models. Raise AccessError."""
        if self.placement is not None:
            ref = await asyncio.to_thread(fetch_weights, self.wanted.ref, self._notice)
            if ref != self.wanted.ref:  # of what a hub names, only now are the files here
                await asyncio.to_thread(_check_weights, self.wanted, ref)
            self.wanted = replace(self.wanted, ref=ref)

    async def load(self) -> None:
        """Load them, those side by side that may be. Raise a TraitmillError."""
        placement = self.placement
        if placement is None:
            return
        loads: list[Awaitable[object]] = []
        if placement.gpus:
            show_only(placement.gpus)
        if self.wanted.captures:
            if placement.line:
                self._notice(placement.line)
            self.capturer = await self._make_capture(placement)
            if placement.mode == "co-resident":
                # vLLM measures what it needs of its share: nobody else's use may change meanwhile.
                await self.capturer.load()
            elif self.capturer.loads_now:
                loads.append(self.capturer.load())
        if self.wanted.engine:
            execution = self._settings.execution
            loads.append(self.start_engine(self.wanted.ref, placement, execution))
        await asyncio.gather(*loads)

    async def start_engine(
        self, ref: ModelRef, placement: Placement | None, execution: Execution
    ) -> VllmEngine:
        """Start one more engine, and keep it until the models make room or are closed."""
        size = size_engine(
            ref,
            execution,
            self.wanted.longest,
            on_gpu=self.gpu,
            free_bytes=free_host_memory() // self._share,
            placement=placement,
            dtype=self._settings.sampling.dtype,
        )
        kind = SteeredEngine if self.wanted.steers else VllmEngine
        engine = kind(
            ref,
            self._settings.sampling,
            execution,
            size,
            on_gpu=self.gpu,
            last_error=self._last_error,
            thought=self.wanted.thought if ref is self.wanted.ref else None,
            ends=self.wanted.ends if ref is self.wanted.ref else (),
            compiled=self.wanted.is_long,
        )
        self._notice(f"loading {ref.name}: {size}")
        try:
            # An interrupt does not wait for the end of a load.
            await to_thread.run_sync(engine.start, abandon_on_cancel=True)
        except asyncio.CancelledError:
            engine.abandon()
            raise
        self._engines.append(engine)
        return engine

    async def start_judging(self, ref: ModelRef) -> VllmEngine:
        """Start the engine of a judge that is another model, and alone where there is a GPU.

        Raise a TraitmillError.
        """
        # How many sequences the run's own model is to have at once says nothing of this one.
        execution = replace(self._settings.execution, batch_size=None)
        settings = replace(self._settings, execution=execution)
        wanted = replace(self.wanted, ref=ref, settings=settings, engine=True, captures=False)
        placement = await asyncio.to_thread(place, wanted, gpu=self.gpu)
        if placement.gpus:
            show_only(placement.gpus)
        return await self.start_engine(ref, placement, execution)

    async def _make_capture(self, placement: Placement) -> RunCapture:
        wanted = self.wanted
        beside = placement.mode in ("alone", "apart", "co-resident")
        loads_now = beside
        if not beside and not self.gpu:
            # While the engine's start leaves cores idle. Decided before the loads: transformers
            # cannot be imported from two threads at once.
            loads_now = await asyncio.to_thread(self._fits_beside_engine)
        process = CaptureProcess(
            wanted.ref.source,
            wanted.ref.hub_revision,
            self._settings.capture,
            replace(self._settings.execution, capture_device=placement.capture_device),
            adapter=wanted.ref.adapter.folder if wanted.ref.adapter else None,
            generation_dtype=generation_dtype(
                read_config(wanted.ref.config), self._settings.sampling.dtype, gpu=self.gpu
            ),
            token_budget=placement.capture_tokens,
        )
        return RunCapture(
            process,
            placement=placement.mode,
            beside_generation=beside or not wanted.engine,
            loads_now=loads_now,
            make_room=self._close_engines,
            notice=self._notice,
            note=self._note,
        )

    def _fits_beside_engine(self) -> bool:
        """Return whether host memory holds the capture model too, whatever its dtype."""
        ref = self.wanted.ref
        weights = sized(ref.config, count_weights(ref)).weight_bytes(4)
        return 3 * weights < free_host_memory() // self._share - GIB

    async def _close_engines(self) -> None:
        engines, self._engines = self._engines, []
        for engine in engines:
            await engine.close()

    async def close(self) -> None:
        """Take down what was loaded."""
        if self.capturer is not None:
            await self.capturer.close()
        await self._close_engines()


def check_model(wanted: ModelsWanted, *, gpu: bool) -> None:
    """Raise UsageError or AccessError for a model whose files or settings cannot work."""
    if wanted.captures:
        check_capture(wanted.ref.config, wanted.settings.capture, "cuda" if gpu else "cpu")
    _check_weights(wanted, wanted.ref)


def _check_weights(wanted: ModelsWanted, ref: ModelRef) -> None:
    if wanted.captures:
        check_weights(ref, partial(check_blocks, path=wanted.settings.execution.blocks))
    else:
        check_weights(ref)
