"""Prompt → token ids: the tokenizer and its chat template, with one BOS at most."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from ..errors import AccessError, UsageError
from .hub import ModelRef


def load_tokenizer(ref: ModelRef) -> Any:
    """The model's tokenizer. Raises AccessError when its files are missing."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(ref.source, revision=ref.hub_revision)
    except (OSError, ValueError) as error:
        raise AccessError(
            f"the tokenizer of model {ref.name} cannot be loaded: {_first_line(error)}"
        ) from None


def lazy_tokenizer(ref: ModelRef) -> Callable[[str], tuple[int, ...]]:
    """A function from a prompt to token ids that loads the tokenizer when first asked and remembers
    its answers.

    Chat models get the prompt as one user turn through their chat template, base models get it raw.
    Either way the ids start with one BOS at most.
    """
    tokenizers: list[Any] = []

    @cache
    def tokenize(prompt: str) -> tuple[int, ...]:
        if not tokenizers:
            tokenizers.append(load_tokenizer(ref))
        return chat_token_ids(tokenizers[0], prompt)

    return tokenize


def chat_token_ids(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    """Token ids of `prompt` as one user turn (chat models) or raw (base models), with one BOS at
    most."""
    if tokenizer.chat_template:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
    else:
        ids = tokenizer(prompt)["input_ids"]
    ids = tuple(int(token) for token in ids)
    bos = tokenizer.bos_token_id
    while bos is not None and ids[:2] == (
        bos,
        bos,
    ):  # a template that writes BOS itself, tokenized with another
        ids = ids[1:]
    if not ids:
        raise UsageError(f"the prompt {prompt[:40]!r} has no tokens under this model's tokenizer")
    return ids


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
