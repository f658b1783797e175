"""A model's tokenizer, loaded without a folder's own code."""

from __future__ import annotations

from typing import Any

from ..errors import AccessError
from .hub import ModelRef
from .mistral import is_mistral
from .support import own_code_refused


def load_tokenizer(ref: ModelRef) -> Any:
    """Return the model's tokenizer. Raise AccessError where its files are missing."""
    from transformers import AutoTokenizer

    try:
        # Said outright: else transformers asks on the terminal whether to run a folder's own code.
        return AutoTokenizer.from_pretrained(
            ref.source, revision=ref.hub_revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise own_code_refused(ref) from None
        reason = str(error).strip().partition("\n")[0]
        raise AccessError(
            f"the tokenizer of model {ref.name} cannot be loaded: {reason or type(error).__name__}"
        ) from None


def is_chat(tokenizer: Any) -> bool:
    """Return whether a tokenizer writes turns, by a template or by code of its own."""
    return bool(tokenizer.chat_template) or is_mistral(tokenizer)
