"""One trait's work in a run: what its folder holds, what is still to do, and what a change of settings means."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TraitmillError, UsageError
from ..judging.local import calibration_positions
from ..judging.scoring import judge_key, local_prompt
from ..models.hub import ModelRef
from ..outputs.export import METADATA, Exported, export_trait, require_captured, tensor_path
from ..records import POLARITIES, Polarity, Sample
from ..settings import RunSettings
from ..storage.archive import move_aside, outputs
from ..storage.index import PENDING, Store
from ..storage.run_record import (
    Manifest,
    changes,
    installed_versions,
    load_manifest,
    need_manifest,
    now,
    refuse,
)
from ..storage.schemas import STATUSES
from ..storage.state import TraitView, load_view
from ..traits.definition import Trait
from ..traits.plan import PlanTable, load_plan, make_plan, plan_key, save_plan

Tokenize = Callable[[str], tuple[int, ...]]


@dataclass(slots=True, eq=False)
class Todo:
    """Counts of a trait's records that are still to come."""

    generation: int = 0
    judging: int = 0
    capture: int = 0


@dataclass(slots=True, eq=False)
class TraitJob:
    """A trait in a run. `view` is kept up to date as parts are written."""

    trait: Trait
    folder: Path
    settings: RunSettings
    tokenize: Tokenize
    view: TraitView
    todo: Todo = field(default_factory=Todo)
    pending: deque[int] = field(default_factory=deque)
    """Positions to generate, in order."""
    decided: bool = False
    """Whether enough is kept (or no more rounds are allowed)."""
    finished: bool = False
    exported: Exported | None = None
    error: TraitmillError | None = None

    @property
    def name(self) -> str:
        return self.trait.name

    @property
    def settled(self) -> bool:
        return self.finished or self.error is not None

    @property
    def offset(self) -> float | None:
        """The local judge's frozen offset."""
        return self.view.manifest.judges[self.view.manifest.judge_key].get("offset")

    def unjudged(self) -> np.ndarray:
        """Positions of stored responses that need a verdict."""
        needed = self.view.responses.having("ok") & ~self.view.verdicts.having(
            "scored", "refused", "unparsable", "truncated"
        )
        return np.flatnonzero(needed)

    def uncaptured(self) -> np.ndarray:
        """Positions of stored responses that need a capture, under the setting of whose activations are captured."""
        if self.settings.capture_rows == "none":
            return np.zeros(0, np.int64)
        wanted = (
            self.view.responses.having("ok")
            if self.settings.capture_rows == "all"
            else self.view.passing()
        )
        if self.view.manifest.capture_key not in self.view.manifest.captures:
            return np.flatnonzero(
                wanted
            )  # a lost manifest took with it what the stored rows were made by
        return np.flatnonzero(wanted & ~self.view.captured())

    def lacking_pools(self, sample_ids: list[str]) -> list[list[str]]:
        """Of each sample the pools that are not stored yet: a stored row is never written again."""
        positions = self.view.plan.positions(np.array(sample_ids, "S32"))
        ok = STATUSES["activations"].index("ok")
        stored = {
            pool: (index.status[positions] == ok).tolist()
            for pool, index in self.view.activations.items()
        }
        return [
            [pool for pool in stored if not stored[pool][row]] for row in range(len(sample_ids))
        ]

    def calibration(self) -> list[int]:
        """Positions whose margins fix the local judge's offset."""
        return calibration_positions(self.view.plan, self.settings.counts.n_examples)

    def distinct_pending(self) -> list[int]:
        """Positions to generate, one of each prompt."""
        if not self.pending:
            return []
        pending = np.array(self.pending, np.int64)
        plan = self.view.plan
        prompts = np.stack([plan.polarity, plan.instruction_index, plan.question_index])[:, pending]
        return [
            int(position) for position in pending[np.unique(prompts, axis=1, return_index=True)[1]]
        ]

    def samples(self, positions: list[int]) -> list[Sample]:
        return [
            self.view.plan.sample(position, self.trait, self.tokenize) for position in positions
        ]

    def plan_work(self, *, generate: bool) -> None:
        """Set what is pending from what is stored: calibration samples first, then the plan's order."""
        status = self.view.responses
        waiting = (
            (status.status == PENDING) | status.having("failed")
            if generate
            else np.zeros(len(status.status), bool)
        )
        first = np.zeros_like(waiting)
        if self.settings.judge.is_local and self.offset is None:
            first[self.calibration()] = True
        self.pending = deque(
            int(p) for mask in (first, ~first) for p in np.flatnonzero(waiting & mask)
        )
        self.todo.generation = len(self.pending)

    def next_round(self) -> bool:
        """Add a round of samples where --min_kept asks for it; decided by finished rounds only. False when done."""
        plan, view = self.settings.counts, self.view
        kept = {
            polarity: int((view.passing() & view.side(polarity)).sum()) for polarity in POLARITIES
        }
        n_planned: dict[Polarity, int] = {}
        for polarity in POLARITIES:
            n = int(view.side(polarity).sum())
            enough = kept[polarity] >= plan.min_kept
            n_planned[polarity] = n if enough else max(n, min(n + plan.n_examples, plan.limit))
        if not plan.min_kept or n_planned == view.manifest.n_planned:
            self.decided = True
            return False
        self.view = _plan(
            self.trait,
            self.folder,
            self.settings,
            view.manifest,
            n_planned,
            self.tokenize,
            view.store,
        )
        return True

    def export(self) -> None:
        """Write the trait's files, unless they are what an export would write.

        Where kept responses were not captured, and this run was not to, the CSVs are written without activations.
        """
        if self.view.manifest.take_up_capture():
            self.view.manifest.save(self.folder)
        if not self.is_exported():
            self.exported = write_files(self.view, without_uncaptured=True)

    def freeze_offset(self, offset: float) -> None:
        """Keep the local judge's offset: later samples are measured against the same middle."""
        self.view.manifest.judges[self.view.manifest.judge_key]["offset"] = offset

    def is_exported(self) -> bool:
        """Whether the files on disk are what an export would write now."""
        files = [self.folder / "responses" / f"{polarity}.csv" for polarity in POLARITIES]
        if self.view.any_captured() and not self.view.kept_uncaptured():
            files += [
                self.folder / METADATA,
                *(self.folder / tensor_path(pool) for pool in self.view.activations),
            ]
        return self.view.manifest.export_state == export_state(self.view) and all(
            path.exists() for path in files
        )


