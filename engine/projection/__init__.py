"""Texts → how far each turn and token lies along trait vectors, as one table and a page."""

from __future__ import annotations

from .commands import Progress, ProjectionResult, project
from .directions import Direction, choose_directions
from .sources import open_texts
from .texts import Text

__all__ = [
    "Direction",
    "Progress",
    "ProjectionResult",
    "Text",
    "choose_directions",
    "open_texts",
    "project",
]
