"""What a command wants of one trait's folder, against the run that it holds: what stands of that
run's settings, its activation set and its plan, what is moved aside, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .. import storage
from ..capture import CaptureFacts
from ..errors import SettingsChangedError, UsageError
from ..judging import calibration_positions, judge_key
from ..outputs import is_exported
from ..records import POLARITIES, Polarity
from ..settings import CaptureSettings, RunSettings
from ..storage import Question, RunRecord, TraitFolder, TraitState
from ..traits import Plan, Tokenize, Trait, make_plan, plan_key

Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a command wants of one trait's folder."""

    trait: Trait
    folder: TraitFolder
    settings: RunSettings
    generates: bool
    judges: bool
    new_run: bool = False
    question: Question = "trait"
    """What the judge is asked; only of the first are files written."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """What the folder is to remember of the command, by name."""


def earlier_run(wanted: Wanted, notice: Notice) -> tuple[RunRecord | None, tuple[str, str] | None]:
    """Return the record of the run that goes on here, None for a new one, and what stands in its
    way: whose files, `run` or `before`, and of when."""
    folder, name = wanted.folder, wanted.folder.name
    record = RunRecord.load(folder.run_record)
    if record is None:
        foreign = bool(folder.outputs()) and not folder.has_records()
        return None, ("before", storage.now()) if foreign else None
    if not wanted.generates:
        return record, None
    refused, allowed = _changes(record, wanted)
    if wanted.new_run:
        ended = _is_finished(folder) and not folder.renewing.exists()
        if refused or folder.moving.exists() or ended:
            return None, ("run", record.created)
        # The same command again after an interrupt: what was paid for is not paid for twice.
        notice(f"{name}: the new run has begun already and goes on")
    if refused and not storage.holds_rows(folder.responses):
        return (
            None,
            None,
        )  # nothing was generated with those settings: a model that did not load, say
    if refused:
        lines = [f"{folder.path}: these settings define its samples and differ from its run:"]
        lines += [f"  {line}" for line in refused]
        lines.append(
            "go back to the old settings, use another experiment name, or `new_run` to move the "
            "old run aside"
        )
        raise SettingsChangedError("\n".join(lines))
    for line in allowed:
        notice(f"{name}: {line}")
    return record, None


def set_aside(folder: TraitFolder, whose: str, moment: str, notice: Notice) -> None:
    """Move aside what stands in a new run's way."""
    said = "the old run was" if whose == "run" else "files that no run here made were"
    notice(f"{folder.name}: {said} moved to {folder.archive(whose, moment)}")


def _changes(record: RunRecord, wanted: Wanted) -> tuple[list[str], list[str]]:
    """Return what differs from the folder's run: (refused, allowed), one readable line each."""
    settings = wanted.settings
    refused = storage.differing(record.sampling.model_dump(), asdict(settings.sampling))
    old, new = record.definition, wanted.trait.as_json()
    counts = {name: getattr(record, name) for name in ("n_examples", "min_kept", "max_examples")}
    fewer = settings.counts.n_examples < record.n_examples
    what = "a part of the plan is selected" if fewer else "the plan is extended"
    allowed = [
        f"{line} ({what})" if line.startswith("n_examples") else line
        for line in storage.differing(counts, asdict(settings.counts))
    ]
    if old["instruction"] != new["instruction"]:
        refused.append("trait_definition.json: instruction was edited (it is part of every prompt)")
    if old.get("assistant_name") != new.get("assistant_name"):
        refused.append(
            "trait_definition.json: assistant_name was edited (it is part of every prompt)"
        )
    if old["questions"] != new["questions"]:
        before, after = old["questions"] or [""], new["questions"] or [""]
        if after[: len(before)] != before:
            refused.append(
                "trait_definition.json: questions were edited, removed or reordered (appending is "
                "free)"
            )
    chosen = storage.chosen(wanted.folder)
    if chosen.judge and chosen.judge_key != judge_key(settings.judge, wanted.trait):
        allowed.append("another judge or judge prompt: a new verdict set beside the old one")
    captured = settings.capture_rows != "none" and chosen.capture
    if captured and chosen.capture_key != capture_key(settings.capture):
        allowed.append("other capture settings: a new activation set beside the old one")
    return refused, allowed


def _is_finished(folder: TraitFolder) -> bool:
    """Return whether the run that a folder holds came to its end, its files written."""
    try:
        return is_exported(storage.load_state(folder))
    except UsageError:  # its plan cannot be read, and will be made again
        return False


