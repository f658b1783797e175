"""What is asked: trait definitions, and the samples planned from them."""

from __future__ import annotations

from .definition import DEFINITION_FILE, Trait, fill, load_traits
from .plan import Plan, Tokenize, counts_per_instruction, load_plan, make_plan, plan_key
from .scale import FULL, Scale, other_scale

__all__ = [
    "DEFINITION_FILE",
    "FULL",
    "Plan",
    "Scale",
    "Tokenize",
    "Trait",
    "counts_per_instruction",
    "fill",
    "load_plan",
    "load_traits",
    "make_plan",
    "other_scale",
    "plan_key",
]
