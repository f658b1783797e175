"""How the threads of a process that computes wait for each other: alike in every one of them."""

from __future__ import annotations

import os

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
