"""What callers give as settings: made plain by the type that the setting has, or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ..errors import UsageError

_LAYERS = re.compile(r"(-1|[0-9]{1,4})(?:-([0-9]{1,4}))?")
"""An index or a range. No model has 10,000 layers, and a longer number would only fill memory."""
_WORDS: Mapping[str, Mapping[str, Any]] = {
    "batch_size": {"auto": None},
    "judge_concurrency": {"auto": 0},
    "replicas": {"auto": 0},
    "neg_threshold": {"off": None},
}
"""Words that stand for a value, as on the command line."""
_NAMED = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def plain(name: str, given: Any, kind: Any) -> Any:
    """Return what is given for a setting as a plain value of its type. Raise UsageError."""
    value = given.tolist() if hasattr(given, "tolist") else given  # numpy's and torch's
    words = _WORDS.get(name, {})
    if isinstance(value, str):
        if value in words:
            return words[value]
        if name == "layers":
            return parse_layers(value)
        if name == "pool":
            value = tuple(pool.strip() for pool in value.split(","))
    try:
        if name == "chat_template_kwargs" and isinstance(value, Mapping):
            value = json.dumps(dict(value), allow_nan=False) if value else ""
        return _fitting(value, kind)
    except (TypeError, ValueError, OverflowError):
        shown = repr(given)[:60]
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if choices:
        raise UsageError(f"`{name}` {shown} is unknown; choose from {', '.join(choices)}")
    takes = " or ".join([_said(kind), *words])
    raise UsageError(f"`{name}` takes {takes}, not {shown}")


def _fitting(value: Any, kind: Any) -> Any:
    """Return a value as `kind`. Raise TypeError where it is none."""
    value = value.tolist() if hasattr(value, "tolist") else value
    origin, inner = get_origin(kind), get_args(kind)
    if kind is bool and isinstance(value, int):
        if value in (0, 1):  # older folders remember them so
            return bool(value)
    elif origin in (Union, UnionType):
        if value is None:
            return None
        [kind] = [each for each in inner if each is not NoneType]
        return _fitting(value, kind)
    if origin is tuple and isinstance(value, list | tuple | range):
        return tuple(_fitting(each, inner[0]) for each in value)
    if kind in (int, float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and (kind is float or value == int(value)):
            return kind(value)
    elif isinstance(value, str if origin is Literal else kind) and value in (inner or (value,)):
        return value
    raise TypeError


def _said(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join("None" if each is NoneType else _said(each) for each in inner)
    if origin is tuple:
        return f"a list, each of it {_said(inner[0])}"
    return _NAMED[kind]


def parse_layers(text: str) -> tuple[int, ...] | None:
    """Return `5,10-15` as ascending indices, -1 being the embeddings, `all` as None.

    Raise UsageError.
    """
    if text == "all":
        return None
    layers: set[int] = set()
    for part in text.split(","):
        found = _LAYERS.fullmatch(part.strip())
        said = f"`layers` {text[:60]!r}: "
        if not found:
            raise UsageError(f"{said}write indices and ranges such as 5,10-15, or all")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise UsageError(f"{said}{part.strip()} runs backwards; write {last}-{first}")
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))
