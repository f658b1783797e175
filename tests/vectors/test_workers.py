"""Traits that are fitted side by side, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.support import planted
from traitmill.engine.errors import ResourceError, UsageError
from traitmill.engine.vectors import commands, fit_experiment, workers

FAST = ["mean_diff", "gradient"]


@pytest.fixture
def experiment(tmp_path) -> Path:
    for number in range(5):
        planted.write_trait(tmp_path / "exp" / f"t{number}", n_layers=2, seed=number)
    return tmp_path / "exp"


@pytest.fixture
def two(monkeypatch) -> None:
    monkeypatch.setattr(commands, "count_for", lambda _tasks: 2)


def files_of(experiment: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(experiment)): path.read_bytes()
        for path in sorted(experiment.rglob("*"))
        if path.is_file()
    }


def test_it_makes_the_files_that_one_process_makes(experiment, tmp_path, monkeypatch):
    for each in experiment.iterdir():
        planted.write_trait(
            tmp_path / "other" / each.name, n_layers=2, seed=int(each.name.removeprefix("t"))
        )
    fit_experiment(tmp_path / "other", methods=FAST, notice=pytest.fail)
    monkeypatch.setattr(commands, "count_for", lambda _tasks: 2)
    told: list[str] = []
    layers: dict[str, list[tuple[str, int, int]]] = {}
    result = fit_experiment(
        experiment,
        methods=FAST,
        on_fitted=lambda name, _fitted: told.append(name),
        on_layer=lambda name, *how: layers.setdefault(name, []).append(how),
        notice=pytest.fail,
    )
    names = [f"t{number}" for number in range(5)]
    assert list(result.fitted) == sorted(told) == names
    steps = [(step, done, 2) for step in ("fitting", "evaluating") for done in (0, 1, 2)]
    assert layers == dict.fromkeys(names, steps)
    assert files_of(experiment) == files_of(tmp_path / "other")
    again = fit_experiment(experiment, notice=lambda _line: None)
    assert all(each.reused for each in again.fitted.values())


def test_one_traits_trouble_is_its_own(experiment, two):
    (experiment / "t1" / "activations" / "metadata.json").unlink()
    result = fit_experiment(experiment, methods=FAST)
    assert list(result.fitted) == ["t0", "t2", "t3", "t4"]
    assert isinstance(result.errors["t1"], UsageError)
    assert result.errors["t1"].step.name == "generate"


def test_a_listener_that_raises_ends_the_workers(experiment, two):
    def listens(*_fitted: object) -> None:
        raise RuntimeError("of the listener")

    with pytest.raises(RuntimeError, match="of the listener") as caught:
        fit_experiment(experiment, methods=FAST, on_fitted=listens)
    assert caught.tb is not None  # which would hold what the loop was at
    assert not workers_of(os.getpid())


def dies(name: str, _tell: object) -> str:
    if name == "t1":
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def divides(number: int, _tell: object) -> float:
    return 1 / number


def workers_of(process: int) -> list[psutil.Process]:
    return [
        each
        for each in psutil.Process(process).children()
        if "traitmill.engine.vectors.workers" in " ".join(each.cmdline())
    ]


def test_a_worker_that_dies_is_told_of_and_ends_the_others():
    tasks = {name: (name,) for name in ("t0", "t1", "t2")}
    with pytest.raises(ResourceError, match="that fitted t1 died"):
        list(workers.map_side_by_side(dies, tasks, 2, pytest.fail))
    assert not workers_of(os.getpid())


def answers_and_dies(name: str, tell) -> None:
    if name == "t1":
        tell("slow to hear")
        return
    time.sleep(0.5)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()


def test_a_worker_that_dies_between_two_traits_is_told_of_too():
    """It was a broken pipe, of which the command line says nothing."""
    tasks = {name: (name,) for name in ("t0", "t1", "t2")}
    with pytest.raises(ResourceError, match="that fitted t2 died"):
        for name, _ in workers.map_side_by_side(
            answers_and_dies, tasks, 2, lambda *_: time.sleep(3)
        ):
            assert name != "t2"
    assert not workers_of(os.getpid())


def test_an_error_nobody_expects_is_raised_with_its_place():
    with pytest.raises(ZeroDivisionError) as caught:
        list(workers.map_side_by_side(divides, {"a": (1,), "b": (0,)}, 2, pytest.fail))
    assert "in divides" in "".join(caught.value.__notes__)
    assert not workers_of(os.getpid())


SCRIPT = """
    import sys, time
    from tests.vectors import test_workers as module
    from traitmill.engine.vectors import workers

    open(sys.argv[1], "a").write("read")  # without a guard around what it does
    tasks = {str(number): () for number in range(2)}
    for _ in workers.map_side_by_side(getattr(module, sys.argv[2]), tasks, 2, print):
        raise SystemExit("slept through")
"""


def sleeps(tell) -> None:
    tell("asleep")
    time.sleep(600)


def is_deaf(tell) -> None:
    """Lose every interrupt, as one that falls into a destructor is lost."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sleeps(tell)


@pytest.mark.parametrize(
    ("task", "number"),
    [
        ("sleeps", signal.SIGINT),
        ("sleeps", signal.SIGTERM),
        ("sleeps", signal.SIGKILL),
        ("is_deaf", signal.SIGKILL),
    ],
)
def test_no_worker_outlives_who_started_it(tmp_path, task, number):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, "-u", str(path), str(tmp_path / "read"), task],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        text=True,
    )
    assert {process.stdout.readline() for _ in range(2)} == {"0 asleep\n", "1 asleep\n"}
    started = workers_of(process.pid)
    assert len(started) == 2
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    gone, alive = psutil.wait_procs(started, timeout=60)
    assert (len(gone), alive) == (2, [])
    assert said.count("KeyboardInterrupt") == (number == signal.SIGINT)
    assert (tmp_path / "read").read_text() == "read"


def test_few_traits_and_large_ones_stay_in_one_process(experiment, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)))
    monkeypatch.setattr(workers, "free_host_memory", lambda: 1 << 40)
    assert [workers.count_for(n) for n in (0, 1, 5, 8, 40, 240)] == [1, 1, 1, 2, 10, 16]
    monkeypatch.setattr(workers, "free_host_memory", lambda: 3 << 30)
    assert workers.count_for(240) == 3
    monkeypatch.setattr(commands, "count_for", lambda _tasks: 2)
    monkeypatch.setattr(commands, "SMALL", 1000)
    monkeypatch.setattr(commands, "map_side_by_side", pytest.fail)
    assert len(fit_experiment(experiment, methods=["mean_diff"], layers=[1]).fitted) == 5
