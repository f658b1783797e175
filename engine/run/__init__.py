"""The run: one pipeline over some traits, and the calls that start it."""

from __future__ import annotations

from .authoring import check_traits, new_trait
from .backends import STAGES, Backends, Capturer, Clock, Generator, Judge, Stage
from .commands import OpenBackends, capture, generate, judge, settings_of
from .exporting import ExportResult, export
from .folder_settings import check_judge, scale_remarks
from .importing import Imported, import_traits
from .loading import Work, open_backends
from .log import append, redirected
from .per_token import TokenEstimate, capture_tokens
from .previewing import Preview, PreviewRow, preview
from .progress import Listener, Progress, RunResult, TraitResult

__all__ = [
    "STAGES",
    "Backends",
    "Capturer",
    "Clock",
    "ExportResult",
    "Generator",
    "Imported",
    "Judge",
    "Listener",
    "OpenBackends",
    "Preview",
    "PreviewRow",
    "Progress",
    "RunResult",
    "Stage",
    "TokenEstimate",
    "TraitResult",
    "Work",
    "append",
    "capture",
    "capture_tokens",
    "check_judge",
    "check_traits",
    "export",
    "generate",
    "import_traits",
    "judge",
    "new_trait",
    "open_backends",
    "preview",
    "redirected",
    "scale_remarks",
    "settings_of",
]
