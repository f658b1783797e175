"""A model split over two workers of vLLM's CPU build: the multi-worker path, run to the end and
killed."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.conftest import TRAITMILL, clean_environment
from tests.support import fakes, lab
from tests.support.tiny import tiny_qwen3
from traitmill.engine.errors import ExitCode
from traitmill.engine.generation import on_gpu
from traitmill.engine.run.watchdog import marked_pids

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(on_gpu(), reason="on GPUs the same path is tested in tests/gpu"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="each worker takes a core"),
]


def start(root: Path, model: Path) -> subprocess.Popen[bytes]:
    command = [TRAITMILL, "generate", "--experiment", "exp", "--trait", "trait"]
    command += ["--experiments_dir", root, "--gen_model", model, "--judge_model", "local"]
    command += ["--n_examples", "20", "--max_new_tokens", "24", "--batch_size", "4"]
    command += ["--tensor_parallel_size", "2", "--self_check", "all"]
    with (root / "out").open("ab") as out:
        return subprocess.Popen(
            list(map(str, command)),
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )


def test_t16_two_workers_generate_are_checked_and_leave_nothing_behind_when_killed(
    tmp_path: Path, model_folder: Path
) -> None:
    folder = fakes.make_trait(tmp_path)
    model = tiny_qwen3(tmp_path / "tiny", model_folder)
    run = start(tmp_path, model)
    while not lab.journaled(folder, "responses") and not lab.rows(folder, "responses"):
        assert run.poll() is None, (tmp_path / "out").read_text()
        time.sleep(0.02)
    family = psutil.Process(run.pid).children(recursive=True)
    assert sum("Worker_TP" in process.name() for process in family) == 2
    token = family[-1].environ()["TRAITMILL_RUN"]
    run.kill()
    run.wait()
    psutil.wait_procs(family, timeout=10)
    assert not [process for process in family if process.is_running()]
    assert not marked_pids(token)

    code = start(tmp_path, model).wait(900)
    said = (tmp_path / "out").read_text()
    assert code in (ExitCode.OK, ExitCode.NOTHING_KEPT), said
    planned = set(pq.read_table(folder / "parquet/plan.parquet")["ids"].to_pylist())
    stored = lab.rows(folder, "responses")
    assert len(stored) == len(planned) == 40
    assert {row["sample_id"] for row in stored} == planned
    [facts] = (folder / "parquet/activations").glob("*/facts.json")
    checked = json.loads(facts.read_text())["self_check"]
    assert checked["rows"] == sum(row["status"] == "ok" for row in stored)
    assert checked["logprob_rows"] > 0
