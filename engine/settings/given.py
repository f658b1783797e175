"""What callers give, settings and arguments: made plain by the type that each has, or refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
)

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
_NAMED = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    "Activations": "what load_activations(folder) returns",
    "Vectors": "what fit_vectors(activations) returns",
}


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
    if name == "chat_template_kwargs" and isinstance(value, Mapping):
        try:
            value = json.dumps(dict(value), allow_nan=False) if value else ""
        except (TypeError, ValueError) as error:
            raise UsageError(f"`{name}` takes what JSON can hold: {error}") from None
    return plainly(name, value, kind, words)


def plainly(name: str, value: Any, kind: Any, words: Iterable[str] = ()) -> Any:
    """Return a value as `kind`. Raise UsageError that names it."""
    try:
        return _fitting(value, kind)
    except (TypeError, ValueError, OverflowError):
        shown = repr(value)[:60]
    kinds = [each for each in get_args(kind) if each is not NoneType]
    choices = kind if get_origin(kind) is Literal else kinds[0] if len(kinds) == 1 else None
    if get_origin(choices) is Literal and isinstance(value, str):
        raise UsageError(f"`{name}` {shown} is unknown; choose from {', '.join(get_args(choices))}")
    takes = " or ".join([_said(kind), *words])
    raise UsageError(f"`{name}` takes {takes}, not {shown}")


def _fitting(value: Any, kind: Any) -> Any:
    """Return a value as `kind`. Raise TypeError where it is none."""
    value = value.tolist() if hasattr(value, "tolist") else value
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return _fitting_one(value, inner)
    if origin in (tuple, Sequence):
        return _fitting_list(value, inner[0])
    if kind in (int, float):
        return _fitting_number(value, kind)
    if kind is bool and isinstance(value, int) and value in (0, 1):
        return bool(value)  # older folders remember them so
    if kind is Path and isinstance(value, os.PathLike):
        return Path(value)
    if origin is Literal:
        fits = value in inner
    elif isinstance(origin, type) and not getattr(origin, "_is_protocol", False):
        fits = isinstance(value, origin)
    else:  # a protocol, or Any
        fits = True
    if not fits:
        raise TypeError
    return value


def _fitting_number(value: Any, kind: type) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (kind is int and value != int(value)):
        raise TypeError
    return kind(value)


def _fitting_list(value: Any, kind: Any) -> tuple[Any, ...]:
    """Return what can be listed, or a single name, as a tuple."""
    if isinstance(value, str) and kind is not int:
        value = (value,)
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        raise TypeError
    return tuple(_fitting(each, kind) for each in value)


def _fitting_one(value: Any, kinds: Collection[Any]) -> Any:
    """Return a value as the first of some kinds that it is. Raise TypeError where it is none."""
    if isinstance(value, str) and str in kinds:
        return value
    for kind in kinds:
        with suppress(TypeError):
            return _fitting(value, kind)
    raise TypeError


def _said(kind: Any) -> str:
    """Return in words what a kind is."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        shown = [each for each in inner if not (each is str and Path in inner)]
        return " or ".join(_said(each) for each in shown)
    if origin is Literal:
        return " or ".join(inner)
    if origin in (tuple, Sequence):
        return f"a list, each of it {_said(inner[0])}"
    if kind is NoneType:
        return "None"
    return _NAMED.get(kind) or _NAMED.get(origin.__name__) or f"an object of {origin.__name__}"


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
