"""The texts that are projected, whatever they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from ..models import Turn


@dataclass(frozen=True, slots=True)
class StoredIds:
    """The token ids of a response as they were generated."""

    model: str
    """Name and revision of the model whose ids they are."""
    prompt: tuple[int, ...]
    thought: tuple[int, ...]
    """Between the two, tags included; no turn's own."""
    response: tuple[int, ...]
    """Those that count in a pool."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text: a conversation, or a response alone."""

    row: int
    """Line of the file, or number among the files or responses, from 1."""
    turns: tuple[Turn, ...]
    columns: Mapping[str, str | None]
    """What the input has beside it."""
    stored: StoredIds | None = None


class Texts(Protocol):
    """A source of texts."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What the input has beside the texts."""

    @property
    def digest(self) -> str:
        """A hash of the input."""

    @property
    def unread(self) -> tuple[str, ...]:
        """What turns hold, by its keys, beside what models are shown of them."""

    def __iter__(self) -> Iterator[Text]: ...
