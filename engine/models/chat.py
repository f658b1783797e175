"""Prompt → token ids: the tokenizer and its chat template, with one BOS at most.

A template that asks for the time gets a run's own moment, in every later run of its folder too: its
prompts, and so its samples' ids, do not change with the day.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
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


def lazy_tokenizer(ref: ModelRef) -> Callable[[str], Callable[[str], tuple[int, ...]]]:
    """Return what gives a moment's function from prompt to token ids.

    That function remembers its answers. The tokenizer is loaded when one is first called.
    """
    load = cache(partial(load_tokenizer, ref))
    return cache(lambda moment: cache(lambda prompt: chat_token_ids(load(), prompt, moment)))


def chat_token_ids(tokenizer: Any, prompt: str, moment: str) -> tuple[int, ...]:
    """Return the token ids of `prompt`, with one BOS at most.

    Chat models get it as one user turn through their chat template, base models raw. `moment`, in
    ISO 8601, is the time for a template that asks. Raise AccessError where the template fails.
    """
    if tokenizer.chat_template:
        ids = _templated(tokenizer, prompt, moment)
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


def _templated(tokenizer: Any, prompt: str, moment: str) -> Any:
    from jinja2 import TemplateError

    clock = datetime.fromisoformat(moment).astimezone(UTC)
    try:
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            strftime_now=clock.strftime,  # stands before transformers' own of this name
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        # What a template's own code raises, for one that is broken or that refuses one user turn.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise AccessError(
            f"the chat template of {tokenizer.name_or_path} fails: {reason}; mend the template "
            "(chat_template.jinja or tokenizer_config.json), or take another model"
        ) from None
