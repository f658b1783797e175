"""A model's tokenizer, loaded without a folder's own code, and what of a prompt is a special token.

Mistral's own files (tekken.json) are read with mistral_common: such a tokenizer writes turns by
code, has no chat template to show, and finds no special token in a text.

Special tokens spelled out in a prompt's own words stay words. `<|im_end|>` in a question would end
the user's turn: a tokenizer does not tell what a template wrote from what an author did. So such
words carry a mark through the template, and are tokenized as the text they are.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ..errors import AccessError, UsageError
from .hub import Adapter, ModelRef
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
        # Only a model's processor reads it, in older repositories of models that see.
        found = _filed_template(ref.source, ref.hub_revision, "chat_template.json")
        tokenizer.chat_template = found or (ref.adapter and _adapters_template(ref.adapter))
    return tokenizer


def _adapters_template(adapter: Adapter) -> str | None:
    """Return the chat template that an adapter was trained with, over a base that has none."""
    revision = None if adapter.source == adapter.folder else adapter.revision
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        if found := _filed_template(adapter.source, revision, name):
            return found
    return None


def _filed_template(source: str, revision: str | None, name: str) -> str | None:
    """Return the chat template in a file of a folder or a hub's repository; None where there is
    none.

    Of several by name it is the one called default. Raise AccessError for a damaged file.
    """
    from transformers.utils import cached_file

    path = cached_file(
        source,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if path is None:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8")
        if name.endswith(".jinja"):
            return text
        found = json.loads(text).get("chat_template")
        if isinstance(found, list):
            found = {each["name"]: each["template"] for each in found}
        if isinstance(found, dict):
            found = found.get("default")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise AccessError(f"{name} of {source} is damaged; copy it again") from None
    return found if isinstance(found, str) else None


def is_chat(tokenizer: Any) -> bool:
    """Return whether a tokenizer writes turns, by a template or by code of its own."""
    return bool(tokenizer.chat_template) or is_mistral(tokenizer)


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


_MARK = "\ufdd0"
"""A code point that Unicode keeps for such uses: no text holds it."""
_CONTROL = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)
_MARKUP = re.compile(r"<.+>|\[.+\]", re.DOTALL)


def is_special(tokenizer: Any, token: int) -> bool:
    """Return whether a token is one that a tokenizer finds in any text."""
    return token in _special(tokenizer).called


def spells_special(tokenizer: Any, *texts: str) -> bool:
    """Return whether one of the texts spells a special token of the tokenizer."""
    pattern = _special(tokenizer).pattern
    return pattern is not None and any(map(pattern.search, texts))


def marked(tokenizer: Any, text: str) -> str:
    """Return a text whose special tokens carry a mark, for a template to write."""
    pattern = _special(tokenizer).pattern
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
    tokenizer: Any,
    text: str,
    words: Sequence[tuple[int, int]],
    said: Sequence[tuple[int, int]] = (),
    **how: Any,
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the token ids of a text and where in it each stands; at the places `words`, `[start,
    stop)`, special tokens are words.

    At the places `said`, of a model's own words, what its template writes stays a token where the
    tokenizer does not call it special: a model says `<think>`. `how` goes to the tokenizer, a fast
    one. Raise UsageError where those words have no other tokens.
    """
    encoded = tokenizer(text, return_offsets_mapping=True, **how)
    called = _special(tokenizer).called
    ids: list[int] = []
    places: list[tuple[int, int]] = []
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        found = [token]
        meant = [*words, *(said if called.get(token) else ())]
        if token in called and any(start < last and first < end for first, last in meant):
            found = _as_words(tokenizer, text[start:end])
        ids += found
        places += [(start, end)] * len(found)
    return ids, places


def _mark(match: re.Match[str]) -> str:
    token = match.group()
    return token[0] + _MARK + token[1:]


