"""How the threads of every process that computes wait: as GNU's OpenMP says of itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, TRAITMILL, clean_environment
from tests.support.oracle import build
from tests.support.rows import response_row
from traitmill.engine import threads
from traitmill.engine.capture import CaptureProcess
from traitmill.engine.generation import on_gpu
from traitmill.engine.settings import CaptureSettings, Execution

pytestmark = pytest.mark.slow
_SAID = re.compile(r"^\s*(?:\[host\]\s*)?GOMP_SPINCOUNT = '(\w+)'", re.MULTILINE)


@pytest.fixture
def environment() -> dict[str, str]:
    """An environment in which OpenMP says at its start what it was told, and nothing was told."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    told = {name: value for name, value in clean_environment().items() if name not in names}
    return told | {"OMP_DISPLAY_ENV": "verbose"}


def spins(text: str) -> set[str]:
    found = _SAID.findall(text)
    assert found, "no process said how its threads wait"
    return set(found)


async def test_t01_a_capture_process_waits_briefly_whoever_starts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without the command line, and with no engine beside it."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")
    model = build("llama", tmp_path)
    capfd.readouterr()
    worker = CaptureProcess(model, None, CaptureSettings(), Execution(self_check="off"))
    try:
        await worker.start()
        await worker.capture([response_row("row", (1, 5, 6), (7, 8), 2)])
    finally:
        await worker.close()
    assert spins(capfd.readouterr().err) == {threads._SPINS}


@pytest.mark.skipif(on_gpu(), reason="on a GPU the engine's threads hardly compute")
def test_t01_t31_every_process_of_every_command_waits_alike(
    tmp_path: Path, model_folder: Path, environment: dict[str, str]
) -> None:
    """Engine, local judge and capture; capture alone; every token's states; doctor."""
    folder = tmp_path / "experiments/demo/poem"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "experiments/demo/poem/trait_definition.json", folder)

    def run(*arguments: object) -> str:
        command = [TRAITMILL, *map(str, arguments), "--experiment", "demo"]
        before = set(tmp_path.rglob("*.log"))
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode in (0, 7), done.stdout + done.stderr
        logs = "".join(path.read_text() for path in set(tmp_path.rglob("*.log")) - before)
        return done.stdout + done.stderr + logs

    chosen = ("--trait", "poem")
    local = ("--gen_model", model_folder, "--judge_model", "local")
    said = run("generate", *chosen, *local, "--n_examples", "2", "--max_new_tokens", "4")
    assert len(_SAID.findall(said)) >= 3  # the command's own, the engine's, capture's
    assert spins(said) == {threads._SPINS}
    assert spins(run("activations", *chosen, "--pool", "prompt_last")) == {threads._SPINS}
    per_token = run("activations", *chosen, "--per_token", "--layers", "3", "--yes")
    assert spins(per_token) == {threads._SPINS}
    assert spins(run("doctor", *local)) == {threads._SPINS}


def test_what_the_user_has_set_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "17")
    threads.wait_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "17"
