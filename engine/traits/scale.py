"""The scale that a judge's prompt asks for, and its place on the one of 0 to 100."""

from __future__ import annotations

import re
from dataclasses import dataclass

LARGEST = 1000
"""The highest end of a scale."""
_TO = r"\s*(?:to|and|through|-|\u2013|\u2014)\s*"
_ENDS = rf"(?P<low>[0-9]{{1,4}}){_TO}(?P<high>[0-9]{{1,4}})(?![0-9.]*[0-9])"
_MARK = r"\b(?:rate|rating|score|grade|mark)s?\b"
_ASKED = re.compile(
    rf"(?:\bfrom|\bbetween|\b(?:scale|range)(?:\s+of|\s+from|\s+is|:)?)\s*[\[(]?{_ENDS}"
    rf"|(?<![0-9.]){_ENDS.replace('low', 'first').replace('high', 'last')}\s+(?:scale|rating)\b"
    r"|(?<![0-9.])(?P<points>[0-9]{1,4})[- ]point\s+(?:\w+\s+)?scale\b"
    rf"|{_MARK}[^.!?\n]{{0,60}}?(?<![\w.]){_ENDS.replace('low', 'least').replace('high', 'most')}\b"
    rf"|{_MARK}[^.!?\n]{{0,60}}?(?:\bout of\s+|/\s?)(?P<of>[0-9]{{1,4}})\b",
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

    The lower end is a guess of a scale of so many points, 1, and of marks out of so many, 0.
    """
    asked = []
    own = all(re.search(rf"\b{end}\b", prompt) for end in (scale.low, scale.high))
    for found in _ASKED.finditer(prompt):
        if own and (found["least"] or found["of"]):
            continue  # a band of marks, where the scale's own ends stand apart
        lows = (found["low"], found["first"], found["least"], "0" if found["of"] else "1")
        highs = (found[end] for end in ("high", "last", "most", "points", "of"))
        asked.append(Scale(int(next(filter(None, lows))), int(next(filter(None, highs)))))
    rising = [each for each in asked if each.low < each.high]
    if scale in rising or not rising:
        return None
    return rising[0]