def write_files(view: TraitView, *, without_uncaptured: bool = False) -> Exported:
    """Export, and note what from. Parameters and errors as `export_trait` has them."""
    if not without_uncaptured:
        require_captured(view)
    if (
        view.manifest.export_state
    ):  # files are replaced one by one: cut off between two, none may pass as up to date
        view.manifest.export_state = ""
        view.manifest.save(view.folder)
    exported = export_trait(view, without_uncaptured=without_uncaptured)
    view.manifest.export_state = export_state(view)
    view.manifest.save(view.folder)
    return exported


def export_state(view: TraitView) -> str:
    """A value that is the same as long as an export would write the same files."""
    facts = [
        view.manifest.settings["view"],
        view.manifest.judge_key,
        view.manifest.judges,
        view.manifest.captures,
    ]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    marks = [view.plan.ids, view.responses.status, view.verdicts.status, view.verdicts.score]
    for mark in (*marks, *(index.status for index in view.activations.values())):
        digest.update(np.ascontiguousarray(mark).tobytes())
    return digest.hexdigest()[:16]


def open_job(
    trait: Trait,
    folder: Path,
    settings: RunSettings,
    ref: ModelRef,
    tokenize: Tokenize,
    notice: Callable[[str], None],
    *,
    new_run: bool = False,
) -> TraitJob:
    """Open a trait's folder for a run (the caller holds its lock): compare settings, plan, index what is stored.

    Raises SettingsChangedError with a diff where settings that define the samples differ; nothing is written then.
    """
    manifest = load_manifest(folder)
    if (
        manifest is None
        and outputs(folder)
        and not any((folder / "parquet").glob("*/part-*.parquet"))
    ):
        notice(
            f"{trait.name}: files that no run here made were moved to {move_aside(folder, 'before', now())}"
        )
    elif manifest is not None and new_run:
        refused, _ = changes(manifest, settings, trait)
        if refused or _is_finished(trait, folder, settings, tokenize, manifest):
            notice(
                f"{trait.name}: the old run was moved to {move_aside(folder, 'run', manifest.created)}"
            )
            manifest = None
        else:  # the same command again after an interrupt: what was paid for is not paid for twice
            notice(f"{trait.name}: --new_run has begun already and goes on")
    if manifest is not None:
        refused, allowed = changes(manifest, settings, trait)
        if refused and not any((folder / "parquet" / "responses").glob("part-*.parquet")):
            manifest = None  # nothing was generated with those settings: a model that could not be loaded, say
        elif refused:
            raise refuse(folder, refused)
    if manifest is not None:
        for line in allowed:
            notice(f"{trait.name}: {line}")
    store = Store(folder, notice)
    store.parts.recover()
    key = judge_key(settings.judge, trait)
    recorded = json.loads(json.dumps(settings.recorded()))
    if manifest is None:
        manifest = Manifest(
            now(), ref.source, recorded, trait.as_json(), key, {}, versions=installed_versions()
        )
    elif key != manifest.judge_key:
        manifest.hold_judge()
    _change_capture(manifest, recorded, settings)
    manifest.settings, manifest.definition, manifest.judge_key = recorded, trait.as_json(), key
    manifest.judges.setdefault(key, _judge_facts(settings, trait))
    n_planned = dict.fromkeys(POLARITIES, settings.counts.n_examples)
    view = _plan(trait, folder, settings, manifest, n_planned, tokenize, store)
    return TraitJob(trait, folder, settings, tokenize, view)


