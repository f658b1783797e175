"""Special tokens spelled out in a prompt's own words: they stay words.

`<|im_end|>` in a question would end the user's turn: a tokenizer does not tell what a template
wrote from what an author did. So such words carry a mark through the template, and are tokenized
as the text they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any

from ..errors import UsageError
from .mistral import is_mistral

_MARK = "\ufdd0"
"""A code point that Unicode keeps for such uses: no text holds it."""


def spells_special(tokenizer: Any, *texts: str) -> bool:
    """Return whether one of the texts spells a special token of the tokenizer."""
    pattern = _pattern(tokenizer)
    return pattern is not None and any(map(pattern.search, texts))


def marked(tokenizer: Any, text: str) -> str:
    """Return a text whose special tokens carry a mark, for a template to write."""
    pattern = _pattern(tokenizer)
    return pattern.sub(_mark, text) if pattern else text


def marked_ids(tokenizer: Any, text: str, **how: Any) -> list[int]:
    """Return the token ids of a text: special tokens where it has no mark, words where it has.

    `how` goes to the tokenizer. Raise UsageError where those words have no other tokens.
    """
    plain, words = _without_marks(tokenizer, text)
    if not tokenizer.is_fast:  # it does not tell where in the text a token stands
        first, last = words[0]
        raise _not_as_words(plain[first:last])
    return placed_ids(tokenizer, plain, words, **how)[0]


def placed_ids(
    tokenizer: Any, text: str, words: Sequence[tuple[int, int]], **how: Any
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the token ids of a text and where in it each stands; at the places `words`, `[start,
    stop)`, special tokens are words.

    `how` goes to the tokenizer, a fast one. Raise UsageError where those words have no other
    tokens.
    """
    encoded = tokenizer(text, return_offsets_mapping=True, **how)
    special = _special(tokenizer)
    ids: list[int] = []
    places: list[tuple[int, int]] = []
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        found = [token]
        if token in special and any(start < last and first < end for first, last in words):
            found = _as_words(tokenizer, text[start:end])
        ids += found
        places += [(start, end)] * len(found)
    return ids, places


def _mark(match: re.Match[str]) -> str:
    token = match.group()
    return token[0] + _MARK + token[1:]


def _without_marks(tokenizer: Any, text: str) -> tuple[str, list[tuple[int, int]]]:
    """Return the text as it is read, and where the marked tokens stand in it."""
    names = [re.escape(name[0] + _MARK + name[1:]) for name in _names(tokenizer)]
    plain, words, done = "", [], 0
    for match in re.finditer("|".join(names), text):
        plain += text[done : match.start()]
        token = match.group().replace(_MARK, "", 1)
        words.append((len(plain), len(plain) + len(token)))
        plain, done = plain + token, match.end()
    return plain + text[done:], words


def _as_words(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = _splitting(tokenizer).encode(text, add_special_tokens=False).ids
    if not _special(tokenizer).keys().isdisjoint(ids):
        raise _not_as_words(text)
    return ids


def _not_as_words(text: str) -> UsageError:
    return UsageError(
        f"a prompt spells {text.strip()!r}, a special token that this model's tokenizer cannot "
        "write as words: take it out of the trait's texts"
    )


@lru_cache(maxsize=4)
def _special(tokenizer: Any) -> dict[int, str]:
    """Return the special tokens by id: those that a tokenizer finds in any text."""
    if is_mistral(tokenizer):
        return {}
    found = getattr(tokenizer, "added_tokens_decoder", {}).items()
    return {id_: token.content for id_, token in found if token.special and token.content}


def _names(tokenizer: Any) -> list[str]:
    """Return the special tokens, the longest first, as a tokenizer looks for them."""
    return sorted(_special(tokenizer).values(), key=len, reverse=True)


@lru_cache(maxsize=4)
def _pattern(tokenizer: Any) -> re.Pattern[str] | None:
    names = [re.escape(name) for name in _names(tokenizer)]
    return re.compile("|".join(names)) if names else None


@lru_cache(maxsize=4)
def _splitting(tokenizer: Any) -> Any:
    """Return a copy that takes special tokens for text. Of the shared one this is a switch, which
    other threads would meet."""
    copy = deepcopy(tokenizer.backend_tokenizer)
    copy.encode_special_tokens = True
    return copy
