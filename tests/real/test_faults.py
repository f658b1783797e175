"""Real runs on real vLLM that are killed, and whose engine is: what `make soak` does at length."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import soak
from tests.conftest import clean_environment
from tests.support import lab
from traitmill.engine.errors import ExitCode

pytestmark = pytest.mark.slow


def test_f01_real_runs_killed_in_generation_and_capture_lose_nothing_and_leave_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    soaked = soak.soak_real(tmp_path, kills=2, stages=("generation", "capture"))
    assert soaked.kills == 2, soaked
    assert (soaked.lost, soaked.duplicated, soaked.changed, soaked.survivors) == (0, 0, 0, 0), (
        soaked
    )


def test_f22_a_killed_engine_ends_the_run_with_its_own_code_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    folders = soak.prepare(tmp_path)
    command = [soak.TRAITMILL, "generate", "--experiment", "exp", "--traits", ",".join(soak.TRAITS)]
    command += ["--experiments_dir", str(tmp_path), "--gen_model", "embedded/SmolLM2-135M-Instruct"]
    command += [
        "--judge_model",
        "local",
        "--n_examples",
        "10",
        "--max_new_tokens",
        "32",
        "--batch_size",
        "4",
    ]
    with subprocess.Popen(
        command,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as run:
        while soak.count(tmp_path, "responses") == 0:
            assert run.poll() is None, run.stdout.read()
            time.sleep(0.05)
        [engine] = [
            p for p in psutil.Process(run.pid).children(recursive=True) if "EngineCore" in p.name()
        ]
        engine.kill()
        said, _ = run.communicate(timeout=1200)
    assert run.returncode == ExitCode.ENGINE_DIED, said
    assert "the generation engine died" in said
    assert "run the same command again" in said
    before = {folder: lab.row_digests(folder) for folder in folders}
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, cwd=tmp_path, timeout=1200
    )
    assert done.returncode in (ExitCode.OK, ExitCode.NOTHING_KEPT), done.stdout
    for folder in folders:
        after = lab.row_digests(folder)
        assert {key: after[key] for key in before[folder]} == before[folder], (
            "stored rows are as they were"
        )
        assert sum(kind == "responses" for kind, _ in after) == 20
        assert lab.duplicates(folder) == 0
