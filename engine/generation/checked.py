"""Which samples' log-probabilities are kept, for the self-check of capture against generation."""

from __future__ import annotations

from ..records import Sample

_QUESTIONS, _ROLLOUTS = 2, 8


def is_checked(sample: Sample) -> bool:
    """Return whether a sample's log-probabilities are kept for the self-check.

    They are for each side's first two, and for their every eighth repeat.
    """
    first = sample.instruction_index == 0 and sample.question_index < _QUESTIONS
    return first and sample.rollout % _ROLLOUTS == 0
