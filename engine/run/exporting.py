"""The front door of exports: the documented files from the records, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import storage
from ..errors import ExitCode, TraitmillError, UsageError
from ..outputs import Exported, export_trait, refuse_lost
from ..settings import check_thresholds, plain_arguments
from ..storage import TraitFolder, TraitState, lock_traits, select
from . import remembered
from .selection import begun


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export wrote, by trait."""

    exported: Mapping[str, Exported]
    errors: Mapping[str, TraitmillError]

    def __repr__(self) -> str:
        return f"ExportResult({len(self.exported)} exported, {len(self.errors)} failed)"

    @property
    def exit_code(self) -> ExitCode:
        """The exit code that the command ends with."""
        codes = [error.exit_code for error in self.errors.values()]
        if not all(all(each.kept.values()) for each in self.exported.values()):
            codes.append(ExitCode.NOTHING_KEPT)
        return max(codes, default=ExitCode.OK)


@plain_arguments
def export(
    experiment: Path | str,
    traits: Sequence[str] | str | None = None,
    *,
    threshold: float | None = None,
    neg_threshold: float | Literal["off"] | None = None,
    paired: bool | None = None,
    coherence: float | Literal["off"] | None = None,
    use_judge: str | None = None,
    force_unlock: bool = False,
) -> ExportResult:
    """Write CSVs, tensors and metadata again from the records, without a model.

    The filters and `use_judge` (a judge's model or the key of a verdict set) change what they show:
    pos is kept at or above `threshold`, neg below `neg_threshold` (None: as it was; "off": the
    same);
    `paired` keeps a response only where its twin of the other side passes too; `coherence` only
    where it is so coherent, by the last such judging, and adds a column ("off": as without it).
    One trait's trouble does not keep the others from being written; with `traits` None, those that
    have no run are left out. Raise UsageError or LockedError before anything is written.
    """
    folders = select(experiment, traits)
    given = {"threshold": threshold, "neg_threshold": neg_threshold, "coherence": coherence}
    given["paired"] = paired
    filters: dict[str, Any] = {
        name: None if each == "off" else each for name, each in given.items() if each is not None
    }
    check_thresholds(filters.get("threshold", 100.0), filters.get("neg_threshold"))
    if filters.get("coherence") is not None:
        check_thresholds(filters["coherence"], name="coherence")
    folders = begun(folders, traits)
    exported: dict[str, Exported] = {}
    errors: dict[str, TraitmillError] = {}
    with lock_traits(list(folders.values()), force_unlock=force_unlock):
        for name, folder in folders.items():
            try:
                exported[name] = _export_one(folder, filters, use_judge)
            except TraitmillError as error:
                errors[name] = error
    return ExportResult(exported, errors)


def _export_one(folder: TraitFolder, filters: Mapping[str, Any], use_judge: str | None) -> Exported:
    folder.check_writable()
    filters = _with_coherence(folder, filters)
    state = storage.load_state(folder, use_judge, filters)
    wanted = state.choice
    low = wanted.neg_threshold
    if "neg_threshold" not in filters and low is not None and low > wanted.threshold:
        raise UsageError(
            f"{folder.path} remembers `neg_threshold` {low:g}, which must not be above `threshold` "
            f"{wanted.threshold:g}: give a lower `neg_threshold`, or off to end it"
        )
    neg_threshold = check_thresholds(wanted.threshold, low)
    refuse_lost(state)
    folder.clean()
    storage.replay(state.parts["responses"])
    storage.replay(state.parts["verdicts"])
    if wanted.coherence_key is not None:
        storage.replay(storage.coherence_parts(folder, wanted.coherence_key, owned=True))
    state.choose(neg_threshold=neg_threshold)
    exported = export_trait(state.with_plan(state.plan))
    _remember(state, filters, judge=use_judge is not None)
    return exported


def _remember(state: TraitState, filters: Mapping[str, Any], *, judge: bool) -> None:
    """Let later commands go on with the filters and the judge that were named."""
    named = filters.keys() & {"threshold", "neg_threshold", "paired"}
    settings: dict[str, Any] = {name: getattr(state.choice, name) for name in sorted(named)}
    facts = state.choice.judge
    if judge and facts is not None:
        settings |= {
            "judge_model": facts.model,
            "judge_mode": facts.mode,
            "judge_extra": facts.extra,
        }
        if facts.endpoint:
            settings["judge_base_url"] = facts.endpoint
    remembered.remember(state.folder, settings)


def _with_coherence(folder: TraitFolder, filters: Mapping[str, Any]) -> dict[str, Any]:
    """Add the verdict set that holds scores for coherence, where these are asked for.

    Raise UsageError where there is none.
    """
    if "coherence" not in filters:
        return dict(filters)
    least = filters["coherence"]
    if least is None:
        return {**filters, "coherence_key": None}
    sets = storage.verdict_sets(folder, "coherence")
    if not sets:
        raise UsageError(
            f"{folder.path}: no response was judged for coherence yet; do it",
            folder.step("judge", ask="coherence"),
        )
    return {**filters, "coherence_key": next(reversed(sets))}
