"""Output that ends no command: where the reader has left, the disk is full, the locale is ASCII."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO


class _Descriptor(io.RawIOBase):
    """A file descriptor; after its first error, what is written to it is dropped."""

    def __init__(self, number: int) -> None:
        self._number = number
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
                return os.write(self._number, data)
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
    return error is not None and error.errno in (errno.ENOSPC, errno.EDQUOT)


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
