"""How threads of a process that computes wait for each other, and what a fork leaves of them."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from .errors import UsageError

_SPINS = "2000"
"""Rounds (python -m benchmarks.tuning, python -m benchmarks.waiting)."""


def wait_briefly() -> None:
    """Let OpenMP's threads, here and in processes started from now on, spin for some microseconds.

    They spin at each of a forward's hundreds of barriers, for so many rounds before they sleep: by
    default for milliseconds, in which a thread that lost its core to another program cannot have it
    back. GNU's library reads the number when PyTorch is loaded, so call this before. What the user
    has set holds.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def after_fork(doing: str) -> None:
    """Raise UsageError in a process that was forked while polars had threads.

    What they held is held for ever in such a process: polars would wait for it without end.
    `doing` is what was to be done, in words.
    """
    if _forked:
        raise UsageError(
            f"{doing} needs polars, which hangs in a process that was forked after polars was "
            'used: start processes with multiprocessing.get_context("spawn")'
        )


def _polars_runs() -> bool:
    """Return whether polars has threads; False where the system does not tell."""
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # of a thread that just ended
            if re.fullmatch(r"polars-\d+\n", path.read_text()):
                return True
    return False


def _before_fork() -> None:
    _running.append(_polars_runs())


def _in_child() -> None:
    _forked.extend(filter(None, _running))
    _running.clear()


_running: list[bool] = []
_forked: list[bool] = []
os.register_at_fork(before=_before_fork, after_in_parent=_running.clear, after_in_child=_in_child)
