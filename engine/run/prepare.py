"""Open a trait's folder for a run: what it holds against what is wanted, plan, records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
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
    check_sets,
    earlier_run,
    first_counts,
    planned,
    questions_line,
    refuse_other_blocks,
    set_aside,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A folder that was looked at for a run, and in which nothing was changed yet."""

    wanted: Wanted
    before: RunRecord | None
    """The run that goes on; None for a new one."""
    record: RunRecord
    prompts: Prompts
    stored: Plan | None
    plan: Plan
    in_the_way: tuple[str, str] | None
    """Of a new run: see `set_aside`."""

    def open(self, notice: Notice) -> TraitRun:
        """Return the run on the folder, its records mended and indexed.

        A new run is noted there. What changes of one that goes on is not, until `save`.
        """
        wanted, folder = self.wanted, self.wanted.folder
        if self.in_the_way is not None:
            # Before anything is moved: the disk may be full, and what was asked for is known here.
            self._note_in(folder.coming)
            set_aside(folder, *self.in_the_way, notice)
        folder.clean()
        if wanted.generates:
            folder.moving.unlink(missing_ok=True)  # of a move that is not wanted any more
            if self.before is None:
                self.save(self.plan)
                if wanted.new_run:
                    folder.renewing.touch()
            if wanted.asked and not folder.asked.exists() and storage.chosen(folder).judge is None:
                # Nothing is known here yet: a run that ends while models load is not forgotten.
                remembered.remember(folder, wanted.asked)
            if self.plan is not self.stored:
                for line in self._remarks():
                    notice(line)
        return TraitRun(
            trait=wanted.trait,
            folder=folder,
            settings=wanted.settings,
            tokenize=self.prompts,
            state=recovered(wanted, self.record, self.plan, notice),
            decided=not wanted.generates,
            exports=wanted.question == "trait",
        )

    def save(self, plan: Plan) -> None:
        """Note the run, with the plan that it has by now: what was asked for could be had."""
        if self.wanted.generates:
            self.record.save(self.wanted.folder.run_record)
            if plan is not self.stored:
                plan.save(self.wanted.folder.plan)

    def _note_in(self, folder: TraitFolder) -> None:
        self.record.save(folder.run_record)
        self.plan.save(folder.plan)
        remembered.remember(folder, self.wanted.asked)

    def _remarks(self) -> Iterator[str]:
        trait = self.wanted.trait
        if self.before and self.stored:
            line = questions_line(trait, self.before, self.stored, self.plan)
            if line:
                yield line
        if self.prompts.remark:
            yield f"{trait.name}: {self.prompts.remark}"


def look_at(
    wanted: Wanted, ref: ModelRef, tokenizers: Callable[[str, Sampling], Prompts], notice: Notice
) -> Opening:
    """Look at a folder whose lock is held; `tokenizers` gives how a run's prompts are tokenized.

    Raise SettingsChangedError with a diff where settings that define the samples differ;
    ResourceError where rows were lost that this command cannot make again; AccessError where the
    tokenizer or its template cannot be used. Nothing is written.
    """
    folder = wanted.folder
    before, in_the_way = earlier_run(wanted, notice)
    _refuse_lost(wanted, before)
    if before is not None:
        check_sets(wanted)
    new = _new_record(wanted, ref)
    record = before or new
    if before is not None and wanted.generates:
        kept = ("created", "versions", "thinks")
        record = new.model_copy(update={name: getattr(before, name) for name in kept})
    prompts = tokenizers(record.created, wanted.settings.sampling)
    if before is None:
        record = record.model_copy(update={"thinks": prompts.thought is not None})
    _check_thought_pools(wanted, record)
    stored = load_plan(folder.plan) if before is not None else None
    if wanted.generates:
        n_planned = first_counts(wanted.settings, before, stored)
        plan = planned(
            wanted.trait, wanted.settings, n_planned, prompts, stored, thinks=record.thinks
        )
    elif stored is None:
        raise UsageError(
            f"{folder.path} has no readable plan; generate again (no stored row is redone)",
            folder.step("generate"),
        )
    else:
        plan = stored
    return Opening(
        wanted=wanted,
        before=before,
        record=record,
        prompts=prompts,
        stored=stored,
        plan=plan,
        in_the_way=in_the_way,
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
