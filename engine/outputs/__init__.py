"""The documented files: written from the records, read by everything after them."""

from __future__ import annotations

from .audit import (
    Agreement,
    audit_table,
    exported_table,
    read_agreement,
    says_yes,
    text_mark,
)
from .export import Exported, export_trait, is_exported, note_rows
from .judged import judge_summary, measurement
from .load import Activations, load_activations, load_tensor
from .metadata import LAYER_CONVENTION, POOLING, Metadata
from .ready import coherence_step, refuse_lost
from .stale import PAGE_MARK, note_stale, noted_stale, renewing, stale_files

__all__ = [
    "LAYER_CONVENTION",
    "PAGE_MARK",
    "POOLING",
    "Activations",
    "Agreement",
    "Exported",
    "Metadata",
    "audit_table",
    "coherence_step",
    "export_trait",
    "exported_table",
    "is_exported",
    "judge_summary",
    "load_activations",
    "load_tensor",
    "measurement",
    "note_rows",
    "note_stale",
    "noted_stale",
    "read_agreement",
    "refuse_lost",
    "renewing",
    "says_yes",
    "stale_files",
    "text_mark",
]
