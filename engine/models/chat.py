"""Prompt → token ids: the tokenizer and its chat template, with one BOS at most."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from ..errors import AccessError, UsageError
from .hub import ModelRef


def load_tokenizer(ref: ModelRef) -> Any:
    """Return the model's tokenizer. Raise AccessError where its files are missing."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(ref.source, revision=ref.hub_revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise AccessError(
            f"the tokenizer of model {ref.name} cannot be loaded: {reason or type(error).__name__}"
        ) from None


def lazy_tokenizer(ref: ModelRef) -> Callable[[str], tuple[int, ...]]:
    """Return a function from prompt to token ids that remembers its answers.

    It loads the tokenizer when it is first called.
    """
    load = cache(partial(load_tokenizer, ref))
    return cache(lambda prompt: chat_token_ids(load(), prompt))


def chat_token_ids(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    """Return the token ids of `prompt`, with one BOS at most.

    Chat models get it as one user turn through their chat template, base models raw.
    """
    if tokenizer.chat_template:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
    else:
        ids = tokenizer(prompt)["input_ids"]
    ids = tuple(map(int, ids))
    bos = tokenizer.bos_token_id
    # A template that writes BOS itself, tokenized by a tokenizer that adds one.
    while bos is not None and ids[:2] == (bos, bos):
        ids = ids[1:]
    if not ids:
        raise UsageError(f"the prompt {prompt[:40]!r} has no tokens under this model's tokenizer")
    return ids
