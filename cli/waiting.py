"""The first sign of life: a line at once, and something that moves while libraries are imported."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import click

from .output import passing

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
REDRAW_S = 0.5
LONGEST = 40
"""Characters of what was typed that are said again."""


class Waiting:
    """A spinner with seconds in the terminal's last line; elsewhere nothing."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._over.set()

    def start(self) -> None:
        """Draw from a thread until `stop`."""
        if os.isatty(1) and self._over.is_set():
            self._over.clear()
            threading.Thread(target=self._draw, daemon=True).start()

    def stop(self) -> None:
        """Take the line away, for good."""
        self._over.set()
        with suppress(OSError):  # a terminal that was closed
            passing.wipe()

    def _draw(self) -> None:
        began = time.monotonic()
        while not self._over.wait(REDRAW_S):
            with suppress(OSError):
                passing.show(f"{turning(time.monotonic() - began)}, starting")


waiting = Waiting()


def turning(seconds: float) -> str:
    """Return a figure that is another one at each redrawing, and the seconds."""
    return f"{SPINNER[int(seconds / REDRAW_S) % len(SPINNER)]} {seconds:.0f} s"


def greet(command: str, given: Mapping[str, Any]) -> None:
    """Say what was begun, before anything that takes long is imported."""
    words = [command]
    if given.get("experiment"):
        words.append(f"experiment {_short(given['experiment'])}")
    names = given.get("trait") or given.get("traits")
    if names:
        words.append(f"trait{'' if given.get('trait') else 's'} {_short(names)}")
    click.echo(", ".join(words))
    waiting.start()


def _short(name: str) -> str:
    """Return what was typed, before it is checked: no more than fits, and nothing that a terminal
    obeys."""
    safe = "".join(each if each.isprintable() else "?" for each in name)
    return safe if len(safe) <= LONGEST else f"{safe[: LONGEST - 3]}..."
