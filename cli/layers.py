"""What a person sees of stage 3 while it goes: layers done, and the time left."""

from __future__ import annotations

import sys
import time

import click

PLAIN_EVERY_S = 10.0
_AFRESH = "\r\x1b[K"
"""Takes the cursor back and wipes the line."""


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
            line += f", {clock((now - self._began) / done * (total - done))} left"
        if self._terminal:
            click.echo(_AFRESH + (line if done < total else ""), nl=False)
        elif done < total and now - self._told >= PLAIN_EVERY_S:
            click.echo(line)
            self._told = now


def clock(seconds: float) -> str:
    """Return minutes and seconds, as 12:05."""
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
