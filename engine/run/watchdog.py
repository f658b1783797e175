"""No process a run starts outlives it: a guardian kills them when the run ends, even by SIGKILL.

vLLM's engine and worker processes live on for minutes after their parent is killed, and would hold
the GPU. Process groups do not help (a shell's pipeline shares ours) and PR_SET_PDEATHSIG follows
the thread that started a process, not the process. So every process a run starts inherits a mark in
its environment, and a guardian, which sees the run's end as the end of a pipe, kills whatever
carries the mark. This file is also the guardian's program: it is started by path and imports
nothing heavy.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

_MARK = "TRAITMILL_RUN"
_ROUNDS = 40
_PAUSE_S = 0.2


def tie_children() -> None:
    """Start the guardian and mark this process's environment. Once per process, before anything is
    started."""
    if _MARK in os.environ and os.environ.get(f"{_MARK}_OWNER") == str(os.getpid()):
        return
    token = uuid.uuid4().hex
    clean = {name: value for name, value in os.environ.items() if not name.startswith(_MARK)}
    guardian = subprocess.Popen(  # noqa: S603 - our own interpreter and this very file
        [sys.executable, "-I", "-S", __file__, token],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches the run, not the guardian
        env=clean,
    )
    _guardians.append(guardian)
    os.environ[_MARK] = token
    os.environ[f"{_MARK}_OWNER"] = str(os.getpid())
    os.environ["SPT_NOENV"] = (
        "1"  # renaming a process must not overwrite its environment, where the mark stands
    )


_guardians: list[subprocess.Popen[bytes]] = []
"""Keeps the pipe open for as long as this process lives."""


def marked_pids(token: str) -> list[int]:
    """Processes whose environment carries the mark."""
    needle = f"{_MARK}={token}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:  # gone, or another user's
                continue
            if needle in environment.split(b"\0"):
                found.append(int(folder.name))
    return found


def _guard(token: str) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()  # returns when the run's end of the pipe closes
    quiet = 0
    for _ in range(_ROUNDS):  # again and again: a process may be starting another just now
        pids = marked_pids(token)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        quiet = 0 if pids else quiet + 1
        if quiet == 3:
            return
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    _guard(sys.argv[1])
