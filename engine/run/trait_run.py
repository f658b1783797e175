"""One trait's work in a run: what its folder holds, and what is still to do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from .. import storage
from ..capture import CaptureFacts
from ..errors import SettingsChangedError, TraitmillError
from ..judging import calibration_positions
from ..models import ModelRef, Prompts
from ..outputs import Exported, export_trait, is_exported, note_rows
from ..records import Sample
from ..settings import RunSettings
from ..storage import KINDS, Journal, JudgeFacts, Kind, TraitFolder, TraitState
from ..traits import Trait
from .backends import Stage
from .wanted import asked_of_capture, grown_counts, planned, refuse_other_capture


@dataclass(slots=True, eq=False)
class TraitRun:
    """A trait in a run. `state` is kept up to date as parts are written."""

    trait: Trait
    folder: TraitFolder
    settings: RunSettings
    tokenize: Prompts
    state: TraitState
    journals: dict[Kind, Journal] = field(default_factory=dict)
    done: Counter[Stage] = field(default_factory=Counter)
    """Records there are of each stage, counted as they come."""
    decided: bool = False
    """Whether enough is kept, or no more rounds are allowed."""
    finished: bool = False
    exports: bool = True
    """Whether files are written at the end."""
    exported: Exported | None = None
    error: TraitmillError | None = None
    _saved: JudgeFacts | None = None
    _captured: frozenset[bytes] = frozenset()
    """Ids that were captured before this run, where what is kept is captured."""
    _incoherent: frozenset[bytes] = frozenset()
    """Ids that are known not to be coherent enough, where what is kept is captured."""
    _halves: dict[tuple[int, int, int], bytes] = field(default_factory=dict)
    """Ids that pass and whose twins have not, by instruction, question and repeat."""

    def __post_init__(self) -> None:
        for kind in ("responses", "verdicts"):
            self.journals[kind] = Journal(self.state.parts[kind].folder)
        self.count()

    @property
    def name(self) -> str:
        return self.trait.name

    @property
    def settled(self) -> bool:
        return self.finished or self.error is not None

    # --- what is to do ---

    def count(self) -> None:
        """Count what is stored."""
        state = self.state
        again = state.responses.pending() | state.responses.having("failed")
        self.done["generation"] = int((~again).sum())
        self._halves = self._waiting_halves()
        ok = state.responses.having("ok")
        self.done["judging"] = int(ok.sum()) - len(self.unjudged())
        self.done["capture"] = int((ok & state.tried()).sum())
        if self.settings.capture_rows == "kept":
            self._captured = frozenset(state.plan.ids[state.tried()].tolist())
            self._incoherent = frozenset(state.plan.ids[state.incoherent()].tolist())

    def ungenerated(self) -> list[int]:
        """Return positions to generate: samples that fix a local judge's offset, then the plan's
        order."""
        status = self.state.responses
        waiting = status.pending() | status.having("failed")
        first = np.zeros_like(waiting)
        if self.settings.judge.is_local and self.offset is None:
            first[self.calibration()] = True
        return [
            *np.flatnonzero(waiting & first).tolist(),
            *np.flatnonzero(waiting & ~first).tolist(),
        ]

    def unjudged(self) -> np.ndarray:
        """Return positions of stored responses that need a verdict."""
        wanted = self.state.unjudged()
        if self.settings.limits.retry:
            wanted = wanted | (self.state.responses.having("ok") & self.state.verdicts.given_up())
        return np.flatnonzero(wanted)

    def uncaptured(self) -> np.ndarray:
        """Return positions of stored responses that are to be captured."""
        rows = self.settings.capture_rows
        if rows == "none":
            return np.zeros(0, np.int64)
        wanted = self.state.passing_so_far()
        if rows == "all":
            wanted = self.state.responses.having("ok")
        return np.flatnonzero(wanted & ~self.state.tried())

    def newly_kept(self, sample: Sample, score: float) -> list[bytes]:
        """Return the ids to capture now that a sample has its score, those of a pair together."""
        passing = [sample.id.encode()]
        if passing[0] in self._incoherent or not self.state.choice.passes(sample.polarity, score):
            return []
        if self.settings.paired:
            place = self.state.plan.place_of(passing[0])
            twin = self._halves.pop(place, None)
            if twin is None:
                self._halves[place] = sample.id.encode()
                return []
            passing.insert(0, twin)
        # Others were captured under another judge or threshold, or by an earlier run.
        return [id_ for id_ in passing if id_ not in self._captured]

    def _waiting_halves(self) -> dict[tuple[int, int, int], bytes]:
        if not self.settings.paired:
            return {}
        state, plan = self.state, self.state.plan
        alone = state.passing_alone() & ~state.incoherent()
        alone = np.flatnonzero(alone & ~state.passing_so_far())
        places = zip(
            plan.instruction_index[alone].tolist(),
            plan.question_index[alone].tolist(),
            plan.rollout[alone].tolist(),
            strict=True,
        )
        return dict(zip(places, plan.ids[alone].tolist(), strict=True))

    def samples(self, positions: list[int]) -> list[Sample]:
        """Return the samples at some positions of the plan."""
        return [self.state.plan.sample(place, self.trait, self.tokenize) for place in positions]

    def prompt_lengths(self) -> list[int]:
        """Return the tokens of each distinct prompt that is still to be generated from."""
        positions = np.array(self.ungenerated(), np.int64)
        plan = self.state.plan
        columns = [plan.polarity, plan.instruction_index, plan.question_index]
        prompts = np.stack(columns)[:, positions]
        first = np.unique(prompts, axis=1, return_index=True)[1]
        return [len(s.prompt_token_ids) for s in self.samples(positions[first].tolist())]

    # --- rounds of min_kept ---

    @property
    def may_grow(self) -> bool:
        """Whether `min_kept` may yet ask for more samples."""
        return bool(self.settings.counts.min_kept) and not self.decided

    def next_round(self) -> bool:
        """Add a round of samples where `min_kept` asks for it; return whether one was added.

        Decided by finished rounds only.
        """
        n_planned = grown_counts(self.settings, self.state)
        if n_planned == self.state.plan.n_planned:
            self.decided = True
            return False
        plan = planned(
            self.trait,
            self.settings,
            n_planned,
            self.tokenize,
            self.state.plan,
            thinks=self.state.record.thinks,
        )
        plan.save(self.folder.plan)
        grown = self.state.with_plan(plan)
        grown.choice = self.state.choice  # as it is by now: capture may have begun meanwhile
        self.state = grown
        self.count()
        return True

    @property
    def falls_short(self) -> bool:
        """Whether a round would be added by the verdicts there are; more of them only keep more."""
        return grown_counts(self.settings, self.state) != self.state.plan.n_planned

    # --- the judge ---

    @property
    def judge(self) -> JudgeFacts:
        """The judge in use."""
        if self.state.judge is None:
            raise ValueError("the run has no judge")
        return self.state.judge

    @property
    def offset(self) -> float | None:
        """The logit difference that a local judge's scores are measured from, once it is fixed."""
        return self.state.judge.offset if self.state.judge else None

    def learn(self, **facts: object) -> None:
        """Note what was learned of the judge: `profile` and `endpoint`, or `offset`."""
        self.state.choose(judge=self.judge.model_copy(update=facts))

    def begin_judging(self, judge: ModelRef) -> None:
        """Note which local model judges. Raise SettingsChangedError where its files are others than
        those that judged so far."""
        before, now = self.judge.revision, "" if judge.hub_revision else judge.revision
        if before and now and before != now:
            where = self.folder.verdicts(self.state.judge_key)
            raise SettingsChangedError(
                f"the judge {judge.name} has changed since it judged {self.name} ({before} -> "
                f"{now}), and all its scores are placed by one offset; restore its files, or move "
                f"{where} away to have all judged anew"
            )
        if now != before:
            self.learn(revision=now or before)

    def calibration(self) -> list[int]:
        """Return positions of the samples that fix a local judge's offset."""
        return calibration_positions(self.state.plan, self.settings.counts.n_examples)

    @property
    def judge_is_saved(self) -> bool:
        """Whether what is known of the judge stands beside its verdicts."""
        return self._saved is self.judge

    def save_judge(self) -> None:
        """Write what the verdict set is of, unless the file says so already."""
        judge = self.judge
        judge.save(self.folder.verdicts(self.state.judge_key) / "facts.json")
        self._saved = judge

    # --- capture ---

    def begin_capture(self, loaded: CaptureFacts, placement: str) -> None:
        """Note what captures. Raise SettingsChangedError where the stored rows were made otherwise.

        `auto` depends on the device: one activation set must not hold rows of two dtypes or
        attention implementations.
        """
        known = self.state.capture
        if known is not None and known.layers:
            refuse_other_capture(self.folder, known, loaded)
            pools = tuple(dict.fromkeys([*known.pools, *self.settings.capture.pools]))
            self.state.choose(capture=known.model_copy(update={"pools": pools}))
            return
        capture = self.settings.capture
        self.state.choose(
            capture=storage.CaptureFacts(
                asked=asked_of_capture(capture),
                blocks=self.settings.execution.blocks or "",
                pools=capture.pools,
                layers=loaded.layers,
                n_layers=loaded.n_layers,
                hidden_dim=loaded.hidden_dim,
                dtype=loaded.dtype,
                attention=loaded.attention,
                device=loaded.device,
                placement=placement,
                batch_size=self.settings.execution.batch_size or "auto",
                versions=storage.installed_versions(("torch", "transformers")),
                begun=storage.now(),
            )
        )

    def checked(self, self_check: dict[str, object]) -> None:
        """Note what the self-check has seen."""
        if self.state.capture is not None:
            update = {"self_check": dict(self_check)}
            self.state.choose(capture=self.state.capture.model_copy(update=update))

    def save_capture(self) -> None:
        """Write what the activation set is of, unless the file says so already."""
        if self.state.capture is not None and self.state.capture_key is not None:
            folder = self.folder.activations(self.state.capture_key)
            self.state.capture.save(folder / "facts.json")

    # --- the end ---

    def finish(self) -> None:
        """Write the trait's files, unless they are what an export would write; merge small parts.

        Where kept responses were not captured, and this run was not to, there are CSVs alone.
        """
        if self.exports and not is_exported(self.state):
            self.exported = export_trait(self.state, without_uncaptured=True)
        else:
            note_rows(self.state)
        for kind in KINDS:
            self.state.parts[kind].compact()
        self.finished = True
