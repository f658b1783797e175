"""The folder that projections are written to: held by one process, and of one input alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import LockedError, UsageError
from ..files import TEMP_SUFFIX, remove_leftovers, write_atomic


def take_up(folder: Path, facts: Mapping[str, Any], *, whole: bool) -> None:
    """Note what the folder is for, where that is not noted yet.

    Raise UsageError where it holds another. What is `whole` is computed nowhere any more.
    """
    record = folder / "project.json"
    try:
        known = json.loads(record.read_bytes())
    except FileNotFoundError:
        for path in folder.glob(f".{record.name}.*{TEMP_SUFFIX}"):
            path.unlink(missing_ok=True)  # of a call that was killed as it wrote it
        if any(path.name != ".lock" for path in folder.iterdir()):
            raise UsageError(
                f"`to` {folder} holds other files; give a folder that is empty or not there"
            ) from None
        write_atomic(record, json.dumps(facts, indent=1).encode())
        return
    except ValueError:
        known = {}
    before, now = known.get("computed"), facts["computed"]
    if whole or before is None:  # of a version that did not note it
        known = {**known, "computed": now}
    differing = [name for name, value in facts.items() if known.get(name) != value]
    if differing == ["computed"]:
        raise UsageError(
            f"`to` {folder} was begun in {'; '.join(before)}, and this device would go on in "
            f"{'; '.join(now)}; go on with a device like the first, or give another folder"
        )
    if known != facts:
        raise UsageError(
            f"`to` {folder} holds projections of other {', '.join(differing)}; give another "
            "folder, or remove it"
        )
    for each in (folder, folder / "parts"):
        remove_leftovers(each)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make the folder where it is missing, and hold it for this process alone."""
    from filelock import FileLock, Timeout

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"`to` {folder} is a file; give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0, is_singleton=False)
    try:
        lock.acquire()
    except Timeout:
        raise LockedError(f"{folder} is in use by another run; wait for it") from None
    try:
        yield
    finally:
        lock.release()
