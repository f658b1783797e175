"""Stage 3 cut off: it ends at once, leaves nothing half-written, and says how far it is."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, TRAITMILL, clean_environment
from tests.support import planted
from traitmill.cli import waiting
from traitmill.engine.errors import ExitCode
from traitmill.engine.outputs import load_activations
from traitmill.engine.storage import TraitFolder
from traitmill.engine.vectors import fit_trait
from traitmill.engine.vectors.rows import LayerRows, map_layers


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): path.read_bytes() for path in paths}


def test_an_interrupt_ends_the_layers_under_way(tmp_path):
    activations = load_activations(planted.write_trait(tmp_path / "poem", n_layers=8))
    entered, ended = threading.Event(), []

    def endless(block: Sequence[LayerRows]) -> list[None]:
        try:
            entered.set()
            while True:
                time.sleep(0.01)
        finally:
            ended.append(block[0].layer)

    def interrupt() -> None:
        entered.wait()
        os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=interrupt)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        map_layers(endless, activations, activations.layers, 1.0)
    sender.join()
    assert ended
    assert len(ended) <= len(os.sched_getaffinity(0))  # those that waited never began


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_t52_a_command_cut_off_leaves_what_was_there(tmp_path, sent):
    """The signal comes as soon as a leftover of an earlier kill is gone."""
    folder = TraitFolder(planted.write_trait(tmp_path / "exp" / "poem", n_layers=80, dim=400))
    fit_trait(folder, ["mean_diff"], [0])
    before = contents(folder.path)
    left = folder.vectors / ".mean_diff_layer0.pt.1-2.tmp"
    left.write_bytes(b"half")
    where = ["--experiments_dir", str(tmp_path), "--experiment", "exp", "--trait", "poem"]
    started = subprocess.Popen(
        [TRAITMILL, "vectors", *where],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
    )
    while left.exists() and started.poll() is None:
        time.sleep(0.01)  # the folder is cleaned before its rows are read
    started.send_signal(sent)
    started.communicate()
    assert started.returncode == {2: ExitCode.INTERRUPTED, 9: -9}[sent]
    assert contents(folder.path) == before
    again = fit_trait(folder, ["mean_diff"], [0])
    assert again.reused
    assert not list(folder.path.rglob("*.tmp"))


def test_every_layer_is_told_in_order(tmp_path):
    folder = TraitFolder(planted.write_trait(tmp_path / "exp" / "poem", n_layers=3))
    told: list[tuple[object, ...]] = []
    fit_trait(folder, ["mean_diff"], on_layer=lambda *what: told.append(what))
    steps = ("fitting", "evaluating")
    assert told == [(step, done, 3) for step in steps for done in range(4)]


def test_progress_off_a_terminal_is_a_line_now_and_then(monkeypatch, capsys):
    now = iter(np.array([0.0, 0.0, 4.0, 12.0, 16.0, 24.0, 40.0]))
    monkeypatch.setattr(waiting.time, "monotonic", lambda: next(now))
    shown = waiting.LayerDisplay()
    for done in range(6):
        shown("poem", "evaluating", done, 5)
    assert capsys.readouterr().out.splitlines() == [
        "poem: evaluating, 2 of 5 layers, 0:18 left",
        "poem: evaluating, 4 of 5 layers, 0:06 left",
    ]
