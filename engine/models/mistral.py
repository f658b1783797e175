"""Mistral's own tokenizer files (tekken.json): transformers reads them with mistral_common.

Such a tokenizer writes turns by code, has no chat template to show, and finds no special token in a
text.
"""

from __future__ import annotations

import sys
from typing import Any


def is_mistral(tokenizer: Any) -> bool:
    """Return whether a tokenizer is mistral_common's."""
    # One that was loaded has loaded its module, which is slow to import for any other.
    module = sys.modules.get("transformers.tokenization_mistral_common")
    return module is not None and isinstance(tokenizer, module.MistralCommonBackend)


def refusals(tokenizer: Any) -> tuple[type[Exception], ...]:
    """Return what such a tokenizer raises for turns that it does not take; nothing for another."""
    if not is_mistral(tokenizer):
        return ()
    return (sys.modules["mistral_common.exceptions"].MistralCommonException,)
