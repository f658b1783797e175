"""The documented files: written from the records, read by everything after them."""

from __future__ import annotations

from .agreement import Agreement, read_agreement
from .audit import audit_table
from .csv_files import format_score
from .export import (
    Exported,
    digest,
    export_trait,
    is_exported,
    refuse_lost,
)
from .judged import judge_summary, judge_usage, measurement
from .load import MIN_ROWS, Activations, load_activations, load_tensor
from .metadata import CSV_COLUMNS, LAYER_CONVENTION, POOLING, Metadata
from .stale import PAGE_MARK, note_stale, noted_stale, stale_files

__all__ = [
    "CSV_COLUMNS",
    "LAYER_CONVENTION",
    "MIN_ROWS",
    "PAGE_MARK",
    "POOLING",
    "Activations",
    "Agreement",
    "Exported",
    "Metadata",
    "audit_table",
    "digest",
    "export_trait",
    "format_score",
    "is_exported",
    "judge_summary",
    "judge_usage",
    "load_activations",
    "load_tensor",
    "measurement",
    "note_stale",
    "noted_stale",
    "read_agreement",
    "refuse_lost",
    "stale_files",
]
