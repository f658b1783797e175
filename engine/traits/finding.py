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

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.said}; {self.remedy}"


def error(rule: str, where: str, said: str, remedy: str) -> Finding:
    return Finding("error", rule, where, said, remedy)


def warning(rule: str, where: str, said: str, remedy: str) -> Finding:
    return Finding("warning", rule, where, said, remedy)
