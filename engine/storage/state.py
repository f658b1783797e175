"""What a trait's records amount to: statuses, scores, what is kept and captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..records import POLARITIES, Activation, Polarity, Response
from ..traits import Plan
from .folder import TraitFolder
from .index import Index, build_index, empty_index, note
from .parts import PartSet, untold
from .run_record import CaptureFacts, Choice, JudgeFacts, RunRecord
from .schemas import KINDS, RESPONSE_SCHEMA, STATUSES, Kind, activation_table, response_of


@dataclass(slots=True, eq=False)
class TraitState:
    """One trait's plan with the rows that count. Boolean masks are `[n_planned]`, in plan order."""

    folder: TraitFolder
    record: RunRecord
    plan: Plan
    choice: Choice
    parts: Mapping[Kind, PartSet]
    responses: Index
    verdicts: Index
    activations: dict[str, Index]
    """By pool."""
    coherence: Index | None = None
    """Verdicts on coherence, where they are looked at."""
    coherence_set: PartSet | None = None

    def __repr__(self) -> str:
        kept = {side: n["kept"] for side, n in self.counts().items()}
        planned = f"{len(self.plan)} planned"
        return f"TraitState({self.name}: {planned}, {kept['pos']} pos + {kept['neg']} neg kept)"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def judge_key(self) -> str:
        return self.choice.judge_key

    @property
    def judge(self) -> JudgeFacts | None:
        return self.choice.judge

    @property
    def capture_key(self) -> str | None:
        return self.choice.capture_key

    @property
    def capture(self) -> CaptureFacts | None:
        return self.choice.capture

    # --- masks ---

    def side(self, polarity: Polarity) -> np.ndarray:
        """Return the mask of one polarity."""
        return np.asarray(self.plan.polarity == POLARITIES.index(polarity))

    def passing_alone(self) -> np.ndarray:
        """Return the mask of scored responses on their side of the threshold: pos >= t, neg < t."""
        scored = self.responses.having("ok") & self.verdicts.having("scored")
        score, limits = self.verdicts.score, self.choice.thresholds
        right = np.where(self.side("pos"), score >= limits["pos"], score < limits["neg"])
        return np.asarray(scored & right)

    def passing(self) -> np.ndarray:
        """Return the mask of responses that pass, in pairs where pairs are asked for."""
        return self.in_pairs(self.passing_alone() & self.coherent())

    def exportable(self) -> np.ndarray:
        """Return the mask of responses that pass, and whose capture did not fail."""
        alone = self.passing_alone() & self.coherent()
        return self.in_pairs(alone & ~self.capture_failed() & ~self.unpoolable())

    def passing_so_far(self) -> np.ndarray:
        """Return the mask of responses that pass where one not asked about counts as coherent."""
        return self.in_pairs(self.passing_alone() & ~self.incoherent())

    def coherent(self) -> np.ndarray:
        """Return the mask of responses that are coherent enough; all where none are asked to be."""
        least = self.choice.coherence
        if least is None or self.coherence is None:
            return np.ones(len(self.plan), bool)
        return np.asarray(self.coherence.having("scored") & (self.coherence.score >= least))

    def incoherent(self) -> np.ndarray:
        """Return the mask of responses that are known not to be coherent enough."""
        if self.coherence is None:
            return np.zeros(len(self.plan), bool)
        open_ = self.coherence.having("failed") & ~self.coherence.given_up()
        return np.asarray(~self.coherent() & ~self.coherence.pending() & ~open_)

    def coherence_unknown(self) -> int:
        """Return how many responses pass but for a score of their coherence, which they lack."""
        if self.choice.coherence is None or self.coherence is None:
            return 0
        return int((self.passing_alone() & self.coherence.pending()).sum())

    def in_pairs(self, mask: np.ndarray) -> np.ndarray:
        """Return the part of a mask whose twins are in it too; all of it where none are asked."""
        if not self.choice.paired:
            return mask
        twins = self.plan.twins
        return np.asarray(mask & (twins >= 0) & mask[twins])

    def unjudged(self) -> np.ndarray:
        """Return the mask of responses that a judge is still to answer for."""
        answered = self.verdicts.having("scored", "refused", "unparsable", "truncated")
        over = answered | self.verdicts.given_up()
        return np.asarray(self.responses.having("ok") & ~over)

    def captured(self) -> np.ndarray:
        """Return the mask of responses whose every pool is stored."""
        return self._pools(np.all, "ok")

    def tried(self) -> np.ndarray:
        """Return the mask of responses whose every pool is stored or cannot be."""
        return self._pools(np.all, "ok", "absent")

    def capture_failed(self) -> np.ndarray:
        """Return the mask of responses with a pool that could not be stored."""
        return self._pools(np.any, "failed")

    def unpoolable(self) -> np.ndarray:
        """Return the mask of responses without a token of some pool, such as of a thought."""
        return self._pools(np.any, "absent")

    def _pools(self, which: Callable[..., np.ndarray], *statuses: str) -> np.ndarray:
        found = [index.having(*statuses) for index in self.activations.values()]
        return np.asarray(which(found, axis=0)) if found else np.zeros(len(self.plan), bool)

    def kept_uncaptured(self) -> int:
        """Return how many kept responses were never captured."""
        return int((self.passing() & ~self.capture_failed() & ~self.tried()).sum())

    def any_captured(self) -> bool:
        return any(not index.pending().all() for index in self.activations.values())

    def scores(self, polarity: Polarity) -> np.ndarray:
        """Return the scores of one side's scored responses, kept or not."""
        return np.asarray(self.verdicts.score[self.side(polarity) & self.verdicts.having("scored")])

    def counts(self) -> dict[str, Any]:
        """Return counts by polarity: planned, responses and verdicts by status, captured, kept."""
        return {polarity: self._side_counts(polarity) for polarity in POLARITIES}

    def _side_counts(self, polarity: Polarity) -> dict[str, Any]:
        side = self.side(polarity)

        def count(mask: np.ndarray) -> int:
            return int((side & mask).sum())

        ok = self.responses.having("ok")
        responses = {name: count(self.responses.having(name)) for name in STATUSES["responses"]}
        verdicts = {name: count(self.verdicts.having(name)) for name in STATUSES["verdicts"]}
        return {
            "planned": int(side.sum()),
            "responses": {"pending": count(self.responses.pending()), **responses},
            "verdicts": {"unjudged": count(ok & self.verdicts.pending()), **verdicts},
            "cut_off": count(ok & self.responses.facts["cut_off"]),
            "captured": count(self.captured()),
            "capture_failed": count(self.capture_failed()),
            "kept": count(self.exportable()),
        }

    # --- rows ---

    def tables(
        self, kind: Kind, positions: np.ndarray, columns: Sequence[str], pool: str = ""
    ) -> Iterator[pa.Table]:
        """Yield columns of the rows of `positions`, in that order, a few hundred at a time.

        Raise ResourceError when a part's data is damaged.
        """
        index = {"responses": self.responses, "verdicts": self.verdicts}.get(kind)
        if index is None:
            index = self.activations[pool]
        return index.tables(self.parts[kind], positions, columns)

    def read_responses(self, positions: np.ndarray) -> Iterator[Response]:
        """Yield the stored responses of `positions`, in that order."""
        for table in self.tables("responses", positions, RESPONSE_SCHEMA.names):
            for row in table.to_pylist():
                yield response_of(self.name, row)

    def note(self, kind: Kind, path: Path, table: pa.Table) -> None:
        """Bring the indexes up to date with a part just written."""
        index = {"responses": self.responses, "verdicts": self.verdicts}.get(kind)
        if index is not None:
            note(index, self.plan, path, table, np.arange(table.num_rows))
        else:
            pools = np.asarray(table["pool"].to_pylist())
            for pool, index in self.activations.items():
                rows = np.flatnonzero(pools == pool)
                note(index, self.plan, path, table.take(rows), rows)

    def activation_rows(self, activations: Sequence[Activation]) -> pa.Table:
        """Return the table of the pools that are not stored yet: no stored row is written again."""
        facts = self.capture
        if facts is None or self.capture_key is None:
            raise ValueError("activations have no facts yet")
        positions = self.plan.positions(np.array([a.sample_id for a in activations], "S32"))
        stored = {pool: index.having("ok", "absent") for pool, index in self.activations.items()}
        rows = []
        for activation, position in zip(activations, positions, strict=True):
            lacking = [pool for pool in stored if position < 0 or not stored[pool][position]]
            rows += [(activation, pool) for pool in lacking]
        return activation_table(self.capture_key, facts.layers, facts.hidden_dim, rows)

    # --- what is wrong ---

    @property
    def sets(self) -> dict[str, PartSet]:
        """The record sets whose rows the files show: by kind, and `coherence`."""
        found: dict[str, PartSet] = {kind: self.parts[kind] for kind in KINDS}
        if self.coherence_set is not None:
            found["coherence"] = self.coherence_set
        return found

    def n_rows(self) -> dict[str, int]:
        """Return the stored rows of each set."""
        return {name: parts.n_rows() for name, parts in self.sets.items()}

    # --- changes ---

    def with_plan(self, plan: Plan) -> TraitState:
        """Return the state under another plan."""
        return _indexed(self.folder, self.record, plan, self.choice, self.parts)

    def choose(self, **changes: Any) -> None:
        """Change what is known of the sets in use: `judge`, `capture`."""
        self.choice = replace(self.choice, **changes)


