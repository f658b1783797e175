"""No process of a run outlives it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from traitmill.engine.run.watchdog import marked_pids

# A run that starts a child as vLLM starts its engine: in a session of its own, with a child of its
# own that does the same, one of them renamed. Signals that ask nicely are ignored.
PROGRAM = """
import os, subprocess, sys, time
from traitmill.engine.run.watchdog import tie_children
tie_children()
tie_children()
grandchild = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = f'''
import subprocess, sys, time
import setproctitle
setproctitle.setproctitle("VLLM::EngineCore")
print(subprocess.Popen([sys.executable, "-c", {grandchild!r}], start_new_session=True).pid, flush=True)
time.sleep(600)
'''
started = subprocess.Popen([sys.executable, "-c", child], start_new_session=True, stdout=subprocess.PIPE, text=True)
print(started.pid, started.stdout.readline().strip(), os.environ["TRAITMILL_RUN"], flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_f01_no_process_is_left_ten_seconds_after_the_run_ends(end: signal.Signals | None) -> None:
    command = [sys.executable, "-c", PROGRAM, "600" if end else "0"]
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as run:
        assert run.stdout is not None
        child, grandchild, token = run.stdout.readline().split()
        family = [psutil.Process(int(pid)) for pid in (child, grandchild)]
        if end:
            run.send_signal(end)
        run.wait()
        alive = psutil.wait_procs(family, timeout=10)[1]
    try:
        assert not alive
        assert not marked_pids(token)
        assert bystander.poll() is None, "only what carries the mark is ended"
    finally:
        bystander.kill()
        bystander.wait()


def test_the_run_itself_carries_no_mark(tmp_path: Path) -> None:
    program = (
        "import os\nfrom traitmill.engine.run.watchdog import marked_pids, "
        "tie_children\ntie_children()\n"
        "print(os.getpid() in marked_pids(os.environ['TRAITMILL_RUN']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.strip() == "False"


def test_a_run_started_by_a_run_has_a_mark_of_its_own() -> None:
    program = "import os\nfrom traitmill.engine.run.watchdog import tie_children\ntie_children()\nprint(os.environ['TRAITMILL_RUN'])"
    environment = os.environ | {"TRAITMILL_RUN": "outer", "TRAITMILL_RUN_OWNER": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        env=environment,
    )
    assert result.stdout.strip() not in {"", "outer"}
