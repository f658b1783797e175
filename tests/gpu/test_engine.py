"""What the engine is told on a GPU, what becomes of its refusals, and of a start that fails."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pydantic import BaseModel, field_validator

from tests.models import test_placement as shapes
from tests.support import fakes
from traitmill.engine.capture import CaptureProcess
from traitmill.engine.capture.self_check import UNMEASURED_SLACK, Reference, SelfCheck
from traitmill.engine.errors import EngineDiedError, ExitCode, SelfCheckError, UsageError
from traitmill.engine.generation import EngineSize, VllmEngine
from traitmill.engine.models import ModelRef
from traitmill.engine.run import Work, loading, models, open_backends
from traitmill.engine.settings import Execution, Sampling

pytestmark = pytest.mark.usefixtures("online")

REF = ModelRef("fake", "fake", "r0", shapes.GEMMA_2B)


def engine(*, gpu: bool = True) -> VllmEngine:
    size = EngineSize(4, 128, 32, 1 << 30, 0.5)
    return VllmEngine(REF, Sampling(model="fake"), Execution(), size, on_gpu=gpu)


# --- G8: tolerances of a CPU are no error on a card ---


def check(slack: float) -> SelfCheck:
    return SelfCheck(
        "all",
        "float32",
        "float32",
        layers=(0,),
        pools=("response_mean",),
        bos=None,
        capped=False,
        slack=slack,
    )


def test_g08_a_gpus_tf32_is_said_and_not_an_error() -> None:
    """Measured: 1.15e-3 nats in float32 attention, of 1e-3 allowed. Over many tokens."""
    tokens = 1_000_000
    reference = Reference(
        np.zeros((1, 2, 4), np.float32), np.full(tokens, -1.0, np.float32), range(tokens)
    )
    off = np.full(tokens, -1.00115, np.float32)
    with pytest.raises(SelfCheckError):
        check(1.0).logprobs("row", off, reference)
    on_gpu = check(UNMEASURED_SLACK)
    on_gpu.logprobs("row", off, reference)
    assert on_gpu.summary()["doubtful_rows"] == 1
    with pytest.raises(SelfCheckError, match=r"tolerance 0\.003"):
        check(UNMEASURED_SLACK).logprobs("row", off - 0.003, reference)


def test_g08_states_are_errors_from_three_tolerances_on() -> None:
    reference = Reference(np.ones((1, 2, 4), np.float32), None, ())
    on_gpu = check(UNMEASURED_SLACK)
    on_gpu.states("fine", np.full((1, 1, 4), 1.00005, np.float32), reference)
    assert on_gpu.summary()["doubtful_rows"] == 0
    on_gpu.states("doubtful", np.full((1, 1, 4), 1.00025, np.float32), reference)
    assert on_gpu.summary()["doubtful_rows"] == 1
    with pytest.raises(SelfCheckError, match="sample wrong"):
        on_gpu.states("wrong", np.full((1, 1, 4), 1.00035, np.float32), reference)


# --- G18: a start that fails ends the capture model's load ---


def _load_slowly(started: Path, loaded: Path) -> None:
    """In the capture's process: a model that takes longer than any test may."""
    started.touch()
    time.sleep(600)
    loaded.touch()


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_g18_a_failed_engine_does_not_wait_for_the_capture_models_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, loaded = tmp_path / "started", tmp_path / "loaded"

    async def call(self: CaptureProcess, _function: Any, *_: Any) -> Any:
        return await right(self, _load_slowly, started, loaded)

    def fail(_: object) -> None:
        while not started.exists():
            time.sleep(0.05)
        raise EngineDiedError("no memory")

    right = CaptureProcess._call
    monkeypatch.setattr(CaptureProcess, "_call", call)
    monkeypatch.setattr(models.VllmEngine, "start", fail)
    monkeypatch.setattr(loading, "tie_children", lambda: None)
    monkeypatch.setattr(models, "on_gpu", lambda: False)
    monkeypatch.setattr(models.LocalModels, "_fits_beside_engine", lambda _: True)
    settings = fakes.settings(n_examples=2)
    work = Work(
        ref=REF,
        settings=settings,
        runs=fakes.open_runs([fakes.make_trait(tmp_path, "one")], settings),
        generates=True,
        judges=False,
        captures=True,
        log=tmp_path / "log",
        notice=lambda _: None,
    )
    monkeypatch.setattr(models, "check_weights", lambda *_: None)
    before = set(multiprocessing.active_children())
    with pytest.raises(EngineDiedError, match="no memory"):
        async with open_backends(work):
            pass
    left = set(multiprocessing.active_children()) - before
    assert not [each for each in left if psutil.pid_exists(each.pid or 0)]
    assert not loaded.exists()


# --- G20: what vLLM's configuration refuses is no matter of access ---


class _Config(BaseModel):
    block_size: int

    @field_validator("block_size")
    @classmethod
    def _check(cls, value: int) -> int:
        raise ValueError(f"block_size {value} is not a power of two")


def test_g20_a_refused_configuration_is_said_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import vllm

    def refuse(*_: object, **__: object) -> None:
        _Config(block_size=3)

    monkeypatch.setattr(vllm.AsyncLLMEngine, "from_engine_args", refuse)
    with pytest.raises(UsageError, match="refuses model fake: .*block_size 3 is not a") as caught:
        engine(gpu=False).start()
    assert caught.value.exit_code == ExitCode.USAGE


# --- G13 and G21: nothing is left to what happens to be on PATH ---


def test_g13_vllm_never_sleeps() -> None:
    assert not engine()._arguments().enable_sleep_mode


def test_g21_what_hangs_on_a_compiler_on_path_is_off() -> None:
    arguments = engine()._arguments()
    assert arguments.enable_flashinfer_autotune is False
    assert arguments.compilation_config.pass_config.fuse_allreduce_rms is False
    assert engine(gpu=False)._arguments().enable_flashinfer_autotune is not False


# --- G9: a start in proportion to what is to be generated ---


def test_g09_a_short_plan_starts_without_a_compiler_and_with_few_graphs() -> None:
    size = EngineSize(300, 8192, 512, None, 0.5)
    short = VllmEngine(
        REF, Sampling(model="fake"), Execution(), size, on_gpu=True, compiled=False
    )._arguments()
    graphs = short.compilation_config
    assert (int(graphs.mode), graphs.cudagraph_mode.name) == (0, "FULL_DECODE_ONLY")
    assert graphs.cudagraph_capture_sizes == [1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 300]
    assert graphs.pass_config.fuse_allreduce_rms is False
    assert engine()._arguments().compilation_config.cudagraph_capture_sizes is None


@pytest.mark.parametrize(
    ("seconds", "long"), [(None, True), (30.0, False), (574.0, False), (576.0, True)]
)
def test_g09_what_generation_takes_decides(seconds: float | None, long: bool) -> None:
    wanted = models.ModelsWanted(
        ref=REF,
        settings=fakes.settings(n_examples=1),
        engine=True,
        captures=False,
        longest=64,
        generation_s=seconds,
    )
    assert wanted.is_long == long
