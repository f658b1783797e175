"""A model's tokenizer, loaded without a folder's own code."""

from __future__ import annotations

import json
from pathlib import Path
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
        tokenizer = AutoTokenizer.from_pretrained(
            ref.source, revision=ref.hub_revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise own_code_refused(ref) from None
        reason = str(error).strip().partition("\n")[0]
        raise AccessError(
            f"the tokenizer of model {ref.name} cannot be loaded: {reason or type(error).__name__}"
        ) from None
    if not is_chat(tokenizer):
        tokenizer.chat_template = _processors_template(ref)
    return tokenizer


def _processors_template(ref: ModelRef) -> str | None:
    """Return the chat template that only a model's processor reads, as older repositories of models
    that see have it; None where there is none.

    Of several by name it is the one called default. Raise AccessError for a damaged file.
    """
    from transformers.utils import cached_file

    name = "chat_template.json"
    path = cached_file(
        ref.source,
        name,
        revision=ref.hub_revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if path is None:
        return None
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))["chat_template"]
        if isinstance(found, list):
            found = {each["name"]: each["template"] for each in found}
        if isinstance(found, dict):
            found = found.get("default")
    except (OSError, ValueError, LookupError, TypeError):
        raise AccessError(f"{name} of model {ref.name} is damaged; copy it again") from None
    return found if isinstance(found, str) else None


def is_chat(tokenizer: Any) -> bool:
    """Return whether a tokenizer writes turns, by a template or by code of its own."""
    return bool(tokenizer.chat_template) or is_mistral(tokenizer)
