"""Models of two RoPE factors (Phi-3, Phi-4-mini): up to which length both engines take the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from .hub import ModelRef

_KINDS = ("longrope", "su")
"""The second is its name in early configs of Phi-3."""


def common_length(ref: ModelRef) -> int:
    """Return the tokens up to which vLLM and transformers take the same factors, 0 for no bound.

    vLLM takes the long ones for all rows, once its own length passes the original one; transformers
    for the rows that do.
    """
    nested = ref.config.get("text_config")
    text = nested if isinstance(nested, Mapping) else ref.config
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    for each in (rope, *(value for value in rope.values() if isinstance(value, Mapping))):
        if (each.get("rope_type") or each.get("type")) in _KINDS:
            return _original(each) or _original(text)
    return 0


def _original(found: Mapping[str, Any]) -> int:
    return int(found.get("original_max_position_embeddings") or 0)


def check_longest(ref: ModelRef, longest: int) -> None:
    """Raise UsageError where a sequence of some tokens would be generated with other factors than
    it is read with."""
    common = common_length(ref)
    if common and longest > common:
        raise UsageError(
            f"a sequence of this run may have {longest} tokens, but beyond {common} the engines "
            f"that generate and read take different RoPE factors (longrope) for {ref.name}: lower "
            f"`max_new_tokens`, or `max_thinking_tokens`, by {longest - common}, or give "
            "`extract_activations` False"
        )
