"""The run that a folder holds: gone on with, moved aside, or refused for its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from .. import storage
from ..errors import SettingsChangedError, UsageError
from ..judging import judge_key
from ..outputs import is_exported
from ..storage import RunRecord, TraitFolder
from .capture_set import capture_key
from .wanted import Wanted

Notice = Callable[[str], None]


def earlier_run(wanted: Wanted, notice: Notice) -> RunRecord | None:
    """Return the record of the run that goes on here, None for a new one; move aside what is in its
    way."""
    folder, name = wanted.folder, wanted.folder.name
    record = RunRecord.load(folder.run_record)
    if record is None:
        if folder.outputs() and not folder.has_records():
            moved = folder.archive("before", storage.now())
            notice(f"{name}: files that no run here made were moved to {moved}")
        return None
    if not wanted.generates:
        return record
    refused, allowed = _changes(record, wanted)
    if wanted.new_run:
        if refused or folder.moving.exists() or _is_finished(folder):
            notice(f"{name}: the old run was moved to {folder.archive('run', record.created)}")
            return None
        # The same command again after an interrupt: what was paid for is not paid for twice.
        notice(f"{name}: the new run has begun already and goes on")
    if refused and not storage.holds_rows(folder.responses):
        return None  # nothing was generated with those settings: a model that did not load, say
    if refused:
        lines = [f"{folder.path}: these settings define its samples and differ from its run:"]
        lines += [f"  {line}" for line in refused]
        lines.append(
            "go back to the old settings, use another experiment name, or `new_run` to move the "
            "old run aside"
        )
        raise SettingsChangedError("\n".join(lines))
    folder.moving.unlink(missing_ok=True)  # of a move that is not wanted any more
    for line in allowed:
        notice(f"{name}: {line}")
    return record


def _changes(record: RunRecord, wanted: Wanted) -> tuple[list[str], list[str]]:
    """Return what differs from the folder's run: (refused, allowed), one readable line each."""
    settings = wanted.settings
    refused = storage.differing(record.sampling.model_dump(), asdict(settings.sampling))
    old, new = record.definition, wanted.trait.as_json()
    counts = {name: getattr(record, name) for name in ("n_examples", "min_kept", "max_examples")}
    allowed = [
        f"{line} (the plan is extended, or a part of it selected)"
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
