"""The suite itself on a machine with a GPU: no test starts a benchmark or takes the whole card."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.device import GPU_SHARE, same_batch_tolerance, serve_arguments
from traitmill.engine.generation import VllmEngine, sizing
from traitmill.engine.models import ModelRef
from traitmill.engine.settings import Execution, Sampling

pytestmark = pytest.mark.usefixtures("online")

CARD = "0, GPU-abc, NVIDIA A100-SXM4-80GB, 81920, 81000, 8.0, 580.95.05, Disabled"


@pytest.mark.slow
def test_g01_tests_start_no_benchmark_where_nvidia_smi_answers(tmp_path: Path) -> None:
    """A benchmark that starts would import its module: a stand-in for one says so."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f'#!/bin/sh\necho "{CARD}"\n')
    (folder / "nvidia-smi").chmod(0o755)
    started = tmp_path / "started"
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if any(name.startswith('benchmarks.') for name in sys.orig_argv):\n"
        f"    open({str(started)!r}, 'a').write(' '.join(sys.orig_argv))\n"
        "    raise SystemExit(1)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider"]
    command += ["tests/benchmarks", "-k", "gpu or roofline"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert not started.exists(), started.read_text()


def test_g01_a_served_judge_leaves_room_on_the_card() -> None:
    assert serve_arguments(gpu=True) == ["--gpu-memory-utilization", "0.2"]
    assert 2 * GPU_SHARE + 0.3 < 1  # the engine under test, the judge's, and capture


def test_g01_rows_on_a_gpu_are_not_asked_to_agree_beyond_bfloat16() -> None:
    assert same_batch_tolerance(gpu=True)["rtol"] >= 2**-8
    assert same_batch_tolerance(gpu=False)["rtol"] == 1e-5


def test_g01_a_gpus_runner_is_given_no_logits_processor() -> None:
    """vLLM's runner on GPUs refuses those of the interface that its CPU runner has."""
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}
    ref = ModelRef("m", "m", "r", config | {"num_attention_heads": 4, "dtype": "bfloat16"})
    size = sizing.EngineSize(4, 128, 32, None)
    engine = VllmEngine(ref, Sampling(model="m", top_p=0.9), Execution(), size, on_gpu=True)
    assert engine._arguments().logits_processors is None
