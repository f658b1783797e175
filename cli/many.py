"""The end of a run of many traits: totals, and which of them to show one by one."""

from __future__ import annotations

from collections.abc import Sequence

from traitmill.engine.records import POLARITIES
from traitmill.engine.run import RunResult, TraitResult

_MANY = 12
"""Traits from which on a summary shows the totals and those in trouble."""


def listed(result: RunResult) -> list[TraitResult]:
    """Return the traits to be shown one by one: all of a few, of many those in trouble."""
    traits = list(result.traits.values())
    if len(traits) <= _MANY:
        return traits
    return sorted(filter(_in_trouble, traits), key=_place)[:_MANY]


def _in_trouble(trait: TraitResult) -> bool:
    return not trait.finished or _failed(trait) > 0 or 0 in _kept(trait)


def _place(trait: TraitResult) -> tuple[bool, int, float]:
    """Return where a trait stands in a list: stopped ones first, then by what failed, then the
    least far."""
    left = sum(side["responses"]["pending"] for side in trait.state.counts().values())
    return (trait.error is None, -_failed(trait), -left)


def _failed(trait: TraitResult) -> int:
    state = trait.state
    masks = (state.responses.having("failed", "overlong"), state.verdicts.having("failed"))
    return sum(int(mask.sum()) for mask in (*masks, state.capture_failed()))


def _kept(trait: TraitResult) -> list[int]:
    return [side["kept"] for side in trait.state.counts().values()]


def total(result: RunResult, shown: Sequence[TraitResult]) -> str:
    traits = list(result.traits.values())
    sides = [trait.state.counts() for trait in traits]
    kept = [sum(each[polarity]["kept"] for each in sides) for polarity in POLARITIES]
    planned = sum(side["planned"] for each in sides for side in each.values())
    pending = sum(side["responses"]["pending"] for each in sides for side in each.values())
    judged = sum(side["verdicts"]["scored"] for each in sides for side in each.values())
    finished = sum(trait.finished for trait in traits)
    line = (
        f"{len(traits)} traits, {finished} finished: {planned - pending:,} of {planned:,} "
        f"generated, {judged:,} judged, kept {kept[0]:,} pos + {kept[1]:,} neg"
    )
    if len(traits) > _MANY:
        troubled = sum(map(_in_trouble, traits))
        first = f", the first {len(shown)} below" if troubled > len(shown) else ""
        line += f"; {troubled} to see to{first} (traitmill status shows each)"
    return line
