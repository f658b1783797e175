"""What a trait's records amount to under the settings in force: statuses, scores, what is kept and captured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..records import POLARITIES, Polarity
from ..traits.plan import PlanTable, load_plan
from .index import PENDING, Index, Store
from .parts import ids_of
from .run_record import Manifest, need_manifest

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, slots=True, eq=False)
class TraitView:
    """One trait's plan with the rows that count. Boolean masks are `[n_planned]`, in plan order."""

    folder: Path
    manifest: Manifest
    store: Store
    plan: PlanTable
    responses: Index
    verdicts: Index
    activations: dict[str, Index]
    """By pool, for the capture settings in force."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def threshold(self) -> float:
        return float(self.manifest.settings["view"]["threshold"])

    def side(self, polarity: Polarity) -> np.ndarray:
        """Mask of one polarity."""
        return np.asarray(self.plan.polarity == POLARITIES.index(polarity))

    def passing(self) -> np.ndarray:
        """Mask of scored responses on the right side of the threshold: pos >= t, neg < t."""
        scored = self.responses.having("ok") & self.verdicts.having("scored")
        high = self.verdicts.score >= self.threshold
        return np.asarray(scored & (high == self.side("pos")))

    def captured(self) -> np.ndarray:
        """Mask of responses whose every pool is stored."""
        return np.asarray(
            np.all([index.having("ok") for index in self.activations.values()], axis=0)
        )

    def capture_failed(self) -> np.ndarray:
        """Mask of responses with a pool that could not be stored, and was not since."""
        return np.asarray(
            np.any([index.having("failed") for index in self.activations.values()], axis=0)
        )

    def kept_uncaptured(self) -> int:
        """How many kept responses were never captured."""
        return int((self.passing() & ~self.capture_failed() & ~self.captured()).sum())

    def any_captured(self) -> bool:
        return any((index.status != PENDING).any() for index in self.activations.values())

    def scores(self, polarity: Polarity) -> np.ndarray:
        """Scores of one side's scored responses, kept or not."""
        return np.asarray(self.verdicts.score[self.side(polarity) & self.verdicts.having("scored")])

    def cut_off(self) -> np.ndarray:
        """Mask of responses that reached max_new_tokens, and were taken as they are."""
        out = np.zeros(len(self.plan), bool)
        for table in self.store.columns("responses", ["sample_id", "finish_reason"]):
            ids = ids_of(table)[table["finish_reason"].to_numpy(zero_copy_only=False) == "length"]
            positions = self.plan.positions(ids)
            out[positions[positions >= 0]] = True
        return np.asarray(out & self.responses.having("ok"))

    def counts(self) -> dict[str, Any]:
        """Counted, per polarity: planned, responses and verdicts by status, cut off, captured, kept."""
        out: dict[str, Any] = {}
        passing, captured, cut_off = self.passing(), self.captured(), self.cut_off()
        ok = self.responses.having("ok")
        for polarity in POLARITIES:
            side = self.side(polarity)
            verdicts = {
                name: int((side & self.verdicts.having(name)).sum())
                for name in self.verdicts.counts()
                if name != "pending"
            }
            out[polarity] = {
                "planned": int(side.sum()),
                "responses": {
                    "pending": int((side & (self.responses.status == PENDING)).sum()),
                    **{
                        n: int((side & self.responses.having(n)).sum())
                        for n in self.responses.counts()
                        if n != "pending"
                    },
                },
                "verdicts": {
                    "unjudged": int((side & ok & (self.verdicts.status == PENDING)).sum()),
                    **verdicts,
                },
                "cut_off": int((side & cut_off).sum()),
                "captured": int((side & captured).sum()),
                "capture_failed": int((side & self.capture_failed()).sum()),
                "kept": int((side & passing).sum()),
            }
        return out


def load_view(
    folder: Path,
    *,
    manifest: Manifest | None = None,
    plan: PlanTable | None = None,
    store: Store | None = None,
) -> TraitView:
    """Index a trait's records. Raises UsageError where no run has been."""
    manifest = manifest or need_manifest(folder)
    plan = plan or load_plan(folder, manifest.plan_key)
    if plan is None:
        raise UsageError(
            f"{folder} has no readable plan; run traitmill generate on it again (nothing is redone)"
        )
    store = store or Store(folder)
    return TraitView(
        folder=folder,
        manifest=manifest,
        store=store,
        plan=plan,
        responses=store.index("responses", plan),
        verdicts=store.index("verdicts", plan, judge_key=manifest.judge_key),
        activations={
            pool: store.index("activations", plan, capture_key=manifest.capture_key, pool=pool)
            for pool in manifest.settings["capture"]["pools"]
        },
    )


def audit_table(folder: Path) -> pl.DataFrame:
    """Every generated response of the plan with its verdict, for reading by eye.

    Columns: sample_id, polarity, instruction_index, question_index, rollout, instruction, question, response,
    finish_reason, response_status, verdict_status (null when unjudged), score (null unless scored), kept.
    """
    import polars as pl
    import pyarrow as pa

    view = load_view(folder)
    positions = np.flatnonzero(view.responses.status != PENDING)
    columns = [
        "sample_id",
        "polarity",
        "instruction_index",
        "question_index",
        "rollout",
        "instruction",
        "question",
    ]
    columns += ["response", "finish_reason", "status"]
    tables = list(view.store.tables(view.responses, positions, columns))
    frame = (
        pl.from_arrow(pa.concat_tables(tables))
        if tables
        else pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    )
    names = np.array([*_verdict_names(view), ""])
    status = names[view.verdicts.status[positions]]
    score = view.verdicts.score[positions]
    return frame.rename({"status": "response_status"}).with_columns(
        pl.Series("verdict_status", [name or None for name in status], dtype=pl.String),
        pl.Series("score", score).fill_nan(None),
        pl.Series("kept", view.passing()[positions]),
    )


def _verdict_names(view: TraitView) -> list[str]:
    return [name for name in view.verdicts.counts() if name != "pending"]
