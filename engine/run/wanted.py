"""What a command wants of one trait's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..settings import RunSettings
from ..storage import Question, TraitFolder
from ..traits import Trait


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a command wants of one trait's folder."""

    trait: Trait
    folder: TraitFolder
    settings: RunSettings
    generates: bool
    judges: bool
    new_run: bool = False
    question: Question = "trait"
    """What the judge is asked; only of the first are files written."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """What the folder is to remember of the command, by name."""
