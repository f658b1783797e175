"""Texts in files: conversations or responses as JSON Lines or CSV, and responses as `.txt`.

Each kind is read twice: once to find every fault, and what columns there are, before a model is
loaded, and then as a stream.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..models import Turn
from .texts import Text

CONTENT = ("messages", "prompt", "response")
"""Columns that hold what is projected; all others are carried along."""
_NAMED = 5
"""Faults that an error names."""
_OF_TURN = ("role", "content", "id", "name")
"""What a turn may hold beside words that a model would have been shown."""
_ROLES = {name: name for name in ("system", "user", "assistant", "tool")}
_ROLES |= {"human": "user", "gpt": "assistant", "bot": "assistant", "ai": "assistant"}
"""What roles are called elsewhere, in lower case, and here. Most chat templates write a role that
they do not know as it stands, and no model was trained on that."""


class JsonLines:
    """A file with one JSON object a line."""

    def __init__(self, path: Path) -> None:
        """Read it once. Raise UsageError that names lines which cannot be used."""
        self._path = path
        self.columns, self.digest, self.unread = _survey(path, self._records())

    def __iter__(self) -> Iterator[Text]:
        for line, record in self._records():
            yield _text(line, record)

    def _records(self) -> Iterator[tuple[int, Any]]:
        with self._path.open("rb") as file:
            for line, data in enumerate(file, 1):
                if data.strip():
                    yield line, _parsed(data)


class CsvFile:
    """A CSV file with a header; `messages`, where it is there, holds JSON."""

    def __init__(self, path: Path) -> None:
        """Read it once. Raise UsageError that names lines which cannot be used."""
        self._path = path
        try:
            self.columns, self.digest, self.unread = _survey(path, self._records())
        except (UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"{path} is no CSV in UTF-8: {error}") from None

    def __iter__(self) -> Iterator[Text]:
        for line, record in self._records():
            yield _text(line, record)

    def _records(self) -> Iterator[tuple[int, Any]]:
        csv.field_size_limit(2**31 - 1)  # a cell may be long; the default stops at 128 kB
        with self._path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or []  # read now, so that lines are counted behind it
            _require_columns(self._path, names)
            if twice := [name for name, count in Counter(names).items() if name and count > 1]:
                raise UsageError(f"{self._path}: two columns are named {twice[0]!r}")
            while True:
                line = reader.line_num + 1
                record = next(reader, None)
                if record is None:
                    return
                if None in record:
                    yield line, "it has more cells than the header"
                elif record.get("messages"):
                    messages = _parsed(record["messages"].encode())
                    yield line, {**record, "messages": messages}
                else:
                    record.pop("messages", None)
                    yield line, record


def _require_columns(path: Path, names: Sequence[str]) -> None:
    """Raise UsageError where a header has no column of texts: then every row would be faulty."""
    if not names or {"response", "messages"} & set(names):
        return
    how = ""
    if len(names) == 1 and (apart := [mark for mark in ";\t|" if mark in names[0]]):
        how = f"; its cells seem to be apart by {apart[0]!r}: save it with commas"
    columns = ", ".join(repr(name) for name in names[:_NAMED])
    raise UsageError(f"{path} has no column `response` or `messages`, but {columns}{how}")


class TextFiles:
    """Responses, one `.txt` file each, of one folder."""

    columns = ("file",)

    def __init__(self, paths: list[Path]) -> None:
        """Read each once. Raise UsageError that names files which cannot be used."""
        self._paths = paths
        where = paths[0] if len(paths) == 1 else paths[0].parent
        _, self.digest, self.unread = _survey(where, self._records(), "file ")

    def __iter__(self) -> Iterator[Text]:
        for number, record in self._records():
            yield _text(number, record)

    def _records(self) -> Iterator[tuple[int, Any]]:
        for number, path in enumerate(self._paths, 1):
            try:
                text = path.read_text(encoding="utf-8-sig")
                # Editors end a file with it: it is no part of the text.
                yield number, {"file": path.name, "response": text.removesuffix("\n")}
            except UnicodeDecodeError:
                yield number, f"{path.name} is not in UTF-8"


def _parsed(data: bytes) -> Any:
    """Return a JSON value; what is wrong with it as text."""
    try:
        found = json.loads(data)
    except ValueError as error:
        return f"it is no JSON ({error})"
    except RecursionError:
        return "it is nested too deep"
    return "it is no object" if isinstance(found, str) else found


def _survey(
    path: Path, records: Iterator[tuple[int, Any]], what: str = "line "
) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Return the columns beside the texts, a hash of all that counts, and what turns hold that no
    model is shown: tool calls, thoughts apart.

    Raise UsageError where there is nothing, or a row cannot be used.
    """
    columns: dict[str, None] = {}
    unread: dict[str, None] = {}
    named, faulty, count, digest = [], 0, 0, hashlib.sha256()
    for number, record in records:
        count += 1
        fault = record if isinstance(record, str) else _fault(record)
        if fault:
            faulty += 1
            if faulty <= _NAMED:
                named.append(f"  {what}{number}: {fault}")
            continue
        columns |= dict.fromkeys(name for name in record if name not in CONTENT)
        for turn in record.get("messages") or ():
            unread |= dict.fromkeys(name for name in turn if name not in _OF_TURN and turn[name])
        digest.update(json.dumps(record, sort_keys=True).encode())
    if not count:
        raise UsageError(f"{path} holds no text")
    if faulty > _NAMED:
        named.append(f"  and {faulty - _NAMED} more")
    if named:
        head = f"{path}: {faulty} of {count} rows cannot be used; mend or remove them:"
        raise UsageError("\n".join([head, *named]))
    return tuple(columns), digest.hexdigest()[:16], tuple(unread)


