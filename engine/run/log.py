"""The screen belongs to the user: what libraries print goes to the run's log, at file-descriptor
level."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from ..files import naming_full_disk

_POINTING = ("EngineDeadError", "See root cause above", "See stack trace")
_PREFIX = re.compile(r"^\(\w+ pid=\d+\) ERROR [\d-]+ [\d:]+ \[[^\]]+\] ")


def new_log(experiment_folder: Path) -> Path:
    """A fresh log path: one log a run, named by UTC time and pid."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    return experiment_folder / ".logs" / f"{stamp}-{os.getpid()}.log"


def append(log: Path, text: str) -> None:
    """Add lines of ours to a log that libraries write to as well. A full disk ends no run."""
    with suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{text.rstrip()}\n")


@contextmanager
def redirected(log: Path) -> Iterator[tuple[TextIO, TextIO]]:
    """Send file descriptors 1 and 2, child processes' included, to `log`; yields the real (stdout,
    stderr)."""
    with naming_full_disk(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        opened = log.open("ab", buffering=0)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with (
        opened as file,
        os.fdopen(saved[0], "w", encoding="utf-8", closefd=False) as out,
        os.fdopen(saved[1], "w", encoding="utf-8", closefd=False) as err,
    ):
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield out, err
        finally:
            for stream in (sys.stdout, sys.stderr, out, err):
                with suppress(OSError):  # a full disk under the log must not hide how the run ended
                    stream.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
    for descriptor in saved:
        os.close(descriptor)


def tail(log: Path) -> str:
    """The end of a log; empty where it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16)))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def last_error(log: Path) -> str:
    """The last line of a log that names an error, for a message; empty when there is none.

    Lines that only point at another are passed over, and what vLLM puts before each line is left
    out.
    """
    lines = tail(log).splitlines()
    named = [
        _PREFIX.sub("", line).strip()
        for line in lines
        if "Error" in line and not any(words in line for words in _POINTING)
    ]
    # Its cause stands first: vLLM lists a model's parameters behind it.
    return named[-1][:300] if named else ""
