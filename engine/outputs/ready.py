"""What must hold of a run's records before its files are written from them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..errors import ResourceError, Step, UsageError
from ..storage import Selection, TraitState, lost_rows, verdict_sets


def refuse_lost(state: TraitState, redone: Collection[str] = ()) -> None:
    """Raise ResourceError, with nothing changed, where rows that were stored are gone.

    Good files would shrink where a part file is damaged, or was deleted since they were written.
    `redone` are the sets, as `TraitState.sets` names them, whose rows the caller makes again.
    """
    said, lost_of = [], set()
    for name, parts in state.sets.items():
        if name not in redone and parts.damaged:
            said += parts.damaged
            lost_of.add(name)
    for name, lost, before in lost_rows(state):
        if name not in redone:
            what = "verdicts on coherence" if name == "coherence" else name
            said.append(f"{lost} of the {before} {what} that the files show are gone")
            lost_of.add(name)
    if said:
        raise ResourceError(
            f"{state.folder.path}: {'; '.join(said)}. The files in place stay as they are; make "
            "the lost rows again",
            _redoing(state, lost_of),
        )


def _redoing(state: TraitState, lost_of: Collection[str]) -> Step:
    """Return what makes the lost rows of some sets again, or the first of several such steps."""
    folder = state.folder
    if "coherence" in lost_of and "responses" not in lost_of:
        return coherence_step(state)
    return folder.step("activations" if set(lost_of) == {"activations"} else "generate")


def coherence_step(state: TraitState) -> Step:
    """Return what asks the judge of the coherence in use for the scores that are lacking."""
    facts = verdict_sets(state.folder, "coherence").get(state.choice.coherence_key or "")
    named: dict[str, Any] = {}
    if facts is not None:  # another judge would be asked for all of them
        named["judge_model"] = facts.model
        if facts.mode != "auto":
            named["judge_mode"] = facts.mode
        if facts.extra:
            named["judge_extra"] = facts.extra
        if facts.endpoint and (state.judge is None or facts.endpoint != state.judge.endpoint):
            named["judge_base_url"] = facts.endpoint
    return state.folder.step("judge", ask="coherence", **named)


def require_captured(state: TraitState) -> None:
    """Raise UsageError where some kept responses have activations and others were not captured."""
    missing = state.kept_uncaptured()
    if missing and state.any_captured():
        raise UsageError(
            f"{state.folder.path}: {missing} of {int(state.passing().sum())} kept responses have "
            "no activations yet; capture them",
            state.folder.step("activations", **_chosen_anew(state)),
        )


def _chosen_anew(state: TraitState) -> dict[str, Any]:
    """Return what a capture has to be told, so as to capture what was not kept before."""
    before, now = Selection.load(state.folder.selection), state.choice
    if before and (before.judge, before.coherence) != (state.judge_key, now.coherence):
        return {"capture": "all"}  # it takes neither
    changed = {}
    for name in ("threshold", "neg_threshold", "paired"):
        if before and getattr(now, name) != getattr(before, name):
            changed[name] = "off" if getattr(now, name) is None else getattr(now, name)
    return changed
