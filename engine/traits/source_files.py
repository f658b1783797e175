"""Files of other projects, read strictly: what is wrong is one line that names file and line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UsageError


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object. Raise UsageError."""
    return _object(read_text(path), str(path))


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each line's number, from 1, and its JSON object; blank lines are skipped.

    Raise UsageError.
    """
    some = False
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        some = True
        yield number, _object(line, f"{path}: line {number}")
    if not some:
        raise UsageError(f"{path} is empty")


def _object(text: str, where: str) -> dict[str, Any]:
    """Return the JSON object that a text holds. Raise UsageError, which begins with `where`."""

    def once(items: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, count in Counter(key for key, _ in items).items() if count > 1]
        if twice:
            raise UsageError(f"{where}: `{twice[0]}` appears more than once in one object")
        return dict(items)

    try:
        found = json.loads(text, object_pairs_hook=once)
        json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = "" if "line " in where else f": line {error.lineno}"
        raise UsageError(f"{where}{line}: {error.msg}") from None
    except UnicodeEncodeError:
        raise UsageError(
            f"{where}: holds a lone surrogate (a broken \\ud... escape), which no file can carry"
        ) from None
    except RecursionError:
        raise UsageError(f"{where}: is nested too deep") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise UsageError(f"{where}: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{where}: must be a JSON object")
    return found


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
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
