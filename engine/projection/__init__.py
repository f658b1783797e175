"""Texts → how far each turn and token lies along trait vectors, as one table and a page."""

from __future__ import annotations

from .commands import Progress, ProjectionResult, project
from .stored import open_texts

__all__ = [
    "Progress",
    "ProjectionResult",
    "open_texts",
    "project",
]
