"""One writer per trait folder: a kernel lock on this host, a name in the file for others."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import LockedError, UsageError
from ..files import naming_full_disk
from .folder import TraitFolder

_NO_KERNEL_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def lock_traits(folders: Sequence[TraitFolder], *, force_unlock: bool = False) -> Iterator[None]:
    """Hold the locks of all folders, taken in sorted order without waiting; one held, none is
    taken.

    The kernel frees a dead holder's lock by itself. A lock that names another host is not taken
    over without `force_unlock`: nothing here can tell whether that host's run is alive. Where the
    file system has no kernel locks, the lock is a file that its holder removes.

    Raise LockedError naming the holder's pid and host, UsageError where a folder is not writable.
    """
    with ExitStack() as stack:
        for folder in sorted(folders, key=lambda folder: folder.path):
            stack.enter_context(_lock(folder, force_unlock=force_unlock))
        yield


@contextmanager
def _lock(folder: TraitFolder, *, force_unlock: bool) -> Iterator[None]:
    from filelock import FileLock, SoftFileLock, Timeout

    path = folder.lock
    held, holder = path.with_suffix(".held"), _read_holder(path)
    lock = FileLock(path, timeout=0, is_singleton=False, fallback_to_soft=False)
    try:
        with naming_full_disk(path):
            try:
                lock.acquire()
            except OSError as error:
                if error.errno not in _NO_KERNEL_LOCKS:
                    raise
                if force_unlock and (_is_elsewhere(holder) or not holder):
                    held.unlink(missing_ok=True)
                lock = SoftFileLock(held, timeout=0, is_singleton=False)
                lock.acquire()
    except Timeout:
        remedy = "wait for it, or stop it and run again"
        if _is_elsewhere(holder) or (not holder and held.exists()):
            remedy = "if that run is dead, run again with `force_unlock`"
        raise _locked(folder, holder, remedy) from None
    except OSError as error:
        raise UsageError(
            f"{folder.path} cannot be written ({error.strerror}); check its permissions, or use "
            "another `experiments_dir`"
        ) from None
    try:
        if _is_elsewhere(holder) and not force_unlock:
            raise _locked(folder, holder, "if that run is dead, run again with `force_unlock`")
        own = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        with naming_full_disk(path):
            path.write_text(own)
        try:
            yield
        finally:
            with suppress(FileNotFoundError):  # the folder was moved away or deleted meanwhile
                path.write_text("")
    finally:
        lock.release()


def _read_holder(path: Path) -> dict[str, object]:
    try:
        holder = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(holder, dict):
        return {}
    return holder


def _is_elsewhere(holder: dict[str, object]) -> bool:
    """Return whether another host is named: nothing here can tell whether its run is alive."""
    return bool(holder) and holder.get("host") != socket.gethostname()


def _locked(folder: TraitFolder, holder: dict[str, object], remedy: str) -> LockedError:
    who = f"pid {holder.get('pid', '?')} on {holder.get('host', 'this host')}"
    return LockedError(f"{folder.path} is in use by another run ({who}); {remedy}")
