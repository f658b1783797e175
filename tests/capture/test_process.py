"""The capture process itself, over a tiny real model: what it says reaches the run."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.support import fakes
from tests.support.oracle import BOS, VOCAB, Oracle, build
from tests.support.rows import response_row
from traitmill.engine.capture.process import CaptureFacts, CaptureProcess
from traitmill.engine.errors import EngineDiedError, ExitCode, SelfCheckError
from traitmill.engine.models.hub import ModelRef, find_model
from traitmill.engine.records import Response, Sample
from traitmill.engine.run.progress import RunResult, trait_results
from traitmill.engine.run.trait_run import TraitRun
from traitmill.engine.run.wanted import Wanted
from traitmill.engine.settings import RunSettings, Sampling
from traitmill.engine.storage.folder import TraitFolder
from traitmill.engine.traits.definition import load_traits


def tokenize(*prompt: str) -> tuple[int, ...]:
    """Ids that the tiny models know."""
    return (BOS, *(3 + byte % (VOCAB - 3) for byte in "\n\n".join(prompt).encode()))


tokenize.remark = ""  # type: ignore[attr-defined]
tokenize.thought = None  # type: ignore[attr-defined]


class TinyGenerator(fakes.FakeGenerator):
    """Random ids that the tiny models know; `logprobs` says what it claims of (prompt ids, response
    ids)."""

    def __init__(self, logprobs: Callable[..., tuple[float, ...]] | None = None) -> None:
        super().__init__()
        self._logprobs = logprobs

    async def generate(self, sample: Sample) -> Response:
        rng = random.Random(sample.id)
        ids = tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(2, 12)))
        claimed = self._logprobs(sample.prompt_token_ids, ids) if self._logprobs else None
        return Response(sample, "ok", "text", ids, "length", logprobs=claimed)


def tiny_job(root: Path, model: str, **changes: object) -> tuple[TraitRun, RunSettings, ModelRef]:
    """A trait to be run on a model folder."""
    ref = find_model(model)
    run = fakes.settings(
        n_examples=4, sampling=Sampling(model=ref.name, revision=ref.revision), **changes
    )
    folder = fakes.make_trait(root)
    (trait,) = load_traits({"trait": folder})
    wanted = Wanted(
        trait=trait, folder=TraitFolder(folder), settings=run, generates=True, judges=True
    )
    return fakes.open_run(wanted, ref, lambda *_: tokenize, lambda _: None), run, ref


class Placed:
    """A capture process as a run takes it."""

    beside_generation = True
    placement = "alone"
    calls = 1

    def __init__(self, process: CaptureProcess, facts: CaptureFacts) -> None:
        self._process, self._facts = process, facts
        self.capture = process.capture

    @property
    def self_check(self) -> dict[str, object]:
        return self._process.self_check

    async def open(self) -> CaptureFacts:
        return self._facts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build("llama", tmp_path_factory.mktemp("tiny"))


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [0.0, 0.5])
async def test_what_the_self_check_finds_ends_the_run_with_its_exit_code(
    wrong: float, model: str, tmp_path: Path
) -> None:
    oracle = Oracle(model)
    job, run, ref = tiny_job(tmp_path, model)
    run = replace(run, execution=replace(run.execution, self_check="all"))
    worker = CaptureProcess(
        ref.source, ref.hub_revision, run.capture, run.execution, generation_dtype="float32"
    )
    try:
        facts = await worker.start()
        assert (facts.dtype, facts.n_layers, facts.hidden_dim) == ("float32", 3, 32)
        generator = TinyGenerator(
            lambda *ids: tuple(value - wrong for value in oracle.logprobs(*ids))
        )
        work = fakes.pipeline([job], run, generator=generator, capturer=Placed(worker, facts))
        await work.run()
    finally:
        await worker.close()
    outcome = RunResult(trait_results([job]), work.errors, False, {}, 0.0, None, None)
    if not wrong:
        assert outcome.errors == []
        assert worker.self_check["logprob_rows"] == 8
        assert job.state.captured().sum() == 8
        return
    assert outcome.exit_code == ExitCode.SELF_CHECK == 11
    (error,) = outcome.errors
    assert isinstance(error, SelfCheckError)
    assert "differ from generation's by 0.5 nats a token" in str(error)
    assert not job.state.any_captured()
    assert job.state.responses.having("ok").all()


@pytest.mark.slow
async def test_t47_closing_ends_a_call_under_way_at_once(model: str, tmp_path: Path) -> None:
    """What is being computed is not waited for: it can be computed again."""
    _, run, ref = tiny_job(tmp_path, model)
    worker = CaptureProcess(ref.source, ref.hub_revision, run.capture, run.execution)
    await worker.start()
    [pid] = [process.pid for process in worker._pool._processes.values()]  # type: ignore[union-attr]
    rows = [response_row(f"row{i}", range(3, 30), range(3, 9), 6) for i in range(20_000)]
    call = asyncio.create_task(worker.capture(rows))
    await asyncio.sleep(0.5)
    assert not call.done()
    await asyncio.wait_for(worker.close(), 10)
    with pytest.raises(EngineDiedError):
        await call
    assert not psutil.pid_exists(pid)
