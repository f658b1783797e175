"""The run: one pipeline over some traits, and the calls that start it."""

from __future__ import annotations

from .authoring import check_traits, new_trait
from .backends import STAGES, Backends, Clock, Judge, Stage
from .commands import capture, generate, judge, model_to_be, settings_of
from .ending import on_thread
from .exporting import ExportResult, export
from .folder_settings import check_judge, recorded_trait, resolve, scale_remarks
from .importing import Imported, import_traits
from .loading import Work, open_backends
from .log import append, new_log, redirected
from .per_token import TokenEstimate, capture_tokens
from .phases import loading_phase
from .pipeline import Pipeline
from .prepare import recovered
from .previewing import Preview, PreviewRow, preview
from .progress import Listener, Progress, RunResult, TraitResult
from .remembered import STEERING, shown_value, wanted_before
from .running import OpenBackends
from .selection import check_machine, generating_model
from .trait_run import TraitRun
from .wanted import Wanted

__all__ = [
    "STAGES",
    "STEERING",
    "Backends",
    "Clock",
    "ExportResult",
    "Imported",
    "Judge",
    "Listener",
    "OpenBackends",
    "Pipeline",
    "Preview",
    "PreviewRow",
    "Progress",
    "RunResult",
    "Stage",
    "TokenEstimate",
    "TraitResult",
    "TraitRun",
    "Wanted",
    "Work",
    "append",
    "capture",
    "capture_tokens",
    "check_judge",
    "check_machine",
    "check_traits",
    "export",
    "generate",
    "generating_model",
    "import_traits",
    "judge",
    "loading_phase",
    "model_to_be",
    "new_log",
    "new_trait",
    "on_thread",
    "open_backends",
    "preview",
    "recorded_trait",
    "recovered",
    "redirected",
    "resolve",
    "scale_remarks",
    "settings_of",
    "shown_value",
    "wanted_before",
]
