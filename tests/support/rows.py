"""Responses of chosen token ids, for tests of capture."""

from __future__ import annotations

from collections.abc import Sequence

from traitmill.engine.records import Response, Sample


def response_row(
    name: str,
    prompt: Sequence[int],
    response: Sequence[int],
    n_pooled: int,
    logprobs: Sequence[float] | None = None,
    *,
    thought: Sequence[int] = (),
) -> Response:
    """A response named `name`, of which `n_pooled` tokens count: all, or all but a closing end
    token. Of the tokens of a thought all but the first and the last count."""
    sample = Sample("trait", name, "pos", 0, 0, 0, "i", "q", "p", tuple(prompt), 1)
    reason = "length" if n_pooled == len(response) else "stop"
    made = Response(
        sample,
        "ok",
        "text",
        tuple(response),
        reason,
        logprobs=None if logprobs is None else tuple(logprobs),
        thought_token_ids=tuple(thought),
        thought_span=(1, len(thought) - 1) if thought else (0, 0),
    )
    assert made.n_pooled == n_pooled
    return made
