"""From what commands want to how a run ended: folders locked, models opened, all taken down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..models import ModelRef, check_adapter, check_split, check_support, lazy_tokenizer
from ..storage import lock_traits
from . import remembered
from .backends import Backends
from .ending import on_thread, to_the_end
from .loading import Work
from .log import new_log
from .pipeline import Pipeline
from .prepare import Opening, look_at
from .progress import Listener, Progress, RunResult, trait_results
from .selection import check_capture_settings
from .trait_run import TraitRun
from .wanted import Wanted

OpenBackends = Callable[[Work], AbstractAsyncContextManager[Backends]]


async def run_through(
    wanted: Sequence[Wanted],
    ref: ModelRef,
    listener: Listener,
    stop: asyncio.Event | None,
    backends: OpenBackends,
    *,
    force_unlock: bool,
) -> RunResult:
    """Lock the folders, open them, load what is needed, run, take it down."""
    settings, generates = wanted[0].settings, wanted[0].generates
    captures = settings.capture_rows != "none"
    engine = generates or (wanted[0].judges and settings.judge.model == "local")
    if engine or captures:
        check_support(ref, captures=captures, generates=engine)
    if generates or captures:
        check_adapter(ref)
    if engine:
        check_split(ref, settings.execution.tensor_parallel_size)
    check_capture_settings(settings, ref, at_once=engine)
    stop = stop or asyncio.Event()
    started = time.monotonic()
    folders = [each.folder for each in wanted]
    with lock_traits(folders, force_unlock=force_unlock):
        tokenizers = lazy_tokenizer(ref)
        openings = [await on_thread(look_at, w, ref, tokenizers, listener.notice) for w in wanted]
        runs = [await on_thread(each.open, listener.notice) for each in openings]
        work = _work(runs, ref, listener, generates=generates, judges=wanted[0].judges)
        remember = partial(_remember, openings, runs)
        if not (work.generates or work.judges or work.captures):
            remember()
            listener.notice("everything is done already: no model is loaded")
            pipeline = Pipeline(runs, settings, Backends(), listener.notice)
            await pipeline.run(stop)
            result = _result(runs, pipeline, None, started, interrupted=pipeline.interrupted)
        else:
            loads = work.generates or work.captures or settings.judge.is_local
            progress = Progress(work.log, work.captures, runs, loads=loads)
            listener.began(progress)
            try:
                result = await _work_through(work, progress, stop, backends, started, remember)
            finally:
                listener.ended()
        if generates and not (result.interrupted or result.errors):
            for folder in folders:
                folder.renewing.unlink(missing_ok=True)
        return result


def _remember(openings: Sequence[Opening], runs: Sequence[TraitRun]) -> None:
    """Note what the folders work with from now on: what was asked for could be had."""
    for each, run in zip(openings, runs, strict=True):
        each.save(run.state.plan)
        if each.wanted.asked:
            remembered.remember(each.wanted.folder, each.wanted.asked)


async def _work_through(
    work: Work,
    progress: Progress,
    stop: asyncio.Event,
    backends: OpenBackends,
    started: float,
    remember: Callable[[], None],
) -> RunResult:
    async with AsyncExitStack() as stack:
        loading = asyncio.ensure_future(stack.enter_async_context(backends(work)))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            stopped = not loading.done()
            if stopped:
                loading.cancel()
                await to_the_end(asyncio.wait((loading,)))  # all that it has loaded is down then
        if stopped:
            return _result(work.runs, None, work.log, started, interrupted=True)
        progress.backends = loading.result()
        remember()
        pipeline = Pipeline(work.runs, work.settings, progress.backends, work.notice)
        progress.pipeline = pipeline
        await pipeline.run(stop)
        usage = progress.usage
    result = _result(work.runs, pipeline, work.log, started, interrupted=pipeline.interrupted)
    return replace(result, usage=usage)


def _work(
    runs: Sequence[TraitRun], ref: ModelRef, listener: Listener, *, generates: bool, judges: bool
) -> Work:
    """Return what is left to do; rounds that are finished already are stepped over."""
    for run in runs:
        while generates and not run.ungenerated() and not len(run.unjudged()):
            if not run.next_round():
                break
    settings = runs[0].settings
    unjudged = any(len(run.unjudged()) for run in runs)
    pending = generates and any(run.ungenerated() for run in runs)
    grows = any(len(run.unjudged()) and run.may_grow and run.falls_short for run in runs)
    needs_generator = pending or (generates and grows)
    needs_judge = judges and (needs_generator or unjudged)
    captures = any(len(run.uncaptured()) for run in runs)
    captures |= needs_generator and settings.capture_rows == "all"
    captures |= needs_judge and settings.capture_rows == "kept"
    return Work(
        ref=ref,
        settings=settings,
        runs=runs,
        generates=needs_generator,
        judges=needs_judge,
        captures=captures,
        log=new_log(runs[0].folder.experiment),
        notice=listener.notice,
    )


def _result(
    runs: Sequence[TraitRun],
    pipeline: Pipeline | None,
    log: Path | None,
    started: float,
    *,
    interrupted: bool,
) -> RunResult:
    errors, clocks = {}, {}
    if pipeline is not None:
        errors, clocks = pipeline.errors, pipeline.clocks
    return RunResult(
        traits=trait_results(runs),
        stage_errors=errors,
        interrupted=interrupted,
        clocks=clocks,
        seconds=time.monotonic() - started,
        usage=None,
        log=log,
    )
