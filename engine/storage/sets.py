"""Which record sets a folder has, and which of them its files show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..settings import plain_arguments
from ..traits import DEFINITION_FILE, load_plan
from .folder import TraitFolder
from .parts import PartSet, ids_of, untold
from .run_record import Asked, CaptureFacts, Choice, JudgeFacts, Question, RunRecord, Selection
from .schemas import Kind
from .state import TraitState, open_state


def has_run(folder: TraitFolder) -> bool:
    """Return whether a run has begun in a folder."""
    return folder.run_record.is_file()


def need_record(folder: TraitFolder) -> RunRecord:
    """Return what a folder was made with. Raise UsageError where no run has been."""
    record = RunRecord.load(folder.run_record)
    if record is None:
        raise UsageError(f"{folder.path} holds no run yet; make one", folder.step("generate"))
    return record


def runs_of(folders: Mapping[str, TraitFolder]) -> dict[str, TraitFolder]:
    """Return the folders that hold a run; where none does, that of the experiment's latest run."""
    begun = {name: folder for name, folder in folders.items() if has_run(folder)}
    if begun or not folders:
        return begun
    root = next(iter(folders.values())).path.parent
    latest: dict[str, TraitFolder] = {}
    newest = ""
    for path in sorted(root.glob(f"*/{DEFINITION_FILE}")):
        folder = TraitFolder(path.parent)
        try:
            record = RunRecord.load(folder.run_record)
            _ = Asked.load(folder.asked), chosen(folder)
        except UsageError:  # damaged: it stands in no other trait's way
            continue
        if record is not None and record.created > newest:
            newest, latest = record.created, {folder.name: folder}
    return latest


def verdict_sets(folder: TraitFolder, question: Question = "trait") -> dict[str, JudgeFacts]:
    """Return the facts of a folder's verdict sets on a question by key, the oldest first."""
    found = {}
    for path in (folder.records / "verdicts").glob("*/facts.json"):
        facts = JudgeFacts.load(path)
        if facts and facts.question == question:
            found[path.parent.name] = facts
    return dict(sorted(found.items(), key=lambda item: (item[1].begun, item[0])))


def activation_sets(folder: TraitFolder) -> dict[str, CaptureFacts]:
    """Return the facts of a folder's activation sets by key, the oldest first."""
    found = {}
    for path in (folder.records / "activations").glob("*/facts.json"):
        if facts := CaptureFacts.load(path):
            found[path.parent.name] = facts
    return dict(sorted(found.items(), key=lambda item: (item[1].begun, item[0])))


def require_facts(where: Path) -> None:
    """Raise UsageError where a record set has rows, and what tells of what they are is gone."""
    facts = where / "facts.json"
    if not facts.is_file() and any(where.rglob("part-*.parquet")):
        raise UsageError(
            f"{facts} is gone, which tells what the rows beside it are of; {JudgeFacts.mend}"
        )


def all_sets(folder: TraitFolder, kind: Kind, notice: Callable[[str], None]) -> list[PartSet]:
    """Return a folder's record sets of a kind, in use or not. The folder's lock is held."""
    return [
        PartSet(path, kind, folder.quarantine, notice, owned=True)
        for path in sorted((folder.records / kind).glob("*"))
        if path.is_dir()
    ]


def chosen(folder: TraitFolder, use_judge: str | None = None) -> Choice:
    """Return which record sets a folder's files show, or would show: without files, the newest.

    Raise UsageError where `use_judge` names no verdict set or several.
    """
    judges, captures = verdict_sets(folder), activation_sets(folder)
    selection = Selection.load(folder.selection)
    judge_key = selection.judge if selection else next(reversed(judges), "none")
    if use_judge is not None:
        judge_key = _find_judge(judges, use_judge)
    capture_key = selection.capture if selection else None
    if capture_key is None:
        capture_key = next(reversed(captures), None)
    capture = captures.get(capture_key or "")
    pools = capture.pools if capture else ()
    if selection and selection.capture:
        pools = selection.pools
    shown = {}
    if selection:
        filters = {"threshold", "neg_threshold", "paired", "coherence", "coherence_key"}
        shown = selection.model_dump(include=filters)
    elif asked := Asked.load(folder.asked):  # of a run that has not come to its files yet
        filters = {"threshold", "neg_threshold", "paired"}
        shown = {name: value for name, value in asked.settings.items() if name in filters}
    return Choice(
        judge_key=judge_key,
        judge=judges.get(judge_key),
        capture_key=capture_key,
        capture=capture,
        pools=pools,
        **shown,
    )


def _find_judge(judges: Mapping[str, JudgeFacts], name: str) -> str:
    keys = [key for key, facts in judges.items() if name in (key, facts.model)]
    if len(keys) == 1:
        return keys[0]
    what = "names several verdict sets" if keys else "names no verdict set"
    known = ", ".join(
        f"{key} ({facts.model}, `judge_mode` {facts.mode}{_added(facts)}, of {facts.begun})"
        for key, facts in judges.items()
    )
    raise UsageError(f"`use_judge` {name!r} {what} of this run; give one of: {known or 'none yet'}")


def _added(facts: JudgeFacts) -> str:
    return f", `judge_extra` {facts.extra}" if facts.extra else ""


@plain_arguments
def load_state(
    folder: TraitFolder | Path | str,
    use_judge: str | None = None,
    filters: Mapping[str, Any] | None = None,
) -> TraitState:
    """Index a trait's records as its files show them, to read. Take no lock, change nothing.

    `filters` take the place of those of the files. Raise UsageError where no run has been, or a
    file of the run is damaged.
    """
    if not isinstance(folder, TraitFolder):
        folder = TraitFolder(Path(folder))
    record = need_record(folder)
    plan = load_plan(folder.plan)
    if plan is None:
        raise UsageError(
            f"{folder.path} has no readable plan; generate again (no stored row is redone)",
            folder.step("generate"),
        )
    return open_state(folder, record, plan, replace(chosen(folder, use_judge), **(filters or {})))


def lost_rows(state: TraitState) -> list[tuple[str, int, int]]:
    """Return (set, lost, before) where fewer rows are stored than when files were written."""
    selection = Selection.load(state.folder.selection)
    if selection is None:
        return []
    shown = {
        "responses": True,
        "verdicts": selection.judge == state.judge_key,
        "activations": selection.capture == state.capture_key,
        "coherence": selection.coherence_key == state.choice.coherence_key,
    }
    found = []
    for name, stored in state.n_rows().items():
        before = selection.rows.get(name, 0)
        if shown[name] and stored < before:
            found.append((name, before - stored, before))
    return found


def unfinished_sets(state: TraitState) -> list[str]:
    """Return a line for each verdict set beside the one in use that lacks verdicts."""
    ok = int(state.responses.having("ok").sum())
    lines = []
    for key, facts in verdict_sets(state.folder).items():
        if key == state.judge_key:
            continue
        parts = PartSet(
            state.folder.verdicts(key),
            "verdicts",
            state.folder.quarantine,
            untold,
            owned=False,
        )
        stored = {bytes(i) for _, table in parts.read(["sample_id"]) for i in ids_of(table)}
        judged = sum(bytes(i) in stored for i in state.plan.ids[state.responses.having("ok")])
        if judged < ok:
            lines.append(
                f"judge {facts.model} ({key}) has judged {judged} of {ok} responses; the files "
                "show another judge"
            )
    return lines
