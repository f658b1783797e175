"""A conversation as token ids, and which of them are whose words."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..errors import AccessError, UsageError
from .template import silenced, template_text, thought_switches, thoughtless, turn_opening
from .thought import Tags, has_channels, open_tags, written_tags
from .tokenizer import placed_ids

_MARK = "turn{}qzx7"
"""Stands for a turn's words while the template's own are looked for."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side of a conversation says."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Token ids, and the span `[start, stop)` of each turn's words among them."""

    token_ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    """One a turn; of the words alone, without what the template puts around them."""
    unasked: bool = False
    """Whether it is a text of the assistant alone, behind an empty turn of the user."""

    @property
    def bare(self) -> bool:
        """Whether words of several tokens begin at the very first, no BOS or template before."""
        return any(start == 0 and stop > 1 for start, stop in self.spans)


class Conversations:
    """Turns conversations into token ids as a model reads them, in one way for all.

    A last turn of the assistant follows the prompt for it, as in generation: the template writes
    all that comes before, thought turned off where it can be, and the words are tokenised by
    themselves. Where they hold their own thought, it is left on, and the turn's words are those
    behind it. A text of the assistant alone follows an empty turn of the user, so that it is read
    as one that has a prompt. Without a chat template turns stand with a blank line between them,
    and the last of the assistant follows at once. So does a lone text that the template refuses.
    Special tokens that words spell are words.
    """

    def __init__(self, tokenizer: Any, moment: str) -> None:
        """`moment`, in ISO 8601, is the time for a template that asks.

        Raise UsageError for a tokenizer that does not say where its tokens stand.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise UsageError(
                f"the tokenizer of {tokenizer.name_or_path} does not say where in a text its "
                "tokens stand, so turns cannot be told apart; take a model with tokenizer.json"
            )
        self._tokenizer, self._moment = tokenizer, moment

    def __call__(self, turns: Sequence[Turn]) -> Conversation:
        """Return a conversation's token ids and spans.

        Raise AccessError where the template refuses such turns, UsageError where it shows a turn in
        other words than were said.
        """
        raw = not self._tokenizer.chat_template
        if len(turns) > 1 or raw:
            return self._read(turns, raw=raw)
        with suppress(AccessError, UsageError):
            if turns[0].role != "assistant":
                return self._read(turns, raw=False)
            found = self._read([Turn("user", ""), *turns], raw=False)
            return replace(found, spans=found.spans[1:], unasked=True)
        return self._read(turns, raw=True)

    def _read(self, turns: Sequence[Turn], *, raw: bool) -> Conversation:
        before, reply, tags = list(turns), None, None
        if turns[-1].role == "assistant" and len(turns) > 1:
            before, reply = before[:-1], turns[-1].content
            tags = self._thought_in(reply)
        answers, thinks = reply is not None, tags is not None
        text, places = self._text(before, reply=answers, raw=raw, thinks=thinks)
        says = [turn.role == "assistant" for turn in before]
        ids, spans = self._tokenised(text, places, says, special=raw)
        if reply is not None:
            reply, begin = (reply, 0) if tags is None else _behind(text, reply, tags)
            everywhere, how = [(0, len(reply))], {"add_special_tokens": False}
            words, offsets = placed_ids(self._tokenizer, reply, (), everywhere, **how)
            first = sum(stop <= begin for _, stop in offsets)
            spans.append((len(ids) + first, len(ids) + len(words)))
            ids += words
        return Conversation(tuple(map(int, ids)), tuple(spans))

    def _thought_in(self, reply: str) -> Tags | None:
        """Return the tags of the thought that a reply holds, None where it holds none."""
        tokenizer = self._tokenizer
        if not tokenizer.chat_template or has_channels(tokenizer):
            return None
        tags = written_tags(str(tokenizer.chat_template))
        tags = tags or open_tags(turn_opening(tokenizer, self._moment))
        if tags is None or tags.closing in reply:
            return tags
        return tags if reply.lstrip().startswith(tags.opening) else None

    def _text(
        self, turns: Sequence[Turn], *, reply: bool, raw: bool, thinks: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the text, and where each turn's words stand in it."""
        if raw:
            text, places = "", []
            for turn in turns:
                if text:
                    text += "\n\n"
                places.append((len(text), len(text) + len(turn.content)))
                text += turn.content
            return text, places
        marks = [Turn(turn.role, _MARK.format(number)) for number, turn in enumerate(turns)]
        pattern = self._rendered(marks, reply=reply, thinks=thinks)
        for number, mark in enumerate(marks):
            if pattern.count(mark.content) != 1:
                raise UsageError(
                    f"the chat template does not show turn {number + 1} ({mark.role}) once; its "
                    "place cannot be told"
                )
        text = self._rendered(turns, reply=reply, thinks=thinks)
        return text, _places(text, pattern, marks, turns)

    def _rendered(self, turns: Sequence[Turn], *, reply: bool, thinks: bool) -> str:
        """Return the template's text; a system turn begins the next where there is none for it."""
        if turns[0].role == "system" and len(turns) > 1 and not self._takes_system:
            second = turns[1]
            merged = Turn(second.role, f"{turns[0].content}\n\n{second.content}")
            turns = [merged, *turns[2:]]
        return self._templated(turns, reply=reply, thinks=thinks)

    def _templated(self, turns: Sequence[Turn], *, reply: bool, thinks: bool = False) -> str:
        said = [{"role": turn.role, "content": turn.content} for turn in turns]
        how, closed = thoughtless(self._tokenizer), ""
        if thinks:
            how = dict.fromkeys(thought_switches(self._tokenizer, self._moment), True)
        elif reply:  # else it would stand inside a thought that the template opens
            template = str(self._tokenizer.chat_template)
            more, closed = silenced(self._tokenizer, template, self._moment)
            how |= more
        return template_text(self._tokenizer, said, self._moment, reply=reply, **how) + closed

    @cached_property
    def _takes_system(self) -> bool:
        probe = _MARK.format("system")
        try:
            return probe in self._templated([Turn("system", probe), Turn("user", "?")], reply=True)
        except AccessError:
            return False

    def _tokenised(
        self,
        text: str,
        places: Sequence[tuple[int, int]],
        says: Sequence[bool],
        *,
        special: bool,
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return token ids, one BOS at most, and the span of tokens that cover each place.

        `says` tells at which places the model itself speaks, `special` whether BOS is to be added.
        """
        said = [place for place, by_model in zip(places, says, strict=True) if by_model]
        words = [place for place in places if place not in said]
        ids, offsets = placed_ids(self._tokenizer, text, words, said, add_special_tokens=special)
        if special and len(ids) > 1 and offsets[-1] == (0, 0):  # an EOS, and words follow
            ids, offsets = ids[:-1], offsets[:-1]
        bos = self._tokenizer.bos_token_id
        while bos is not None and ids[:2] == [bos, bos]:
            ids, offsets = ids[1:], offsets[1:]
        spans = []
        for start, stop in places:
            covering = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start and a < b]
            spans.append((covering[0], covering[-1] + 1) if covering else (0, 0))
        return ids, spans


def _behind(text: str, reply: str, tags: Tags) -> tuple[str, int]:
    """Return a reply that holds a thought as it follows a text, and where its words begin in that.

    A text that opens the thought itself is followed by what comes behind the opening tag.
    """
    if tags.left_open(text) and reply.lstrip().startswith(tags.opening):
        reply = reply.lstrip()[len(tags.opening) :]
        if text[-1].isspace():
            reply = reply.lstrip()
    thought, closed, words = reply.partition(tags.closing)
    return reply, len(thought) + len(closed) + len(words) - len(words.lstrip())


def _places(
    text: str, pattern: str, marks: Sequence[Turn], turns: Sequence[Turn]
) -> list[tuple[int, int]]:
    """Return where each turn's words stand in a rendered text.

    `pattern` is the same with marks in place of words: some templates show turns in another order.
    They trim white space, and some drop the thought of an earlier turn. Raise UsageError where the
    text is not the pattern with the turns' words in it.
    """
    order = sorted(range(len(turns)), key=lambda number: pattern.index(marks[number].content))
    places: dict[int, tuple[int, int]] = {}
    before, _, rest = pattern.partition(marks[order[0]].content)
    if not text.startswith(before):
        raise UsageError("the chat template begins such turns in another way than it should")
    at = len(before)
    for number, following in zip(order, [*order[1:], None], strict=True):
        between = rest
        if following is not None:
            between, _, rest = rest.partition(marks[following].content)
        ends = [
            at + len(words)
            for words in _variants(turns[number].content)
            if text.startswith(words + between, at)
        ]
        if following is None:
            ends = [end for end in ends if end + len(between) == len(text)]
        if not ends:
            raise UsageError(
                f"the chat template shows turn {number + 1} ({turns[number].role}) in other words "
                "than were said; its place cannot be told"
            )
        places[number] = (at, ends[0])
        at = ends[0] + len(between)
    return [places[number] for number in range(len(turns))]


def _variants(content: str) -> list[str]:
    """Return the words of a turn as templates show them, as they are first."""
    answer = content.rpartition("</think>")[2]
    return [
        *(content, content.strip(), content.rstrip(), content.lstrip()),
        *(answer, answer.strip(), answer.rstrip(), answer.lstrip(), answer.lstrip("\n")),
    ]


def span_of(tokenizer: Any, token_ids: Sequence[int], words: str) -> tuple[int, int]:
    """Return the span `[start, stop)` of the tokens that cover the last place of words in what
    token ids say; (0, 0) where it cannot be told."""
    ids, sought = list(token_ids), words.strip()
    if not (sought and getattr(tokenizer, "is_fast", False)):
        return 0, 0
    text = tokenizer.decode(ids)
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    at = text.rfind(sought)
    if at < 0 or encoded["input_ids"] != ids:
        return 0, 0
    stop = at + len(sought)
    covering = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < stop and b > at]
    return (covering[0], covering[-1] + 1) if covering else (0, 0)
