"""A real run on real vLLM that is killed in two stages, and its engine between them: what `make
soak` does at length."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from benchmarks import soak
from benchmarks.common import JUDGE_PERSONA, serving
from tests.support import lab
from traitmill.engine.errors import ExitCode

pytestmark = pytest.mark.slow
EACH = 10


def digests(folders: list[Path]) -> dict[Path, dict[object, str]]:
    return {folder: lab.row_digests(folder) for folder in folders}


def test_f01_f22_a_run_whose_engine_and_self_are_killed_loses_nothing_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(soak, "N_EXAMPLES", EACH)
    folders = soak.prepare(tmp_path)
    with serving(persona=JUDGE_PERSONA, latency=0.3) as url:
        before = digests(folders)
        for stage in ("generation", "capture"):
            killed_in, survivors = soak.kill_in(tmp_path, stage, url)
            assert (killed_in, survivors) == (stage, 0)
            before = _unchanged(before, folders)
            if stage == "generation":
                _kill_the_engine(tmp_path, url)
                before = _unchanged(before, folders)
        code = soak.start(tmp_path, url).wait(1200)
        assert code in (ExitCode.OK, ExitCode.NOTHING_KEPT), (tmp_path / "out").read_text()
        _unchanged(before, folders)
        verdicts = soak.count(tmp_path, "verdicts")
        # A kill may lose answers under way; each of four starts probes the judge at most once.
        assert soak.answered(url) <= verdicts + 4 * (soak.CONCURRENCY + 1) + 50 * len(folders)
    for folder in folders:
        for kind in ("responses", "verdicts", "activations"):
            assert len(lab.rows(folder, kind)) == 2 * EACH
        assert lab.duplicates(folder) == 0


def _kill_the_engine(root: Path, url: str) -> None:
    """When it has added responses: the run ends by itself, with its own code."""
    stored = soak.count(root, "responses")
    run = soak.start(root, url)
    while soak.count(root, "responses") == stored:
        assert run.poll() is None, (root / "out").read_text()
        time.sleep(0.05)
    children = psutil.Process(run.pid).children(recursive=True)
    [engine] = [child for child in children if "EngineCore" in child.name()]
    engine.kill()
    code = run.wait(1200)
    said = (root / "out").read_text()
    assert code == ExitCode.ENGINE_DIED, said
    assert "the generation engine died: its process was ended by SIGKILL" in said
    assert "run the same command again" in said
    assert not psutil.wait_procs(children, timeout=soak.GRACE_S)[1]


def _unchanged(
    before: dict[Path, dict[object, str]], folders: list[Path]
) -> dict[Path, dict[object, str]]:
    """Return the stored rows of now, among which those of before are as they were."""
    now = digests(folders)
    for folder in folders:
        assert {key: now[folder].get(key) for key in before[folder]} == before[folder]
    return now
