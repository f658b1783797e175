"""What a trait's vectors do: added while the model answers, judged, against baselines."""

from __future__ import annotations

from .commands import SteeredTrait, SteeringResult, steer
from .conditions import GRID, POSITIONS
from .findings import read_study
from .glimpse import glimpse

__all__ = [
    "GRID",
    "POSITIONS",
    "SteeredTrait",
    "SteeringResult",
    "glimpse",
    "read_study",
    "steer",
]
