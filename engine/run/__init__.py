"""The run: one pipeline over some traits, and the calls that start it."""

from __future__ import annotations

from .backends import STAGES, Backends, Capturer, Clock, Generator, Judge, Stage
from .commands import ExportResult, OpenBackends, capture, export, generate, judge
from .folder_settings import check_judge, scale_remarks
from .loading import Work, open_backends
from .log import redirected
from .per_token import TokenEstimate, capture_tokens
from .progress import Listener, Progress, RunResult, TraitResult

__all__ = [
    "STAGES",
    "Backends",
    "Capturer",
    "Clock",
    "ExportResult",
    "Generator",
    "Judge",
    "Listener",
    "OpenBackends",
    "Progress",
    "RunResult",
    "Stage",
    "TokenEstimate",
    "TraitResult",
    "Work",
    "capture",
    "capture_tokens",
    "check_judge",
    "export",
    "generate",
    "judge",
    "open_backends",
    "redirected",
    "scale_remarks",
]