def capture_key(capture: CaptureSettings) -> str:
    """Return which activation set: 16 hex digits of sha256 over what shapes a row's values.

    Pools are told apart by name, within a set.
    """
    content = json.dumps(asked_of_capture(capture), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def asked_of_capture(capture: CaptureSettings) -> dict[str, object]:
    """Return the settings that choose an activation set, as plain JSON values."""
    layers = None
    if capture.layers is not None:
        layers = list(capture.layers)
    return {
        "layers": layers,
        "include_embeddings": capture.include_embeddings,
        "dtype": capture.dtype,
        "attention": capture.attention,
    }


def refuse_other_blocks(
    folder: TraitFolder, known: storage.CaptureFacts | None, blocks: str | None
) -> None:
    """Raise SettingsChangedError where an activation set is of other modules than are named now."""
    before = known.blocks if known else None
    if before is not None and before != (blocks or ""):
        raise SettingsChangedError(
            f"{folder.path}: its activation set is of the blocks at "
            f"{before or 'the place that was found'}, and `blocks` names "
            f"{blocks or 'none'}; name the same, or use another experiment"
        )


def refuse_other_capture(
    folder: TraitFolder, known: storage.CaptureFacts, loaded: CaptureFacts
) -> None:
    names = ("dtype", "attention", "layers", "hidden_dim")
    found = {name: getattr(loaded, name) for name in names}
    lines = storage.differing(known.model_dump(include=set(names)), found)
    if lines:
        raise SettingsChangedError(
            f"{folder.path}: capture here would not compute what its activation set holds: "
            f"{', '.join(lines)}. Capture on a device like the first ({known.device}), or capture "
            f"all anew as a set of its own, with `capture_dtype` {loaded.dtype} and `attention` "
            f"{loaded.attention}"
        )


def first_counts(
    settings: RunSettings, before: RunRecord | None, stored: Plan | None
) -> dict[Polarity, int]:
    """Return how many samples a side a run begins with.

    Rounds that `min_kept` added stand, with all that was paid for them: where this run ends early,
    no row of theirs may be lost to the files. Another `n_examples` makes other rounds.
    """
    counts = settings.counts
    begun = dict.fromkeys(POLARITIES, counts.n_examples)
    grown = counts.min_kept and before is not None and before.n_examples == counts.n_examples
    if not grown or stored is None:
        return begun
    return {side: max(n, min(stored.n_planned[side], counts.limit)) for side, n in begun.items()}


def grown_counts(settings: RunSettings, state: TraitState) -> dict[Polarity, int]:
    """Return how many samples of each side `min_kept` asks for by the verdicts there are.

    In pairs both sides grow to the same number: a sample without a twin could never count.
    """
    counts, n_planned = settings.counts, state.plan.n_planned
    # Coherence is judged after a run: what is not asked about yet holds no round up.
    passing = state.passing_so_far()
    fewest = min(n_planned.values())
    wanted = {}
    for side, n in n_planned.items():
        wanted[side] = n
        if counts.min_kept and int((passing & state.side(side)).sum()) < counts.min_kept:
            begun = fewest if settings.paired else n
            wanted[side] = max(n, min(begun + counts.n_examples, counts.limit))
    return wanted


def questions_line(trait: Trait, before: RunRecord, stored: Plan, plan: Plan) -> str:
    """Return what appended questions make of a plan, empty where there are none."""
    old = before.definition["questions"] or [""]
    added = len(trait.questions) - len(old)
    if added <= 0:
        return ""
    line = f"{trait.name}: {added} questions were appended"
    if int(plan.question_index.max(initial=0)) < len(old):
        return (
            f"{line} and no sample asks them: `n_examples` is too small to come to them (questions "
            "are taken in order)"
        )
    leave = int((plan.positions(stored.ids) < 0).sum())
    join = int((stored.positions(plan.ids) < 0).sum())
    return (
        f"{line}: {join} samples join the plan, and {leave} of before leave it (their rows stay "
        "stored)"
    )


def planned(
    trait: Trait,
    settings: RunSettings,
    n_planned: dict[Polarity, int],
    tokenize: Tokenize,
    stored: Plan | None,
    *,
    thinks: bool,
) -> Plan:
    """Return the plan for so many samples a side: the stored one where it is that."""
    if stored is not None and stored.key == plan_key(trait, n_planned, settings.sampling):
        return stored
    plan = make_plan(trait, n_planned, settings.sampling, tokenize, thinks=thinks)
    if stored is not None and (moved := plan.moved(stored)):
        raise SettingsChangedError(
            f"{trait.name}: {moved} of its {len(stored)} prompts have other tokens by now, and "
            "would be paid for anew: go on with the versions of transformers and tokenizers that "
            "began the run (parquet/run.json), or start over with `new_run`"
        )
    return plan


def check_sets(wanted: Wanted) -> None:
    """Raise UsageError where rows would join others and nothing tells of what those are, or a local
    judge would place a half of a run that its other half is to be compared with."""
    settings, folder = wanted.settings, wanted.folder
    if settings.capture_rows != "none":
        storage.require_facts(folder.activations(capture_key(settings.capture)))
    if not (wanted.judges and settings.judge.is_local):
        return
    key = judge_key(settings.judge, wanted.trait)
    storage.require_facts(folder.verdicts(key))
    known = storage.verdict_sets(folder, wanted.question).get(key)
    if wanted.generates or (known is not None and known.offset is not None):
        return
    state = storage.load_state(folder)
    placing = calibration_positions(state.plan, settings.counts.n_examples)
    lacking = int(state.responses.pending()[placing].sum())
    if lacking:
        raise UsageError(
            f"{lacking} of the {len(placing)} responses that a local judge places all others of "
            f"{folder.name} by are not generated yet; generate them first",
            folder.step("generate"),
        )
