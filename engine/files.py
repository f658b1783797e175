"""Files that appear whole or not at all: temp file, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import BinaryIO

from .errors import ResourceError, UsageError

TEMP_SUFFIX = ".tmp"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a disk, a quota or the size allowed for a file (ulimit -f) is used
up."""
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes `path`'s place when the block ends without an error; else nothing
    changes.

    Raises ResourceError when the disk is full.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}{TEMP_SUFFIX}")
    with naming_full_disk(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temp.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temp.replace(path)
            sync_folder(path.parent)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise


def csv_line(cells: Iterable[object]) -> str:
    """Return cells as a line of CSV; None is empty.

    Before Python 3.13 csv.writer leaves a lone carriage return bare, which ends a row for readers.
    """
    return ",".join(_quoted("" if cell is None else str(cell)) for cell in cells) + "\n"


def _quoted(text: str) -> str:
    if any(character in text for character in ',"\n\r'):
        return '"' + text.replace('"', '""') + '"'
    return text


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Raise ResourceError, naming `path`, where the block runs out of disk."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save wraps the first in the second
        if not _is_full_disk(error):
            raise
        raise ResourceError(
            f"the disk is full while writing {path}; what was written before is safe: free space "
            f"and run again"
        ) from error


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether running out of disk is behind an error (torch.save hides it behind its own)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            return True
        error = error.__cause__ or error.__context__
    return False


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` as `path`, whole or not at all."""
    with atomic_file(path) as file:
        file.write(data)


def require_utf8(path: Path) -> None:
    """Raise UsageError for a path that is no text in UTF-8: Arrow opens no other."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"the path {str(path)!a} is not in UTF-8; rename that folder, or use another"
        ) from None


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:  # there a rename is as durable as it gets
            raise
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Delete temp files that a killed run left in `folder` (call only while holding the lock)."""
    for path in folder.glob(f".*{TEMP_SUFFIX}"):
        path.unlink(missing_ok=True)
