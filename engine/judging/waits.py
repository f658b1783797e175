"""How long an endpoint asks to wait, from its headers, and how a wait is told."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

_LONGEST_WAIT = 366 * 86400.0
"""What is asked for may be any number; the clock's arithmetic is not made for all of them."""
_SECONDS = re.compile(r"\s*s(ec(ond)?s?)?\s*$", re.IGNORECASE)
_DURATION = re.compile(
    r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?"
)


def parse_duration(text: str) -> float | None:
    """Seconds in a reset header such as `6m0s`, `120ms` or `1.5` (plain seconds); None for anything
    else."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return min(float(text), _LONGEST_WAIT)
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        return None
    scales = (86400.0, 3600.0, 60.0, 1.0, 0.001)
    seconds = sum(
        float(part) * scale for part, scale in zip(match.groups(), scales, strict=True) if part
    )
    return min(seconds, _LONGEST_WAIT)


def wait_asked(headers: Mapping[str, str]) -> float | None:
    """Seconds an endpoint asks to wait; None if it does not say. Header names are lower case.

    The longer of `retry-after-ms` and `retry-after` (seconds, or a date, taken against the answer's
    own `date` where it has one), else the longest `x-ratelimit-reset-*` of an allowance with
    nothing remaining.
    """
    milliseconds, seconds = (
        _longest(headers.get("retry-after-ms", "")),
        _longest(headers.get("retry-after", "")),
    )
    if milliseconds is not None or seconds is not None:
        return max((milliseconds or 0.0) / 1000, seconds or 0.0)
    if (until := _date(headers.get("retry-after", ""))) is not None:
        now = _date(headers.get("date", ""))
        return min(max(0.0, until - (time.time() if now is None else now)), _LONGEST_WAIT)
    resets = [
        parse_duration(headers.get(f"x-ratelimit-reset-{kind}", ""))
        for kind in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{kind}", "").strip() == "0"
    ]
    return max((reset for reset in resets if reset is not None), default=None)


def _longest(text: str) -> float | None:
    """The longest duration of a header, which a proxy on the way may have added a second time."""
    found = []
    for part in text.split(","):
        duration = parse_duration(part)
        found.append(parse_duration(_SECONDS.sub("", part)) if duration is None else duration)
    return max((duration for duration in found if duration is not None), default=None)


def _date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


def show_seconds(seconds: float) -> str:
    """`95` as `1 min 35 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
