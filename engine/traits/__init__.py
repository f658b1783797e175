"""What is asked: trait definitions, and the samples planned from them."""

from __future__ import annotations

from .coherence import coherence_of
from .definition import (
    DEFINITION_FILE,
    DRAFT,
    SCHEMA_KEY,
    Trait,
    fill,
    json_schema,
    load_traits,
    parse_definition,
)
from .foreign import KINDS as IMPORT_KINDS
from .foreign import Foreign, definition_bytes, read_foreign
from .lint import check_bytes, check_definition, definition_errors
from .lint_texts import FEW_QUESTIONS, Finding
from .plan import Plan, Tokenize, counts_per_instruction, load_plan, make_plan, plan_key
from .scaffold import build, scaffold
from .scale import FULL, Scale, other_scale

__all__ = [
    "DEFINITION_FILE",
    "DRAFT",
    "FEW_QUESTIONS",
    "FULL",
    "IMPORT_KINDS",
    "SCHEMA_KEY",
    "Finding",
    "Foreign",
    "Plan",
    "Scale",
    "Tokenize",
    "Trait",
    "build",
    "check_bytes",
    "check_definition",
    "coherence_of",
    "counts_per_instruction",
    "definition_bytes",
    "definition_errors",
    "fill",
    "json_schema",
    "load_plan",
    "load_traits",
    "make_plan",
    "other_scale",
    "parse_definition",
    "plan_key",
    "read_foreign",
    "scaffold",
]