def open_state(
    folder: TraitFolder,
    record: RunRecord,
    plan: Plan,
    choice: Choice,
    notice: Callable[[str], None] = untold,
    *,
    owned: bool = False,
) -> TraitState:
    """Index a trait's records. `owned` as PartSet has it."""
    folders = {
        "responses": folder.responses,
        "verdicts": folder.verdicts(choice.judge_key),
        "activations": folder.activations(choice.capture_key or "none"),
    }
    parts: dict[Kind, PartSet] = {
        kind: PartSet(folders[kind], kind, folder.quarantine, notice, owned=owned) for kind in KINDS
    }
    return _indexed(folder, record, plan, choice, parts)


def _indexed(
    folder: TraitFolder,
    record: RunRecord,
    plan: Plan,
    choice: Choice,
    parts: Mapping[Kind, PartSet],
) -> TraitState:
    activations = parts["activations"]
    if choice.capture_key is None:
        captured = {pool: empty_index("activations", len(plan)) for pool in choice.pools}
    else:
        captured = {pool: build_index(activations, plan, pool) for pool in choice.pools}
    coherence, beside = None, None
    if choice.coherence_key is not None and choice.coherence is not None:
        beside = coherence_parts(folder, choice.coherence_key)
        coherence = build_index(beside, plan)
    return TraitState(
        folder=folder,
        record=record,
        plan=plan,
        choice=choice,
        parts=parts,
        responses=build_index(parts["responses"], plan),
        verdicts=build_index(parts["verdicts"], plan),
        activations=captured,
        coherence=coherence,
        coherence_set=beside,
    )


def coherence_parts(folder: TraitFolder, key: str, *, owned: bool = False) -> PartSet:
    """Return the verdicts on coherence under a key, beside those of the judge in use."""
    where = folder.verdicts(key)
    return PartSet(where, "verdicts", folder.quarantine, untold, owned=owned)
