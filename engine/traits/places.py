"""The places of a judge's prompt that are filled in: {question} and {answer}."""

from __future__ import annotations

import re
from collections.abc import Sequence

NEARLY = re.compile(
    r"\{[ ]*(?:questions?|answers?|response|prompt|instruction)[ ]*\}", re.IGNORECASE
)
"""What is written for such a place, rightly or not."""
_MEANT = {"{question}": ("question", "prompt"), "{answer}": ("answer", "response")}


def lacking(text: str, places: Sequence[str]) -> list[str]:
    """Return in words which places a text lacks, and what stands there instead."""
    found = []
    for place in places:
        if place in text:
            continue
        near = [each for each in NEARLY.findall(text) if _means(each, place)]
        hint = f": write it for {near[0]}" if near else ""
        found.append(f"lacks the placeholder {place}{hint}")
    return found


def doubled(text: str) -> str | None:
    """Return a place in braces of its own, which would stay in what the judge reads."""
    found = re.search(r"\{\{\w+\}\}", text)
    return found[0] if found and found[0][1:-1] in _MEANT else None


def _means(written: str, place: str) -> bool:
    return written[1:-1].strip().lower().startswith(_MEANT.get(place, ()))
