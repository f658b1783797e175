"""The scale that a judge's prompt asks for, and its place on the one of 0 to 100."""

from __future__ import annotations

import re
from dataclasses import dataclass

LARGEST = 1000
"""The highest end of a scale."""
_TO = r"\s*(?:to|and|through|-|\u2013|\u2014)\s*"
_ENDS = rf"(?P<low>[0-9]{{1,4}}){_TO}(?P<high>[0-9]{{1,4}})(?![0-9.]*[0-9])"
_ASKED = re.compile(
    rf"(?:\bfrom|\bbetween|\b(?:scale|range)(?:\s+of|\s+from|\s+is|:)?)\s*[\[(]?{_ENDS}"
    rf"|(?<![0-9.]){_ENDS.replace('low', 'first').replace('high', 'last')}\s+(?:scale|rating)\b"
    r"|(?<![0-9.])(?P<points>[0-9]{1,4})[- ]point\s+(?:\w+\s+)?scale\b",
    re.IGNORECASE,
)
"""Where a judge's prompt names the ends of a scale."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Whole numbers from `low` to `high`, both included."""

    low: int = 0
    high: int = 100

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"

    def percent(self, number: float) -> float:
        """Return where a number stands between the ends, 0 to 100, two decimals."""
        share = (number - self.low) / (self.high - self.low)
        return round(min(100.0, max(0.0, 100.0 * share)), 2)


FULL = Scale()


def other_scale(prompt: str, scale: Scale) -> Scale | None:
    """Return the first scale that a judge's prompt asks for, None where `scale` is among them.

    Of a scale of so many points, the lower end is a guess: 1.
    """
    asked = []
    for found in _ASKED.finditer(prompt):
        low, high = found["low"] or found["first"] or "1", found["high"] or found["last"]
        asked.append(Scale(int(low), int(high or found["points"])))
    rising = [each for each in asked if each.low < each.high]
    if scale in rising or not rising:
        return None
    return rising[0]
