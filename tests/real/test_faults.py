"""A real run on real vLLM that is killed in two stages, and its engine between them: what `make
soak` does at length."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from benchmarks import soak
from benchmarks.common import JUDGE_PERSONA, serving
from tests.support import lab
from traitmill.engine.errors import ExitCode

pytestmark = pytest.mark.slow
EACH = 10
Digests = dict[Path, dict[object, str]]


@dataclass
class Went:
    """What became of the one run."""

    folders: list[Path]
    killed_in: list[tuple[str | None, int]] = field(default_factory=list)
    """The stage of each kill, and the processes that were left."""
    stored: list[Digests] = field(default_factory=list)
    """The rows after each start."""
    codes: list[int] = field(default_factory=list)
    """Of the start whose engine was killed, and of the last."""
    left: int = 0
    said: str = ""
    answered: int = 0


@pytest.fixture(scope="module")
def went(tmp_path_factory: pytest.TempPathFactory) -> Went:
    root = tmp_path_factory.mktemp("killed")
    went = Went(soak.prepare(root))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPENAI_API_KEY", raising=False)
        patch.setattr(soak, "N_EXAMPLES", EACH)
        with serving(persona=JUDGE_PERSONA, latency=0.3) as url:
            steps = (_kill("generation"), _kill_the_engine, _kill("capture"), _end)
            for step in steps:
                step(went, root, url)
                went.stored.append({folder: lab.row_digests(folder) for folder in went.folders})
            went.answered = soak.answered(url)
    went.said = (root / "out").read_text()
    return went


def _kill(stage: str) -> Callable[[Went, Path, str], None]:
    def kill(went: Went, root: Path, url: str) -> None:
        went.killed_in.append(soak.kill_in(root, stage, url))

    return kill


def _kill_the_engine(went: Went, root: Path, url: str) -> None:
    """When it has added responses."""
    stored = soak.count(root, "responses")
    run = soak.start(root, url)
    while soak.count(root, "responses") == stored:
        assert run.poll() is None, (root / "out").read_text()
        time.sleep(0.05)
    children = psutil.Process(run.pid).children(recursive=True)
    [engine] = [child for child in children if "EngineCore" in child.name()]
    engine.kill()
    went.codes.append(run.wait(1200))
    went.left = len(psutil.wait_procs(children, timeout=soak.GRACE_S)[1])


def _end(went: Went, root: Path, url: str) -> None:
    went.codes.append(soak.start(root, url).wait(1200))


def test_f01_a_run_killed_in_two_stages_loses_nothing_and_leaves_no_process(went: Went) -> None:
    assert went.killed_in == [("generation", 0), ("capture", 0)]
    assert went.codes[-1] in (ExitCode.OK, ExitCode.NOTHING_KEPT), went.said
    for before, after in zip(went.stored, went.stored[1:], strict=False):
        for folder in went.folders:
            assert {key: after[folder].get(key) for key in before[folder]} == before[folder]
    for folder in went.folders:
        for kind in lab.KINDS:
            assert len(lab.rows(folder, kind)) == 2 * EACH
        assert lab.duplicates(folder) == 0
    verdicts = 2 * EACH * len(went.folders)
    # A kill may lose the answers under way; each of four starts probes the judge at most once.
    assert verdicts <= went.answered <= verdicts + 3 * soak.CONCURRENCY + 4


def test_f22_a_killed_engine_ends_the_run_with_its_own_code_and_words(went: Went) -> None:
    assert went.codes[0] == ExitCode.ENGINE_DIED, went.said
    assert "the generation engine died: its process was ended by SIGKILL" in went.said
    assert "run the same command again" in went.said
    assert went.left == 0
