"""Files of other projects, read strictly: what is wrong is one line that names file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UsageError


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object. Raise UsageError."""
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}: line {error.lineno}: {error.msg}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path}: must be a JSON object")
    return found


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each line's number, from 1, and its JSON object; blank lines are skipped.

    Raise UsageError.
    """
    some = False
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{path}: line {number}: {error.msg}") from None
        if not isinstance(found, dict):
            raise UsageError(f"{path}: line {number}: must be a JSON object")
        some = True
        yield number, found
    if not some:
        raise UsageError(f"{path} is empty")


def read_lines(path: Path) -> list[str]:
    """Return a file's lines that hold something, without blanks at their ends."""
    lines = [line.strip() for line in read_text(path).split("\n")]
    return [line for line in lines if line]


def text_of(row: dict[str, Any], key: str, path: Path, line: int) -> str:
    """Return a row's text under a key. Raise UsageError where there is none."""
    text = row.get(key)
    if not (isinstance(text, str) and text.strip()):
        raise UsageError(f"{path}: line {line}: `{key}` must be a text that is not empty")
    return text


def read_text(path: Path) -> str:
    """Return a file's text. Raise UsageError."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
