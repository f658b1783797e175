"""Open a trait's folder for a run: what it holds against what is wanted, plan, records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .. import storage
from ..errors import SettingsChangedError, UsageError
from ..judging import judge_key, local_prompt
from ..models import ModelRef, Prompts
from ..outputs import is_exported
from ..records import POLARITIES, Polarity
from ..settings import CaptureSettings, RunSettings, Sampling, check_thresholds
from ..storage import (
    Choice,
    JudgeFacts,
    Kind,
    PartSet,
    Question,
    RunRecord,
    SamplingRecord,
    TraitFolder,
    TraitState,
    open_state,
)
from ..traits import Plan, Trait, load_plan
from . import remembered
from .trait_run import TraitRun, asked, planned

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


def open_run(
    wanted: Wanted, ref: ModelRef, tokenizers: Callable[[str, Sampling], Prompts], notice: Notice
) -> TraitRun:
    """Open a folder whose lock is held; `tokenizers` gives how a run's prompts are tokenized.

    Raise SettingsChangedError with a diff where settings that define the samples differ;
    ResourceError where rows were lost that this command cannot make again; AccessError where the
    tokenizer or its template cannot be used. Nothing is written then.
    """
    folder = wanted.folder
    record = _record(wanted, notice)
    _refuse_lost(wanted, record)
    folder.clean()
    new = _new_record(wanted, ref)
    begun = record is not None
    if record is None:
        record = new
    elif wanted.generates:
        kept = ("created", "versions", "thinks")
        record = new.model_copy(update={name: getattr(record, name) for name in kept})
    prompts = tokenizers(record.created, wanted.settings.sampling)
    if not begun:
        record = record.model_copy(update={"thinks": prompts.thought is not None})
    _check_thought_pools(wanted, record)
    if wanted.generates:
        n_planned: dict[Polarity, int] = dict.fromkeys(
            POLARITIES, wanted.settings.counts.n_examples
        )
        stored = load_plan(folder.plan) if begun else None
        plan = planned(
            wanted.trait, wanted.settings, n_planned, prompts, stored, thinks=record.thinks
        )
        record.save(folder.run_record)
        if wanted.asked and not folder.asked.exists() and storage.chosen(folder).judge is None:
            # Nothing is known here yet: a run that ends while models load must not be forgotten.
            remembered.remember(folder, wanted.asked)
        if plan is not stored:
            plan.save(folder.plan)
            if prompts.remark:
                notice(f"{folder.name}: {prompts.remark}")
    else:
        plan = _need_plan(folder)
    state = recovered(wanted, record, plan, notice)
    return TraitRun(
        trait=wanted.trait,
        folder=folder,
        settings=wanted.settings,
        tokenize=prompts,
        state=state,
        decided=not wanted.generates,
        exports=wanted.question == "trait",
    )


def _check_thought_pools(wanted: Wanted, record: RunRecord) -> None:
    """Raise UsageError where thoughts are to be pooled and the run has none."""
    pools = [pool for pool in wanted.settings.capture.pools if pool.startswith("thought")]
    if not pools or wanted.settings.capture_rows == "none" or record.thinks:
        return
    raise UsageError(
        f"`pool` {pools[0]}: {wanted.folder.name} has no thoughts beside its responses; leave it "
        "out, or generate with `thinking` on"
    )


def _need_plan(folder: TraitFolder) -> Plan:
    plan = load_plan(folder.plan)
    if plan is None:
        raise UsageError(
            f"{folder.path} has no readable plan; generate again (no stored row is redone)",
            folder.step("generate"),
        )
    return plan


# --- what the folder was made with ---


def _record(wanted: Wanted, notice: Notice) -> RunRecord | None:
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
        if refused or _is_finished(folder):
            notice(f"{name}: the old run was moved to {folder.archive('run', record.created)}")
            return None
        # The same command again after an interrupt: what was paid for is not paid for twice.
        notice(f"{name}: the new run has begun already and goes on")
    if refused and not any(folder.responses.glob("part-*.parquet")):
        return None  # nothing was generated with those settings: a model that did not load, say
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
        added = len(after) - len(before)
        if after[: len(before)] == before:
            allowed.append(
                f"trait_definition.json: {added} questions appended (the plan is extended)"
            )
        else:
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


def _new_record(wanted: Wanted, ref: ModelRef) -> RunRecord:
    settings = wanted.settings
    return RunRecord(
        created=storage.now(),
        source=ref.source,
        adapter_source=ref.adapter.source if ref.adapter else "",
        sampling=SamplingRecord(**asdict(settings.sampling)),
        definition=wanted.trait.as_json(),
        **asdict(settings.counts),
        versions=storage.installed_versions(),
    )


# --- the records ---


def _refuse_lost(wanted: Wanted, record: RunRecord | None) -> None:
    """Raise ResourceError where rows are gone that this command does not make again.

    Its export at the end would take good files for fewer rows.
    """
    from ..outputs import refuse_lost

    if record is None or load_plan(wanted.folder.plan) is None:
        return
    redone: set[Kind] = set()
    if wanted.generates:
        redone |= {"responses", "verdicts"}
    if wanted.judges:
        redone.add("verdicts")
    if wanted.settings.capture_rows != "none":
        redone.add("activations")
    refuse_lost(storage.load_state(wanted.folder), redone)


def capture_key(capture: CaptureSettings) -> str:
    """Return which activation set: 16 hex digits of sha256 over what shapes a row's values.

    Pools are told apart by name, within a set.
    """
    content = json.dumps(asked(RunSettings(capture=capture)), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _choice(wanted: Wanted) -> Choice:
    """Return the record sets that the run works on; those it does not touch are the files' own."""
    settings, folder = wanted.settings, wanted.folder
    chosen = storage.chosen(folder)
    key, judge = chosen.judge_key, chosen.judge
    if wanted.judges:
        key = judge_key(settings.judge, wanted.trait)
        known = storage.verdict_sets(folder, wanted.question)
        judge = known.get(key) or _judge_facts(wanted)
    capture, pools, facts = chosen.capture_key, chosen.pools, chosen.capture
    if settings.capture_rows != "none":
        capture, pools = capture_key(settings.capture), settings.capture.pools
        facts = storage.activation_sets(folder).get(capture)
    own = wanted.question == "trait"
    return Choice(
        judge_key=key,
        judge=judge,
        capture_key=capture,
        capture=facts,
        pools=pools,
        threshold=settings.threshold,
        neg_threshold=check_thresholds(settings.threshold, settings.neg_threshold),
        paired=settings.paired,
        coherence=chosen.coherence if own else None,
        coherence_key=chosen.coherence_key if own else None,
    )


