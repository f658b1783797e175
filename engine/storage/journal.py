"""Rows that no part file holds yet: each is appended to a journal at once, so that a kill loses
none.

A line is a checksum and the row as JSON. Nothing is synced to disk here: that a process is killed
does not touch what the kernel has taken, and part files, which are synced, follow within seconds.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..files import naming_full_disk
from .parts import PartSet
from .schemas import Row, row_table

_NAME = re.compile(r"\.journal-(\d{8})\.jsonl")


def journal_files(folder: Path) -> list[Path]:
    """Return the journals of a record set in the order they were begun."""
    return sorted(path for path in folder.glob(".journal-*") if _NAME.fullmatch(path.name))


def read_journal(path: Path) -> Iterator[Row]:
    """Yield the rows of a journal. A line that was cut off is left out."""
    for line in path.read_bytes().splitlines():
        checksum, _, content = line.partition(b" ")
        if checksum == _checksum(content):
            yield json.loads(content)


def _checksum(content: bytes) -> bytes:
    return b"%08x" % zlib.crc32(content)


class Journal:
    """The journal of one record set. Rotate it when the rows so far are about to become a part."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        for path in journal_files(folder):
            self._number = int(path.name[9:17])
        self._path: Path | None = None
        self._descriptor = -1

    def add(self, row: Row) -> None:
        """Append a row. Raise ResourceError when the disk is full."""
        if self._path is None:
            self._number += 1
            self._path = self._folder / f".journal-{self._number:08d}.jsonl"
            with naming_full_disk(self._path):
                self._folder.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                self._descriptor = os.open(self._path, flags, 0o644)
        content = json.dumps(row, separators=(",", ":")).encode()
        with naming_full_disk(self._path):
            _write(self._descriptor, b"%s %s\n" % (_checksum(content), content))

    def rotate(self) -> Path | None:
        """Begin another journal; return the one so far, to delete once a part holds its rows."""
        path, self._path = self._path, None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        return path


def _write(descriptor: int, data: bytes) -> None:
    """Write all of `data`: a disk that is nearly full takes a part of it."""
    while data:
        data = data[os.write(descriptor, data) :]


def journaled(parts: PartSet) -> int:
    """Return how many rows of a record set stand in journals alone: of a run at work, or killed."""
    found = 0
    for path in journal_files(parts.folder):
        with suppress(FileNotFoundError):  # a run at work has made a part of it just now
            found += sum(1 for _ in read_journal(path))
    return found


def replay(parts: PartSet) -> None:
    """Make a part of the journals that a killed run left. Call while holding the lock."""
    paths = journal_files(parts.folder)
    if not paths:
        return
    stored: set[tuple[str, str]] = set()
    for _, table in parts.read(["sample_id", "status"]):
        stored.update(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
    rows: dict[tuple[str, str], Row] = {}
    for path in paths:
        for row in read_journal(path):
            key = (row["sample_id"], row["status"])
            if key not in stored:  # else the kill came between the part and the journal's removal
                rows.setdefault(key, row)
    if rows:
        parts.append(row_table(parts.kind, list(rows.values())))
    for path in paths:
        path.unlink()
