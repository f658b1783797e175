"""How many tokens the longest sequence of a run may have."""

from __future__ import annotations

from collections.abc import Sequence

from ..judging import local_prompt
from ..models import ModelRef, Thought, check_longest, common_length
from ..settings import RunSettings
from ..traits import fill
from .trait_run import TraitRun

_CLOSED_THOUGHT = 16
"""Tokens that close a thought before a local judge answers, at most."""


def longest_sequence(
    ref: ModelRef,
    settings: RunSettings,
    runs: Sequence[TraitRun],
    thought: Thought | None,
    *,
    judges: bool,
    reads: bool,
) -> int:
    """Return the tokens of the longest sequence that the engine will see.

    `reads`: rows that are generated are captured. Raise UsageError for one that would be read in
    another way than it is generated.
    """
    new = behind = settings.sampling.max_new_tokens
    if thought is not None:
        behind += settings.sampling.max_thinking_tokens + thought.most_spaces
    rows, asked = 1, 0
    room = ref.context_length  # a prompt that fills it will not be generated from
    for run in runs:
        for length in run.prompt_lengths():
            if not room or length < room:
                rows = max(rows, length + behind)
        if judges and settings.judge.is_local:
            question = run.trait.longest_question()
            prompt = fill(local_prompt(run.trait), question=question, answer="")
            asked = max(asked, len(run.tokenize("", prompt)) + new + _CLOSED_THOUGHT)
    own = settings.judge.model == "local"
    if reads:
        check_longest(ref, max(rows, asked) if own else rows)
    # Judged text may take more tokens than were sampled.
    longest = max(rows, asked + new) if asked else rows
    return min(longest, common_length(ref) or longest) if own else longest
