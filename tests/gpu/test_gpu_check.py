"""The first ten minutes on a card: what cannot be spent on a typo is tried here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import LIMIT_S, STEPS, Step, check, filled, markdown
from tests.conftest import ROOT, clean_environment


def step(program: str, limit_s: int = 60, name: str = "step") -> Step:
    return Step(name, (sys.executable, "-c", program), "1", limit_s)


def test_the_steps_fit_ten_minutes() -> None:
    assert sum(each.limit_s for each in STEPS) <= LIMIT_S
    assert len({each.name for each in STEPS}) == len(STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("each", STEPS, ids=lambda each: each.name)
def test_every_steps_command_is_understood(each: Step, tmp_path: Path) -> None:
    """Options, modules and files are there: a wrong one is an error, help or not."""
    words = filled(each.command, tmp_path)
    extra = ["--collect-only"] if "pytest" in words else ["--help"]
    done = subprocess.run(
        [*words, *extra], cwd=ROOT, env=clean_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_each_result_is_stored_before_the_next_step_begins(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    seen = f"import json; print(len(json.load(open({str(file)!r}))))"
    rows = check(
        [step("print('first')"), step(seen), step("raise SystemExit(7)"), step(seen)],
        lambda done: file.write_text(json.dumps(done)),
        ask=lambda: "1024, 50\n2048, 7\n",
    )
    assert [row["code"] for row in rows] == [0, 0, 7, 0]
    assert rows[0]["said"].strip() == "first"
    assert [rows[1]["said"].strip(), rows[3]["said"].strip()] == ["1", "3"]
    assert json.loads(file.read_text()) == rows
    assert "failed with code 7" in markdown(rows)


@pytest.mark.slow
def test_a_step_is_cut_off_with_all_it_started_and_the_next_one_runs(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(file)!r}, 'w').write(str(child.pid))\n"
        "print('begun', flush=True)\n"
        "time.sleep(600)\n"
    )
    rows = check(
        [step(program, limit_s=8), step("print(2)")], lambda _: None, ask=lambda: "5, 99\n"
    )
    assert [row["code"] for row in rows] == [None, 0]
    assert rows[0]["said"].strip() == "begun"
    assert (rows[0]["peak_mib"], rows[0]["peak_percent"]) == (5, 99)
    pid = int(file.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert "cut off" in markdown(rows)


def test_steps_beyond_the_time_are_named_and_not_begun() -> None:
    stored: list[int] = []
    rows = check(
        [step("print(1)"), step("print(2)")], lambda done: stored.append(len(done)), limit_s=0.0
    )
    assert [(row["code"], row["said"]) for row in rows] == [(None, "no time was left")] * 2
    assert stored == [1, 2]


def test_without_a_card_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "gpu_name", lambda: "")
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    with pytest.raises(SystemExit) as left:
        gpu_check.main()
    assert left.value.code == 2
