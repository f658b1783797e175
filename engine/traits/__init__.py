"""What is asked: trait definitions, and the samples planned from them."""

from __future__ import annotations

from .definition import (
    DEFINITION_FILE,
    Trait,
    build_prompt,
    fill,
    load_traits,
    parse_definition,
)
from .plan import (
    Plan,
    Tokenize,
    counts_per_instruction,
    load_plan,
    make_plan,
    plan_key,
    sample_id,
)

__all__ = [
    "DEFINITION_FILE",
    "Plan",
    "Tokenize",
    "Trait",
    "build_prompt",
    "counts_per_instruction",
    "fill",
    "load_plan",
    "load_traits",
    "make_plan",
    "parse_definition",
    "plan_key",
    "sample_id",
]
