"""The truth on disk: a trait's records in Parquet, what they are of, and what they amount to."""

from __future__ import annotations

from .folder import TraitFolder, check_name, holds_rows, pool_suffix
from .index import COUNTED, MODES
from .journal import Journal, journaled, replay
from .lock import lock_traits
from .parts import PartSet, ok_ids, split_off
from .run_record import (
    SCHEMA_VERSION,
    Asked,
    CaptureFacts,
    Choice,
    JudgeFacts,
    Question,
    RunRecord,
    SamplingRecord,
    Selection,
    Stored,
    differing,
    installed_versions,
    made_by,
    now,
)
from .schemas import KINDS, STATUSES, Kind, response_row, row_table, verdict_row
from .selection import select, select_traits
from .sets import (
    activation_sets,
    all_sets,
    chosen,
    has_run,
    load_state,
    lost_rows,
    need_record,
    require_facts,
    runs_of,
    unfinished_sets,
    verdict_sets,
)
from .state import TraitState, coherence_parts, open_state

__all__ = [
    "COUNTED",
    "KINDS",
    "MODES",
    "SCHEMA_VERSION",
    "STATUSES",
    "Asked",
    "CaptureFacts",
    "Choice",
    "Journal",
    "JudgeFacts",
    "Kind",
    "PartSet",
    "Question",
    "RunRecord",
    "SamplingRecord",
    "Selection",
    "Stored",
    "TraitFolder",
    "TraitState",
    "activation_sets",
    "all_sets",
    "check_name",
    "chosen",
    "coherence_parts",
    "differing",
    "has_run",
    "holds_rows",
    "installed_versions",
    "journaled",
    "load_state",
    "lock_traits",
    "lost_rows",
    "made_by",
    "need_record",
    "now",
    "ok_ids",
    "open_state",
    "pool_suffix",
    "replay",
    "require_facts",
    "response_row",
    "row_table",
    "runs_of",
    "select",
    "select_traits",
    "split_off",
    "unfinished_sets",
    "verdict_row",
    "verdict_sets",
]
