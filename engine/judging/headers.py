"""Headers of one's own for a judge's requests, from the environment: they may hold secrets."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping

from ..errors import UsageError

HEADERS = "TRAITMILL_JUDGE_HEADERS"
"""A JSON object of names and values."""
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_SECRET = re.compile(r"auth|key|token|secret|cookie|credential", re.IGNORECASE)
_AUTHORIZING = {"authorization", "api-key", "x-api-key"}


def read_headers() -> dict[str, str]:
    """Return the headers to send beside our own. Raise UsageError, which shows none of them."""
    text = os.environ.get(HEADERS, "").strip()
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise UsageError(
            f'{HEADERS} must be a JSON object of texts, like {{"X-Title": "my study"}}; what is '
            "set there is none"
        )
    for number, (name, value) in enumerate(found.items(), 1):
        if not _NAME.fullmatch(name) or not (value.isascii() and value.isprintable()):
            raise UsageError(
                f"{HEADERS}: header {number} has a name or a value that no header can have (a line "
                "break, an accent, a space in its name)"
            )
    return found


def authorizes(headers: Mapping[str, str]) -> bool:
    """Return whether a key stands in the headers."""
    return any(name.lower() in _AUTHORIZING for name in headers)


def secrets(headers: Mapping[str, str]) -> list[str]:
    """Return what of the headers no text may show: values of names that speak of keys."""
    found = [value for name, value in headers.items() if _SECRET.search(name)]
    return found + [word for value in found for word in value.split() if word != value]
