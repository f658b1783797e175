"""The truth on disk: a trait's records in Parquet, what they are of, and what they amount to."""

from __future__ import annotations

from .choice import Choice
from .folder import (
    LOG_FOLDER,
    TraitFolder,
    check_name,
    pool_suffix,
    select_traits,
)
from .index import COUNTED, MODES, PENDING, Index
from .journal import Journal, journal_files, read_journal, replay
from .lock import lock_traits
from .parts import PartSet, ids_of, ok_ids, split_off
from .run_record import (
    SCHEMA_VERSION,
    Asked,
    CaptureFacts,
    JudgeFacts,
    Question,
    RunRecord,
    SamplingRecord,
    Selection,
    differing,
    installed_versions,
    now,
)
from .schemas import KINDS, STATUSES, Kind, Row, response_row, row_table, verdict_row
from .sets import (
    activation_sets,
    chosen,
    has_run,
    load_state,
    need_record,
    unfinished_sets,
    verdict_sets,
)
from .state import TraitState, coherence_parts, open_state

__all__ = [
    "COUNTED",
    "KINDS",
    "LOG_FOLDER",
    "MODES",
    "PENDING",
    "SCHEMA_VERSION",
    "STATUSES",
    "Asked",
    "CaptureFacts",
    "Choice",
    "Index",
    "Journal",
    "JudgeFacts",
    "Kind",
    "PartSet",
    "Question",
    "Row",
    "RunRecord",
    "SamplingRecord",
    "Selection",
    "TraitFolder",
    "TraitState",
    "activation_sets",
    "check_name",
    "chosen",
    "coherence_parts",
    "differing",
    "has_run",
    "ids_of",
    "installed_versions",
    "journal_files",
    "load_state",
    "lock_traits",
    "need_record",
    "now",
    "ok_ids",
    "open_state",
    "pool_suffix",
    "read_journal",
    "replay",
    "response_row",
    "row_table",
    "select_traits",
    "split_off",
    "unfinished_sets",
    "verdict_row",
    "verdict_sets",
]
