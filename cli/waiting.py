"""What moves while a person waits: a line at once, a spinner while libraries are imported, and the
layers of stage 3 with the time left."""

from __future__ import annotations

import os
import sys
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
PLAIN_EVERY_S = 10.0
_AFRESH = "\r\x1b[K"
"""Takes the cursor back and wipes the line."""


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


class LayerDisplay:
    """One line that is written over on a terminal; elsewhere a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._began = self._told = time.monotonic()

    def __call__(self, trait: str, step: str, done: int, total: int) -> None:
        """Show how far a step of a trait is; what is over leaves nothing on a terminal."""
        now = time.monotonic()
        line = f"{trait}: {step}, {done} of {total} layers"
        if not done:
            self._began = now
        elif done < total:
            line += f", {minutes((now - self._began) / done * (total - done))} left"
        if self._terminal:
            click.echo(_AFRESH + (line if done < total else ""), nl=False)
        elif done < total and now - self._told >= PLAIN_EVERY_S:
            click.echo(line)
            self._told = now


def minutes(seconds: float) -> str:
    """Return minutes and seconds, as 12:05."""
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