def _fault(record: Any) -> str:
    """Return what is wrong with a row; empty where nothing is."""
    if not isinstance(record, dict):
        return "it is no object"
    messages = record.get("messages")
    if messages is None and not isinstance(record.get("response"), str):
        return "it has neither `messages` nor a text under `response`"
    if messages is not None and record.get("response"):
        fault = "it has both `messages` and `response`: keep the one that is to be read"
    elif messages is not None:
        fault = _fault_of_messages(messages)
    else:
        fault = "`response` is empty" if not record["response"].strip() else ""
        if not isinstance(record.get("prompt", ""), str | None):
            fault = "`prompt` is no text"
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        fault = fault or "it holds half of a surrogate pair, which is no character"
    return fault


def _fault_of_messages(messages: Any) -> str:
    if not isinstance(messages, list) or not messages:
        return "`messages` is no list of turns"
    for number, turn in enumerate(messages, 1):
        known = isinstance(turn, dict) and {"role", "content"} <= turn.keys()
        if known and isinstance(turn["content"], list):
            return f"turn {number} of `messages` has parts under `content`: make one text of them"
        if not known or not all(isinstance(turn[name], str) for name in ("role", "content")):
            return f"turn {number} of `messages` lacks a text under `role` or `content`"
        ours = _ROLES.get(turn["role"].strip().lower(), turn["role"])
        if ours != turn["role"]:
            return f"turn {number} of `messages` has the role {turn['role']!r}: write {ours!r}"
    if not any(turn["content"].strip() for turn in messages):
        return "every turn of `messages` is empty"
    return ""


def _text(number: int, record: Mapping[str, Any]) -> Text:
    columns = {name: _cell(value) for name, value in record.items() if name not in CONTENT}
    if record.get("messages") is not None:
        turns = [Turn(each["role"], each["content"]) for each in record["messages"]]
    elif record.get("prompt"):
        turns = [Turn("user", record["prompt"]), Turn("assistant", record["response"])]
    else:
        turns = [Turn("assistant", record["response"])]
    return Text(number, tuple(turns), columns)


def _cell(value: Any) -> str | None:
    """Return a value as a cell: text as it is, all else as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
