"""One writer per trait folder: a kernel lock for this host, a name in the file for the others."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import LockedError, UsageError
from ..files import naming_full_disk

LOCK_FILE = ".lock"


@contextmanager
def lock_traits(folders: Sequence[Path], *, force_unlock: bool = False) -> Iterator[None]:
    """Hold the locks of all folders, taken in sorted order without waiting; one held means none is taken.

    The kernel frees a dead holder's lock by itself. A lock that names another host is never taken over without
    `force_unlock`, since nothing here can tell whether that host's run is alive.

    Raises LockedError naming the holder's pid and host.
    """
    with ExitStack() as stack:
        for folder in sorted(folders):
            stack.enter_context(_lock(folder, force_unlock=force_unlock))
        yield


@contextmanager
def _lock(folder: Path, *, force_unlock: bool) -> Iterator[None]:
    path = folder / LOCK_FILE
    try:
        with naming_full_disk(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written ({error.strerror}); check its permissions or use --experiments_dir"
        ) from None
    with os.fdopen(descriptor, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _locked(
                folder, _holder(file.read()), "wait for it, or stop it and run again"
            ) from None
        holder = _holder(file.read())
        if holder and holder.get("host") != socket.gethostname() and not force_unlock:
            raise _locked(folder, holder, "if that run is dead, run again with --force_unlock")
        with naming_full_disk(path):
            _write(
                file.fileno(),
                json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(),
            )
        try:
            yield
        finally:
            _write(file.fileno(), b"")


def _write(descriptor: int, data: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, data, 0)


def _holder(data: bytes) -> dict[str, object]:
    try:
        holder = json.loads(data)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _locked(folder: Path, holder: dict[str, object], remedy: str) -> LockedError:
    who = f"pid {holder.get('pid', '?')} on {holder.get('host', 'this host')}"
    return LockedError(f"{folder} is in use by another run ({who}); {remedy}")
