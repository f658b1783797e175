"""How many requests a minute an endpoint bears, and how long it asks to wait.

The pace is what was allowed, less where the endpoint refuses, and back again.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

# A pace is judged by so many outcomes, more after a cut; where fewer than 1 % are refusals, its
# pauses are enough.
_OUTCOMES, _OUTCOMES_AFTER_CUT, _BORNE_REFUSALS = 20, 60, 0.01
# A cut goes to 0.9 of what was answered in the last minute, pauses included: whatever the pace, the
# endpoint bore that.
_BORNE_SHARE, _MINUTE = 0.9, 60
# Where two cuts left the share of refusals about what it was, they come of something else, such as
# another user's load: more cuts would only bring the pace to nothing.
_SAME_SHARE, _CUTS_IN_VAIN = (0.5, 2.0), 2
# Nor does the pace sink below a tenth of the rate, unless the endpoint does not answer half of
# that.
_LEAST_SHARE = 0.1
# The pace comes back by time, in 10 s by 5 % of the rate (of a low pace by a tenth), so that a low
# one recovers too; but only after 100 answers without a 429, so that finding the endpoint's limit
# again costs few of them.
_REGAIN_SHARE, _REGAIN_MOST, _REGAIN_SECONDS, _CLEAN_ANSWERS = 0.05, 0.1, 10.0, 100


class Pace:
    """Requests a minute to aim at. Times are seconds of any one clock."""

    def __init__(self, rpm: float) -> None:
        self._rpm = self.rpm = rpm
        self._began: float | None = None
        self._minute: deque[list[int]] = deque()
        """[second, answers in it] of the last minute."""
        self._changed_at = 0.0
        self._answered = self._refused = 0
        """Since then."""
        self._clean, self._refused_at = 0, 0.0
        """Answers since the last refusal, and when that was."""
        self._cut_for: float | None = None
        """The share of refusals that the last cut was made for, None where it has been regained
        since."""
        self._in_vain = 0
        """Cuts since then that changed little."""

    def sent(self, now: float) -> None:
        """A request leaves."""
        if self._began is None:
            self._began = self._changed_at = now

    def answered(self, now: float) -> None:
        """An answer came: a pace that was cut regains where none was refused for a while."""
        self._answered += 1
        self._clean += 1
        if not self._minute or self._minute[-1][0] != int(now):
            self._minute.append([int(now), 0])
            self._forget(now)
        self._minute[-1][1] += 1
        quiet = now - max(self._refused_at, self._changed_at) >= _REGAIN_SECONDS
        if (
            self.rpm < self._rpm
            and quiet
            and self._clean >= _CLEAN_ANSWERS
            and self._answered >= _OUTCOMES
        ):
            self._cut_for, self._in_vain = None, 0
            step = min(_REGAIN_SHARE * self._rpm, _REGAIN_MOST * self.rpm)
            self._change(min(self._rpm, self.rpm + step), now)

    def refused(self, now: float) -> None:
        """A 429 came."""
        self._refused += 1
        self._clean, self._refused_at = 0, now

    def cut(self, now: float) -> bool:
        """Slow down to what was answered, where that may help; whether it did so."""
        outcomes = self._answered + self._refused
        enough = _OUTCOMES if self._cut_for is None else _OUTCOMES_AFTER_CUT
        if (
            outcomes < enough
            or self._refused < _BORNE_REFUSALS * outcomes
            or self._in_vain >= _CUTS_IN_VAIN
        ):
            return False
        share = self._refused / outcomes
        if self._cut_for is not None and _SAME_SHARE[0] < share / self._cut_for < _SAME_SHARE[1]:
            self._in_vain += 1
        self._cut_for = share
        borne, least = self._borne(now), _LEAST_SHARE * self._rpm
        least = least if borne > least / 2 else min(1.0, self._rpm)
        self._change(min(self.rpm, max(_BORNE_SHARE * borne, least)), now)
        return True

    def allow(self, rpm: float) -> None:
        """Never go beyond `rpm` from now on."""
        self._rpm, self.rpm = min(self._rpm, rpm), min(self.rpm, rpm)

    def _borne(self, now: float) -> float:
        """Answers a minute, over the last minute or as long as there have been requests."""
        self._forget(now)
        seen = min(_MINUTE, max(1.0, now - (now if self._began is None else self._began)))
        return 60 * sum(count for _, count in self._minute) / seen

    def _forget(self, now: float) -> None:
        while self._minute and self._minute[0][0] <= now - _MINUTE:
            self._minute.popleft()

    def _change(self, rpm: float, now: float) -> None:
        self.rpm, self._changed_at = rpm, now
        self._answered = self._refused = 0


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
