"""The channels of gpt-oss's turns: its thought is one, its answer another.

The template ends where the model opens a channel. It is opened for it, so that nothing but an
answer stands where an answer is judged and pooled.
"""

from __future__ import annotations

from typing import Any

from .mistral import is_mistral

_CHANNEL = "<|channel|>"
ANALYSIS = f"{_CHANNEL}analysis<|message|>"
FINAL = f"{_CHANNEL}final<|message|>"
ANSWERED = f"<|end|><|start|>assistant{FINAL}"
"""What ends the thought, other channels between the two among it."""


def has_channels(tokenizer: Any) -> bool:
    """Return whether a tokenizer's chat template writes turns in channels."""
    if is_mistral(tokenizer) or _CHANNEL not in str(tokenizer.chat_template):
        return False
    return _CHANNEL in tokenizer.get_added_vocab()


def names_channel(text: str) -> bool:
    """Return whether a text opens a channel itself."""
    return _CHANNEL in text
