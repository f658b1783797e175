"""A call from Python that is cancelled: nothing of it goes on once it has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import traitmill
from tests.support import fakes, lab
from traitmill.engine.run import ending, models, prepare, running, trait_run, writer
from traitmill.engine.run.backends import Backends
from traitmill.engine.run.loading import Work
from traitmill.engine.settings import Execution


def others() -> list[str]:
    """What is under way beside the test."""
    mine = asyncio.current_task()
    return [str(task.get_coro()) for task in asyncio.all_tasks() if task is not mine]


def generating(
    root: Path, backends: Callable[[Work], Any], stop: asyncio.Event | None = None
) -> asyncio.Task[traitmill.RunResult]:
    fakes.make_trait(root)
    lab.make_model(root)
    call = traitmill.generate(
        root / "exp",
        ["trait"],
        model=str(root / "toy"),
        backends=backends,
        stop=stop,
        judge_model="fake-judge",
        judge_base_url="http://127.0.0.1:9/v1",
        n_examples=20,
    )
    return asyncio.create_task(call)


async def test_a_pipeline_cancelled_twice_ends_when_its_last_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock was let go while the store still wrote: the same call at once lost rows, or made
    them twice."""
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(60)
    append = writer._append

    def slow(*given: Any) -> Any:
        time.sleep(0.3)
        return append(*given)

    monkeypatch.setattr(writer, "_append", slow)
    runs = fakes.open_runs([folder], settings)
    work = fakes.pipeline(runs, settings, generator=fakes.FakeGenerator(0.02, 16))
    task = asyncio.create_task(work.run())
    while work.clocks["generation"].records < 20:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert others() == []
    stored = int((fakes.state(folder).responses.status >= 0).sum())
    assert stored >= 20
    monkeypatch.setattr(writer, "_append", append)
    generator = fakes.FakeGenerator()
    rest = fakes.pipeline(fakes.open_runs([folder], settings), settings, generator=generator)
    await rest.run()
    assert len(generator.calls) == 120 - stored
    state = fakes.state(folder)
    rows = [table.num_rows for _, table in state.parts["responses"].read(["sample_id"])]
    assert sum(rows) == 120 == len(np.unique(state.plan.ids))


@pytest.mark.parametrize("step", ["finish", "next_round"])
async def test_a_cancelled_call_ends_after_what_it_does_on_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The files of a finished trait were written after the lock had gone: another call at once
    mixed its rows with theirs."""
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(20)
    runs = fakes.open_runs([folder], settings)
    begun, ended = asyncio.Event(), []
    loop, own = asyncio.get_running_loop(), getattr(trait_run.TraitRun, step)

    def slow(run: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        time.sleep(0.5)
        found = own(run)
        ended.append(step)
        return found

    monkeypatch.setattr(trait_run.TraitRun, step, slow)
    task = asyncio.create_task(fakes.pipeline(runs, settings).run())
    await asyncio.wait_for(begun.wait(), 60)
    task.cancel()
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [step]


@pytest.mark.parametrize("step", ["look_at", "open"])
async def test_a_call_cancelled_while_it_opens_folders_keeps_their_locks_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(running, "lazy_tokenizer", lambda _: fakes.tokenizers)
    begun, ended = asyncio.Event(), []
    loop = asyncio.get_running_loop()
    owner = running if step == "look_at" else prepare.Opening
    own = getattr(owner, step)

    def slow(*given: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        time.sleep(0.5)
        found = own(*given)
        ended.append(step)
        return found

    monkeypatch.setattr(owner, step, slow)
    task = generating(tmp_path, lambda _: None)
    await asyncio.wait_for(begun.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [step]


class Opening:
    """Backends that take as long to open as they are let, and to close."""

    def __init__(self) -> None:
        self.begun, self.closed = asyncio.Event(), False

    @asynccontextmanager
    async def __call__(self, _work: Work) -> AsyncIterator[Backends]:
        self.begun.set()
        try:
            await asyncio.Event().wait()
            yield Backends()
        finally:
            await asyncio.sleep(0.2)
            self.closed = True


@pytest.mark.parametrize("how", ["stop", "cancel", "cancelled twice", "timeout"])
async def test_what_is_loading_is_down_when_the_call_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It went on loading, paid the judge, and told the listener, with the lock let go."""
    monkeypatch.setattr(running, "lazy_tokenizer", lambda _: fakes.tokenizers)
    opening, stop = Opening(), asyncio.Event()
    task = generating(tmp_path, opening, stop)
    await opening.begun.wait()
    if how == "stop":
        stop.set()
        assert (await task).interrupted
    elif how == "timeout":
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task, 0.05)
    else:
        task.cancel()
        if how == "cancelled twice":
            await asyncio.sleep(0.05)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert opening.closed
    assert others() == []


class SlowEngine:
    """Takes a second to start, as a model takes minutes; a start that nobody waits for ends."""

    made: list[SlowEngine]

    def __init__(self, *_given: Any, **_named: Any) -> None:
        self.made.append(self)
        self.abandoned = False

    def start(self) -> None:
        time.sleep(1.0)

    def abandon(self) -> None:
        self.abandoned = True


async def test_a_start_that_is_cancelled_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its engine stood in memory for as long as the process, beside that of the next call."""
    SlowEngine.made = []
    monkeypatch.setattr(models, "VllmEngine", SlowEngine)
    monkeypatch.setattr(models, "size_engine", lambda *_given, **_named: "small")
    settings = SimpleNamespace(sampling=SimpleNamespace(dtype="auto"))
    ref = SimpleNamespace(name="m")
    wanted = SimpleNamespace(
        ref=ref, settings=settings, steers=False, thought=None, ends=(), longest=9, is_long=False
    )
    local = models.LocalModels(wanted, notice=lambda _: None, last_error=lambda: "")  # type: ignore[arg-type]
    task = asyncio.create_task(local.start_engine(ref, None, Execution()))  # type: ignore[arg-type]
    while not SlowEngine.made:
        await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    [engine] = SlowEngine.made
    assert engine.abandoned
    assert local.generator is None


async def test_what_is_waited_for_to_its_end_ends_once() -> None:
    done: list[str] = []

    async def work(error: Exception | None) -> None:
        await asyncio.sleep(0.1)
        done.append("done")
        if error:
            raise error

    for error in (None, ValueError("of its own")):
        task = asyncio.create_task(ending.to_the_end(work(error)))
        for _ in range(3):
            await asyncio.sleep(0.01)
            task.cancel()
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        assert raised.value.__cause__ is error
    assert done == ["done", "done"]
