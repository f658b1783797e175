"""Output that ends no command: where the reader has left, the disk is full, the locale is ASCII."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from typing import Any, TextIO

from traitmill.engine.files import FULL_DISK

_WIPE = b"\r\x1b[2K"


class _Passing:
    """A line on the terminal that is gone before anything else is written there."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.shown = False
        self.at_start = True
        """Whether the cursor stands at the start of a line."""

    def renew(self) -> None:
        """Take another lock: in a forked child nobody is left to give the old one back."""
        self.lock = threading.Lock()

    def show(self, text: str) -> None:
        """Write it in place of the last one; not into the middle of a line."""
        with self.lock:
            if self.at_start:
                self.shown = True
                os.write(1, _WIPE + text.encode())

    def wipe(self) -> None:
        with self.lock:
            self._wipe()

    def _wipe(self) -> None:
        if self.shown:
            self.shown = False
            os.write(1, _WIPE)

    def write(self, number: int, data: Any) -> int:
        """Write to the terminal, where the line was."""
        with self.lock:
            self._wipe()
            written = os.write(number, data)
            self.at_start = bytes(data[:written]).endswith(b"\n")
            return written


passing = _Passing()
# Another thread may be writing while a process is forked: its child would wait for it for ever.
os.register_at_fork(after_in_child=passing.renew)


class _Descriptor(io.RawIOBase):
    """A file descriptor; after its first error, what is written to it is dropped."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._write = partial(passing.write if os.isatty(number) else os.write, number)
        self.error: OSError | None = None

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return self._write(data)
            except OSError as error:
                self.error = error
        return len(data)


def open_text(number: int) -> TextIO:
    """Return a text stream on a descriptor: UTF-8 whatever the locale, and no error ever."""
    buffer: Any = io.BufferedWriter(_Descriptor(number))
    return io.TextIOWrapper(
        buffer, encoding="utf-8", errors="backslashreplace", line_buffering=True
    )


def is_full(stream: TextIO) -> bool:
    """Return whether something was dropped because the disk under a stream is full."""
    descriptor: Any = stream.buffer.raw  # type: ignore[attr-defined]  # open_text's
    error = descriptor.error
    return error is not None and error.errno in FULL_DISK


@contextmanager
def safe_streams() -> Iterator[TextIO]:
    """Make sys.stdout and sys.stderr safe for the block; yield the first.

    A descriptor that the caller has closed is opened on /dev/null: no file takes its number.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
    with redirect_stdout(open_text(1)) as out, redirect_stderr(open_text(2)):
        yield out
