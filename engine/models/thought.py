"""A thought before the response: its tags, found in a model's chat template and tokens, and its
tokens.

gpt-oss writes its turns in channels: its thought is one, its answer another. Its template ends
where the model opens a channel. It is opened for it, so that nothing but an answer stands where an
answer is judged and pooled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .tokenizer import is_mistral

_CHANNEL = "<|channel|>"
ANALYSIS = f"{_CHANNEL}analysis<|message|>"
FINAL = f"{_CHANNEL}final<|message|>"
ANSWERED = f"<|end|><|start|>assistant{FINAL}"
"""What ends the thought, other channels between the two among it."""
_PAIRS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<reasoning>", "</reasoning>"),
    ("<|channel>thought", "<channel|>"),
    ("<mm:think>", "</mm:think>"),
    ("<ifm|think>", "</ifm|think>"),
    (ANALYSIS, ANSWERED),
)
"""Tags of thoughts: of DeepSeek, GLM, Qwen and SmolLM first, then of Seed, Magistral, Command,
others of no one family, Gemma-4, MiniMax-M3, K2 and gpt-oss."""
_MOST_SPACES = 4
"""Tokens of white space between a thought and the response; more are the response's own."""


@dataclass(frozen=True, slots=True)
class Tags:
    """What begins and ends a thought."""

    opening: str
    closing: str

    @property
    def empty(self) -> str:
        """A thought without a word."""
        return f"{self.opening}\n\n{self.closing}\n\n"

    def left_open(self, text: str) -> bool:
        """Return whether a text ends inside a thought."""
        _, opened, inside = text.rpartition(self.opening)
        return bool(opened) and self.closing not in inside


def open_tags(text: str) -> Tags | None:
    """Return the tags of the thought that a text ends inside of, None where it does not."""
    found = (Tags(*pair) for pair in _PAIRS)
    return next((tags for tags in found if tags.left_open(text)), None)


def written_tags(text: str) -> Tags | None:
    """Return the tags that end a thought in a text, such as a template, None where none do."""
    found = (Tags(*pair) for pair in _PAIRS)
    return next((tags for tags in found if tags.closing in text), None)


def token_tags(tokenizer: Any) -> Tags | None:
    """Return the tags that are tokens of their own, None where none are."""
    added = tokenizer.get_vocab() if is_mistral(tokenizer) else tokenizer.get_added_vocab()
    found = (Tags(*pair) for pair in _PAIRS)
    return next((tags for tags in found if tags.closing in added), None)


def _tag_ids(tokenizer: Any, tag: str) -> list[int]:
    """Return the token ids of a tag as a model writes it."""
    if is_mistral(tokenizer) and tag in (known := tokenizer.get_vocab()):
        return [known[tag]]  # in a text it would be words
    ids: list[int] = tokenizer(tag, add_special_tokens=False)["input_ids"]
    return ids


class Thought:
    """How the thoughts of a run begin and end, and which tokens are theirs."""

    def __init__(self, tokenizer: Any, tags: Tags, *, opened: bool) -> None:
        """`opened` says whether the prompt ends inside the thought; else the model begins it."""
        self._tokenizer = tokenizer
        self.tags, self.opened = tags, opened
        ids = _tag_ids(tokenizer, tags.closing)
        self.closing_id: int | None = None
        """The token that ends a thought, None where it takes several."""
        if len(ids) == 1:
            self.closing_id = int(ids[0])
        self.most_before = len(_tag_ids(tokenizer, tags.opening)) + _MOST_SPACES
        """Tokens that tell whether a model begins a thought."""

    def begins(self, token_ids: Sequence[int]) -> bool:
        """Return whether the first thing that tokens say is that a thought begins."""
        return self._shown(token_ids).lstrip().startswith(self.tags.opening)

    def span(self, token_ids: Sequence[int]) -> tuple[int, int]:
        """Return first and end of what is thought: no tags, no white space after the first."""
        first, end = 0, len(token_ids)
        if self.begins(token_ids):
            first = 1
            while not self.begins(token_ids[:first]):
                first += 1
            first += self.spaces(token_ids[first:])
        if self.tags.closing in self._shown(token_ids):
            while self.tags.closing not in self._shown(token_ids[end:]):
                end -= 1
        return min(first, end), end

    def spaces(self, token_ids: Sequence[int]) -> int:
        """Return how many tokens, of the first few, are white space."""
        for count, token in enumerate(token_ids[:_MOST_SPACES]):
            if self._shown([token]).strip():
                return count
        return min(len(token_ids), _MOST_SPACES)

    @property
    def most_spaces(self) -> int:
        """Most tokens of white space after a thought that are not the response's."""
        return _MOST_SPACES

    def _shown(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))


def has_channels(tokenizer: Any) -> bool:
    """Return whether a tokenizer's chat template writes turns in channels."""
    if is_mistral(tokenizer) or _CHANNEL not in str(tokenizer.chat_template):
        return False
    return _CHANNEL in tokenizer.get_added_vocab()


def names_channel(text: str) -> bool:
    """Return whether a text opens a channel itself."""
    return _CHANNEL in text


def holds_thought(text: str) -> bool:
    """Return whether a response begins with a thought, or with the rest of one."""
    said = text.lstrip()
    return any(said.startswith(opening) or closing in said for opening, closing in _PAIRS)