def _judge_facts(wanted: Wanted) -> JudgeFacts:
    judge, trait = wanted.settings.judge, wanted.trait
    kind: Literal["remote", "local_relative"] = "remote"
    prompt = trait.eval_prompt
    if judge.is_local:
        kind, prompt = "local_relative", local_prompt(trait)
    return JudgeFacts(
        model=judge.model,
        mode=judge.mode,
        kind=kind,
        prompt=prompt,
        begun=storage.now(),
        extra=judge.extra,
        scale=(trait.scale.low, trait.scale.high),
        question=wanted.question,
    )


def recovered(wanted: Wanted, record: RunRecord, plan: Plan, notice: Notice) -> TraitState:
    """Clean up behind a killed run, then index what is stored. The folder's lock is held."""
    folder, choice = wanted.folder, _choice(wanted)
    state = open_state(folder, record, plan, choice, notice, owned=True)
    storage.replay(state.parts["responses"])
    storage.replay(state.parts["verdicts"])
    for parts in state.parts.values():
        parts.recover()
    _set_orphans_aside(state.parts, folder, notice)
    if choice.coherence_key is not None:
        coherence = storage.coherence_parts(folder, choice.coherence_key, owned=True)
        storage.replay(coherence)
        storage.split_off(coherence, storage.ok_ids(state.parts["responses"]))
    return state.with_plan(plan)


def _set_orphans_aside(parts: Mapping[Kind, PartSet], folder: TraitFolder, notice: Notice) -> None:
    """Where responses were lost, what was said of them must not be taken for their successors'.

    A response is stored before its verdict and its activation, so a row without one is an orphan.
    Only an `ok` response is judged and captured: of a sample that failed and was done again, the
    failure may be what is left.
    """
    known = storage.ok_ids(parts["responses"])
    for kind in ("verdicts", "activations"):
        lost = storage.split_off(parts[kind], known)
        if lost:
            notice(
                f"{folder.path}: {lost} {kind} belong to responses that were lost, so they will be "
                f"done again; the rows were moved to {folder.quarantine}"
            )
