"""Open a trait's folder for a run: what it holds against what is wanted, plan, records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Literal

from .. import storage
from ..errors import UsageError
from ..judging import judge_key, local_prompt
from ..models import ModelRef, Prompts
from ..settings import Sampling, check_thresholds
from ..storage import (
    Choice,
    JudgeFacts,
    RunRecord,
    SamplingRecord,
    TraitFolder,
    TraitState,
    open_state,
)
from ..traits import Plan, load_plan
from . import remembered
from .trait_run import TraitRun
from .wanted import (
    Notice,
    Wanted,
    capture_key,
    earlier_run,
    first_counts,
    planned,
    questions_line,
    refuse_other_blocks,
)


def open_run(
    wanted: Wanted, ref: ModelRef, tokenizers: Callable[[str, Sampling], Prompts], notice: Notice
) -> TraitRun:
    """Open a folder whose lock is held; `tokenizers` gives how a run's prompts are tokenized.

    Raise SettingsChangedError with a diff where settings that define the samples differ;
    ResourceError where rows were lost that this command cannot make again; AccessError where the
    tokenizer or its template cannot be used. Nothing is written then.
    """
    folder = wanted.folder
    record = earlier_run(wanted, notice)
    _refuse_lost(wanted, record)
    folder.clean()
    new = _new_record(wanted, ref)
    begun, before = record is not None, record
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
        stored = load_plan(folder.plan) if begun else None
        n_planned = first_counts(wanted.settings, before, stored)
        plan = planned(
            wanted.trait, wanted.settings, n_planned, prompts, stored, thinks=record.thinks
        )
        record.save(folder.run_record)
        if wanted.asked and not folder.asked.exists() and storage.chosen(folder).judge is None:
            # Nothing is known here yet: a run that ends while models load must not be forgotten.
            remembered.remember(folder, wanted.asked)
        if plan is not stored:
            plan.save(folder.plan)
            if before and stored and (line := questions_line(wanted.trait, before, stored, plan)):
                notice(line)
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
    state, redone = storage.load_state(wanted.folder), set[str]()
    lost = {name for name, _, _ in storage.lost_rows(state)}
    if wanted.generates:
        redone |= {"responses", "verdicts"}
        if "responses" in lost or state.parts["responses"].damaged:
            redone.add("coherence")  # not here, but only once the texts are there to be asked about
    if wanted.judges:
        redone.add("verdicts")
    if wanted.settings.capture_rows != "none":
        redone.add("activations")
    if wanted.question == "coherence":  # no export ends it
        redone |= {"verdicts", "activations", "coherence"}
    refuse_lost(state, redone)


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
        refuse_other_blocks(folder, facts, settings.execution.blocks)
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
    _set_orphans_aside(state, notice)
    return state.with_plan(plan)


def _set_orphans_aside(state: TraitState, notice: Notice) -> None:
    """Where responses were lost, what was said of them must not be taken for their successors'.

    A response is stored before its verdict and its activation, so a row without one is an orphan,
    in sets that are not in use as well: one may be gone back to. Only an `ok` response is judged
    and captured: of a sample that failed and was done again, the failure may be what is left.
    """
    folder, known = state.folder, storage.ok_ids(state.parts["responses"])

    def unmark() -> None:
        """Let the files not pass as made from these records: their texts may be others."""
        if selection := storage.Selection.load(folder.selection):
            selection.model_copy(update={"digest": ""}).save(folder.selection)

    if storage.lost_rows(state):
        unmark()  # what was said of a lost text may be lost with it, and made anew alike
    for kind in ("verdicts", "activations"):
        lost = 0
        for parts in storage.all_sets(folder, kind, notice):
            storage.replay(parts)
            lost += storage.split_off(parts, known, unmark)
        if lost:
            notice(
                f"{folder.path}: {lost} {kind} belong to responses that were lost, so they will be "
                f"done again; the rows were moved to {folder.quarantine}"
            )
