"""One thing to mend in a definition, as its author reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to mend. `where` is a key such as `questions[3]`, empty for the file itself."""

    severity: Severity
    rule: str
    where: str
    said: str
    remedy: str
    meant: str = ""
    """The key that is meant, such as `instruction[1].pos`, where a mistyped one stands."""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.said}; {self.remedy}"


def error(rule: str, where: str, said: str, remedy: str, meant: str = "") -> Finding:
    return Finding("error", rule, where, said, remedy, meant)


def warning(rule: str, where: str, said: str, remedy: str) -> Finding:
    return Finding("warning", rule, where, said, remedy)