def reopen_job(
    trait: Trait,
    folder: Path,
    settings: RunSettings,
    tokenize: Tokenize,
    notice: Callable[[str], None],
    *,
    judge: bool = True,
) -> TraitJob:
    """Open a folder that holds a run, to work on what is stored: its plan and its identity stay as they are.

    `trait` is the definition the judge prompts come from; `settings` holds the other classes' values wanted now.
    Without `judge` the verdict set in use stays. Raises UsageError where no run has been.
    """
    manifest = need_manifest(folder)
    store = Store(folder, notice)
    store.parts.recover()
    recorded = json.loads(json.dumps(settings.recorded()))
    _change_capture(manifest, recorded, settings)
    manifest.settings |= {name: recorded[name] for name in ("capture", "view")}
    if judge:
        key = judge_key(settings.judge, trait)
        if key != manifest.judge_key:
            manifest.hold_judge()
        manifest.settings["judging"], manifest.judge_key = recorded["judging"], key
        manifest.definition |= {
            name: value for name, value in trait.as_json().items() if name.endswith("_prompt")
        }
        manifest.judges.setdefault(key, _judge_facts(settings, trait))
    manifest.save(folder)
    return TraitJob(
        trait,
        folder,
        settings,
        tokenize,
        load_view(folder, manifest=manifest, store=store),
        decided=True,
    )


def export_again(
    folder: Path,
    notice: Callable[[str], None],
    *,
    threshold: float | None = None,
    csv_safe: bool | None = None,
    use_judge: str | None = None,
) -> Exported:
    """Write a trait's files from what is stored, under another view (the caller holds the lock).

    Raises UsageError, with nothing changed, where kept responses were not captured or the judge is unknown.
    """
    manifest = need_manifest(folder)
    if threshold is not None:
        manifest.settings["view"]["threshold"] = threshold
    if csv_safe is not None:
        manifest.settings["view"]["csv_safe"] = csv_safe
    if use_judge is not None:
        manifest.judge_key = _find_judge(manifest, use_judge)
        facts = manifest.judges[manifest.judge_key]
        manifest.settings["judging"] = {"model": facts["model"], "mode": facts["mode"]}
    store = Store(folder, notice)
    store.parts.recover()
    return write_files(load_view(folder, manifest=manifest, store=store))


def _change_capture(manifest: Manifest, recorded: dict[str, Any], settings: RunSettings) -> None:
    """Let other capture settings wait for their first row; a run that captures nothing changes none."""
    if settings.capture_rows == "none":
        recorded["capture"] = manifest.settings["capture"]
    elif recorded["capture"] != manifest.settings["capture"]:
        manifest.hold_capture()


def _find_judge(manifest: Manifest, name: str) -> str:
    keys = [key for key, facts in manifest.judges.items() if name in (key, facts["model"])]
    if len(keys) != 1:
        known = ", ".join(
            f"{key} ({facts['model']}, --judge_mode {facts['mode']}, of {facts.get('date', 'an unknown date')})"
            for key, facts in manifest.judges.items()
        )
        what = "names several verdict sets" if keys else "names no verdict set"
        raise UsageError(f"--use_judge {name!r} {what} of this run; give one of: {known}")
    return keys[0]


def _judge_facts(settings: RunSettings, trait: Trait) -> dict[str, Any]:
    judging = settings.judge
    return {
        "model": judging.model,
        "mode": judging.mode,
        "kind": "local_relative" if judging.is_local else "remote",
        "prompt": local_prompt(trait) if judging.is_local else trait.eval_prompt,
        "date": now(),
    }


def _plan(
    trait: Trait,
    folder: Path,
    settings: RunSettings,
    manifest: Manifest,
    n_planned: dict[Polarity, int],
    tokenize: Tokenize,
    store: Store,
) -> TraitView:
    """Make `n_planned` the trait's plan (reusing the stored one when it is the same) and index the records."""
    key = plan_key(trait, n_planned, settings.sampling)
    plan: PlanTable | None = load_plan(folder, key)
    if plan is None:
        plan = make_plan(trait, n_planned, settings.sampling, tokenize)
        save_plan(folder, key, plan)
    manifest.n_planned, manifest.plan_key = {str(side): n for side, n in n_planned.items()}, key
    manifest.save(folder)
    return load_view(folder, manifest=manifest, plan=plan, store=store)


def _is_finished(
    trait: Trait, folder: Path, settings: RunSettings, tokenize: Tokenize, manifest: Manifest
) -> bool:
    """Whether the run that a folder holds came to its end, its files written."""
    try:
        view = load_view(folder, manifest=manifest)
    except UsageError:  # its plan cannot be read, and will be made again
        return False
    return TraitJob(trait, folder, settings, tokenize, view).is_exported()