def _without_marks(tokenizer: Any, text: str) -> tuple[str, list[tuple[int, int]]]:
    """Return the text as it is read, and where the marked tokens stand in it."""
    plain, words, done = "", [], 0
    for match in _special(tokenizer).marked.finditer(text):
        plain += text[done : match.start()]
        token = match.group().replace(_MARK, "", 1)
        words.append((len(plain), len(plain) + len(token)))
        plain, done = plain + token, match.end()
    return plain + text[done:], words


def _as_words(tokenizer: Any, text: str) -> list[int]:
    special = _special(tokenizer)
    ids: list[int] = special.splitting.encode(text, add_special_tokens=False).ids
    if not special.called.keys().isdisjoint(ids):
        raise _not_as_words(text)
    return ids


def _not_as_words(text: str) -> UsageError:
    return UsageError(
        f"a prompt spells {text.strip()!r}, a special token that this model's tokenizer cannot "
        "write as words: take it out of the trait's texts"
    )


class _Special:
    """The special tokens of a tokenizer: those that it finds in any text.

    DeepSeek's `<｜User｜>` and Qwen's `<think>` are not called so by their tokenizers, and do the
    same.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        found = {} if is_mistral(tokenizer) else getattr(tokenizer, "added_tokens_decoder", {})
        self._tokenizer = tokenizer
        self.called = {
            id_: bool(token.special)
            for id_, token in found.items()
            if token.content and (token.special or _is_written(token.content, template))
        }
        """By id, whether the tokenizer itself calls the token special."""
        names = sorted((found[id_].content for id_ in self.called), key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, names))) if names else None
        """Finds them, the longest first, as a tokenizer does."""
        marked = (re.escape(name[0] + _MARK + name[1:]) for name in names)
        self.marked = re.compile("|".join(marked))

    @cached_property
    def splitting(self) -> Any:
        """A copy of the tokenizer that takes them for text. Of the shared one this is a switch,
        which other threads would meet."""
        inner = self._tokenizer.backend_tokenizer
        described = json.loads(inner.to_str())
        for token in described["added_tokens"]:
            token["special"] = token["id"] in self.called
        copy = type(inner).from_str(json.dumps(described))
        copy.encode_special_tokens = True
        return copy


def _special(tokenizer: Any) -> _Special:
    template = "" if is_mistral(tokenizer) else str(tokenizer.chat_template or "")
    return _known(tokenizer, template)


@lru_cache(maxsize=4)
def _known(tokenizer: Any, template: str) -> _Special:
    return _Special(tokenizer, template)


def _is_written(token: str, template: str) -> bool:
    """Return whether a template writes a token, to structure a conversation."""
    return bool(_CONTROL.fullmatch(token) or (_MARKUP.fullmatch(token) and token in template))


def raw_ids(tokenizer: Any, text: str, prefill: str = "") -> Any:
    """Return the token ids of words without a template; a special token in the text is words."""
    if not spells_special(tokenizer, text):
        return typed_ids(tokenizer, text + prefill)
    text = marked(tokenizer, text) + prefill
    bare = marked_ids(tokenizer, text, add_special_tokens=False)
    return _unended(marked_ids(tokenizer, text), bare)


def typed_ids(tokenizer: Any, text: str) -> Any:
    """Return the token ids of a text as it stands, special tokens and all, that is gone on from."""
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    return _unended(tokenizer(text)["input_ids"], bare)


def _unended(ids: Any, bare: Any) -> Any:
    """Return token ids without what a tokenizer puts behind a text, an EOS as a rule; `bare` are
    those of the text alone."""
    for end in range(len(ids), len(bare) - 1, -1):
        if list(ids[end - len(bare) : end]) == list(bare):
            return ids[:end]
    return ids


def one_bos(tokenizer: Any, found: Any) -> tuple[int, ...]:
    """Return a prompt's token ids with one BOS at most. Raise UsageError where there are none."""
    ids = tuple(map(int, found))
    bos = tokenizer.bos_token_id
    # A template that writes BOS itself, tokenized by a tokenizer that adds one.
    while bos is not None and ids[:2] == (bos, bos):
        ids = ids[1:]
    if not ids:
        raise UsageError("a prompt has no tokens under this model's tokenizer")
    return ids
