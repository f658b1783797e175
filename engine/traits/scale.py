"""The scale that a judge's prompt asks for, and its place on the one of 0 to 100."""

from __future__ import annotations

from dataclasses import dataclass

LARGEST = 1000
"""The highest end of a scale."""


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
