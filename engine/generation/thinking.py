"""A response behind a thought: the thought and the response are asked for one after the other.

So each has its own limit, held exactly. What was written stays in the engine's prefix cache, so
that going on from it costs next to nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..models import Thought
from ..records import Sample

Text = Callable[[Sequence[int], Sequence[int]], str]
"""What some token ids say behind others, a last character that was cut off left out."""
Ask = Callable[[Sequence[int], int, int, Thought | None], Awaitable[Any]]
"""From token ids, a limit, a seed and the thought to stop at the end of, to vLLM's output."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote after a prompt."""

    response: str = ""
    response_token_ids: tuple[int, ...] = ()
    finish_reason: str = ""
    thought: str = ""
    thought_token_ids: tuple[int, ...] = ()
    thought_span: tuple[int, int] = (0, 0)
    finished: bool = True
    """Whether the thought, if any, came to its end."""


async def write(ask: Ask, text: Text, sample: Sample, limit: int) -> Written:
    """Write a response of at most `limit` tokens."""
    output = await ask(sample.prompt_token_ids, limit, sample.seed, None)
    ids, reason = _ids(output), output.finish_reason or ""
    said = ids[:-1] if reason == "stop" else ids  # its last token is the end
    return Written(text(sample.prompt_token_ids, said), ids, reason)


async def write_behind_thought(
    ask: Ask, text: Text, sample: Sample, thought: Thought, *, allowance: int, limit: int
) -> Written:
    """Write a thought of at most `allowance` tokens, then a response of at most `limit`.

    A model that begins its thoughts itself may do without one. White space between the two belongs
    to neither.
    """
    first = max(limit, thought.most_before)
    if thought.opened:
        first = allowance
    elif thought.closing_id is None:  # its tag must not be cut in two
        first = max(first, allowance)
    output = await ask(sample.prompt_token_ids, first, sample.seed, thought)
    ids, ended = _ids(output), _is_at_end(output, thought)
    if not thought.opened and not ended:
        if not thought.begins(ids):
            return _cut(text, ids, limit, output)
        if output.finish_reason == "length" and len(ids) < allowance:
            before, left = (*sample.prompt_token_ids, *ids), allowance - len(ids)
            output = await ask(before, left, _seed(sample, "thought"), thought)
            ids, ended = (*ids, *_ids(output)), _is_at_end(output, thought)
    span = thought.span(ids)
    said = text((), ids[slice(*span)]).strip()
    if not ended or len(ids) > allowance:
        return Written(
            finish_reason=output.finish_reason or "",
            thought=said,
            thought_token_ids=ids,
            thought_span=span,
            finished=False,
        )
    before = (*sample.prompt_token_ids, *ids)
    output = await ask(before, limit + thought.most_spaces, _seed(sample, "response"), None)
    written = _ids(output)
    spaces = thought.spaces(written)
    return replace(
        _cut(text, written[spaces:], limit, output),
        thought=said,
        thought_token_ids=(*ids, *written[:spaces]),
        thought_span=span,
    )


def _cut(text: Text, ids: tuple[int, ...], limit: int, output: Any) -> Written:
    """Return a response of `ids`, no longer than its limit."""
    response, reason = ids[:limit], output.finish_reason or ""
    if len(response) < len(ids):
        reason = "length"
    said = response[:-1] if reason == "stop" else response  # its last token is the end
    return Written(text((), said), response, reason)


def _ids(output: Any) -> tuple[int, ...]:
    return tuple(map(int, output.token_ids))


def _is_at_end(output: Any, thought: Thought) -> bool:
    """Return whether the output ends with the closing tag, rather than the model's turn."""
    return output.stop_reason in (thought.closing_id, thought.tags.closing) and (
        output.stop_reason is not None
    )


def _seed(sample: Sample, part: str) -> int:
    """Return a seed for a later part of a sample: with the first one its noise would come again."""
    digest = hashlib.sha256(f"{sample.seed} {part}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
