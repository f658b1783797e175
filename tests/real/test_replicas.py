"""Two real vLLM engines and two real capture models on a real Ray, against one of each."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import TRAITMILL, clean_environment
from tests.support import fakes, lab
from tests.support.device import same_batch_tolerance
from tests.support.tiny import tiny_qwen3
from traitmill.engine.errors import ExitCode
from traitmill.engine.generation import on_gpu

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(on_gpu(), reason="replicas take a GPU each there"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="each replica takes a core"),
]
N = 12


def traitmill(command: str, root: Path, *more: object) -> str:
    """Run a command on a root's experiment; return what it said."""
    chosen = ["--experiment", "exp", "--trait", "trait", "--experiments_dir", root]
    done = subprocess.run(
        [TRAITMILL, command, *map(str, chosen), *map(str, more)],
        env=clean_environment(SOURCE_DATE_EPOCH=lab.SOURCE_DATE_EPOCH),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    said = done.stdout + done.stderr
    assert done.returncode in (ExitCode.OK, ExitCode.NOTHING_KEPT), said
    return said


def generated(root: Path, model: Path, replicas: int) -> Path:
    folder = fakes.make_trait(root)
    how = ["--gen_model", model, "--judge_model", "local", "--n_examples", N, "--threshold", 50]
    how += ["--max_new_tokens", 16, "--batch_size", 4, "--self_check", "all"]
    said = traitmill("generate", root, *how, "--replicas", replicas)
    assert said.count("2 replicas here") == (replicas == 2), said
    assert ("on this CPU in 2 replicas, whose" in said) == (replicas == 2), said
    return folder


def test_two_engines_on_ray_make_the_samples_of_one_and_capture_them_alike(
    tmp_path: Path, model_folder: Path
) -> None:
    model = tiny_qwen3(tmp_path / "tiny", model_folder)
    one = generated(tmp_path / "one", model, 1)
    two = generated(tmp_path / "two", model, 2)
    plan = pq.read_table(one / "parquet/plan.parquet")
    assert pq.read_table(two / "parquet/plan.parquet").equals(plan)
    seeds = dict(zip(plan["ids"].to_pylist(), plan["seed"].to_pylist(), strict=True))
    for folder in (one, two):
        rows = lab.rows(folder, "responses")
        assert {row["sample_id"]: row["seed"] for row in rows} == seeds
        assert len(rows) == 2 * N
        assert not lab.duplicates(folder)
        ok = sum(row["status"] == "ok" for row in rows)
        assert len(lab.rows(folder, "verdicts")) == ok
        assert len(lab.rows(folder, "activations")) == ok

    # The same responses, captured by one model, into files of their own.
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "two", again)
    shutil.rmtree(again / "exp/trait/parquet/activations")
    shutil.rmtree(again / "exp/trait/activations")
    traitmill("activations", again)
    pairs = [folder / "activations/all_layers.pt" for folder in (two, again / "exp/trait")]
    first, second = (torch.load(path, weights_only=True) for path in pairs)
    assert first.shape == second.shape
    torch.testing.assert_close(first, second, **same_batch_tolerance(gpu=False))
    values = [
        {row["sample_id"]: row["values"] for row in lab.rows(folder, "activations")}
        for folder in (two, again / "exp/trait")
    ]
    assert values[0].keys() == values[1].keys()
    for sample_id, value in values[0].items():
        stored, other = (
            torch.frombuffer(bytearray(data), dtype=torch.float32)
            for data in (value, values[1][sample_id])
        )
        torch.testing.assert_close(stored, other, **same_batch_tolerance(gpu=False))
