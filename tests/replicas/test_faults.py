"""Actors and drivers of runs on a real Ray are killed: nothing is lost, nothing stands or is paid
twice, and no process is left."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.support import fakes, lab
from traitmill.engine.errors import ExitCode
from traitmill.engine.run.watchdog import marked_pids

pytestmark = pytest.mark.slow
N = 60
TRAITS = ("one", "two")


def prepared(root: Path, **how: object) -> lab.Work:
    for name in TRAITS:
        definition = fakes.definition(2, 7)
        definition["questions"] = [f"{question} On {name}." for question in definition["questions"]]
        fakes.make_trait(root, name, definition)
    return replace(lab.Work(root, TRAITS, n=N, judge_log=root / "calls"), **how)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> lab.Work:
    """An undisturbed run in one process."""
    work = prepared(tmp_path_factory.mktemp("calm"))
    assert lab.run_to_end(work) == ExitCode.OK, work.out.read_text()
    return work


def check_same(work: lab.Work, calm: lab.Work) -> None:
    for own, other in zip(work.folders, calm.folders, strict=True):
        assert lab.final_files(own) == lab.final_files(other)
        assert lab.row_digests(own) == lab.row_digests(other)
        assert not lab.duplicates(own)


def stored(work: lab.Work, kind: str) -> int:
    return sum(
        len(lab.rows(folder, kind)) + len(lab.journaled(folder, kind)) for folder in work.folders
    )


def test_f01_actors_killed_at_seeded_moments_are_started_again_and_nothing_is_paid_twice(
    tmp_path: Path, calm: lab.Work
) -> None:
    rng = random.Random(0)
    work = prepared(tmp_path, replicas=2, generation_delay=0.4, in_flight=4, capture_delay=0.3)
    running = lab.Running(work)
    running.wait_ready()
    killed: Counter[str] = Counter()
    after = 0
    while killed.total() < 4 and running.wait(rng.uniform(0.5, 3)) is None:
        if stored(work, "responses") < after:
            continue  # a sample under way at three deaths would be given up
        pids = [path.read_text() for path in sorted(tmp_path.glob("replica?"))]
        fresh = [pid for pid in pids if pid not in killed and psutil.pid_exists(int(pid))]
        if fresh:
            pid = rng.choice(fresh)
            os.kill(int(pid), signal.SIGKILL)
            killed[pid] += 1
            after = stored(work, "responses") + 8
    assert running.wait(400) == ExitCode.OK, running.said
    assert killed.total() == 4
    noticed = running.said.count("queued again") + running.said.count("did not start again")
    assert noticed == 4, running.said
    check_same(work, calm)
    calls = (tmp_path / "calls").read_text().split()
    assert len(calls) == len(set(calls)) == stored(work, "verdicts")


def under_way(work: lab.Work) -> tuple[lab.Running, list[psutil.Process]]:
    """Begin a run; return it with its processes once something is judged."""
    running = lab.Running(work)
    running.wait_ready()
    while not stored(work, "verdicts"):
        assert running.process.is_alive(), running.said
        time.sleep(0.05)
    return running, psutil.Process(running.process.pid).children(recursive=True)


def test_f01_a_killed_driver_takes_rays_processes_with_it_and_the_run_goes_on(
    tmp_path: Path, calm: lab.Work
) -> None:
    work = prepared(tmp_path, replicas=2, generation_delay=0.2, in_flight=4)
    running, family = under_way(work)
    names, tokens = set(), set()
    for process in family:
        with suppress(psutil.Error):  # one that has ended since
            names.add(process.name())
            tokens.add(process.environ().get("TRAITMILL_RUN", ""))
    tokens -= {""}
    assert {"gcs_server", "raylet"} <= names
    running.process.kill()
    running.process.join()
    left = psutil.wait_procs(family, timeout=10)[1]
    assert not [process for process in left if process.is_running()]
    assert not [pid for token in tokens for pid in marked_pids(token)]
    paid = Counter((tmp_path / "calls").read_text().split())

    again = lab.Running(replace(work, generation_delay=0.0))
    assert again.wait(400) == ExitCode.OK, again.said
    check_same(work, calm)
    calls = Counter((tmp_path / "calls").read_text().split())
    # What was in flight when it was killed may be asked again, once each.
    assert set(paid) <= set(calls)
    assert calls.total() - len(calls) <= work.judging


def test_f22_a_run_whose_own_ray_dies_ends_and_goes_on(tmp_path: Path, calm: lab.Work) -> None:
    """Its replicas waited for room on a cluster that had no node any more."""
    work = prepared(tmp_path, replicas=2, generation_delay=2.0, in_flight=4)
    running, family = under_way(work)
    for process in family:
        with suppress(psutil.Error):
            if process.name() == "raylet":
                process.kill()
    assert running.wait(300) == ExitCode.ENGINE_DIED, running.said
    assert "Ray's own processes on this machine have died" in running.said
    left = psutil.wait_procs(family, timeout=15)[1]
    assert not [process for process in left if process.is_running()]
    again = lab.Running(replace(work, generation_delay=0.0))
    assert again.wait(400) == ExitCode.OK, again.said
    check_same(work, calm)
