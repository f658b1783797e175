"""The capture process itself, over a tiny real model: what it says reaches the run."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import fakes
from tests.support.oracle import BOS, VOCAB, Oracle, build
from traitmill.cli.session import Outcome
from traitmill.engine.errors import ExitCode, SelfCheckError
from traitmill.engine.models.hub import ModelRef, find_model
from traitmill.engine.records import Response, Sample
from traitmill.engine.settings import RunSettings, Sampling
from traitmill.engine.traits.definition import load_traits


def tokenize(prompt: str) -> tuple[int, ...]:
    """Ids that the tiny models know."""
    return (BOS, *(3 + byte % (VOCAB - 3) for byte in prompt.encode()))


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


def tiny_job(root: Path, model: str, **changes: object) -> tuple[TraitJob, RunSettings, ModelRef]:
    """A trait to be run on a model folder."""
    ref = find_model(model)
    run = fakes.settings(
        n_examples=4, sampling=Sampling(model=ref.name, revision=ref.revision), **changes
    )
    folder = fakes.make_trait(root)
    (trait,) = load_traits({"trait": folder})
    return open_job(trait, folder, run, ref, tokenize, lambda _: None), run, ref


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
    worker = CaptureWorker(ref, run.capture, run.execution, generation_dtype="float32")
    try:
        facts = await worker.start()
        assert (facts.dtype, facts.n_layers, facts.hidden_dim, facts.placement) == (
            "float32",
            3,
            32,
            "alone",
        )
        generator = TinyGenerator(
            lambda *ids: tuple(value - wrong for value in oracle.logprobs(*ids))
        )
        work = fakes.pipeline([job], run, generator=generator, capturer=worker, capture_facts=facts)
        await work.run()
    finally:
        await worker.close()
    outcome = Outcome([job], list(work.errors.values()), interrupted=False)
    if not wrong:
        assert outcome.errors == []
        assert worker.self_check["logprob_rows"] == 8
        assert job.view.captured().sum() == 8
        return
    assert outcome.exit_code == ExitCode.SELF_CHECK == 11
    (error,) = outcome.errors
    assert isinstance(error, SelfCheckError)
    assert "differ from generation's by 0.5 nats a token" in str(error)
    assert not job.view.any_captured()
    assert job.view.responses.having("ok").all()
