"""traitmill's engine: trait definitions in; judged responses, activations and vectors out.

The face is lazy, so that importing it is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import threads as threads  # forks are watched from here on
from .errors import (
    AccessError,
    DefinitionError,
    EngineDiedError,
    ExitCode,
    FailedSamplesError,
    LockedError,
    NothingKeptError,
    ResourceError,
    SelfCheckError,
    SettingsChangedError,
    StoppedError,
    TraitmillError,
    UsageError,
)
from .settings import (
    CaptureSettings,
    Execution,
    JudgeLimits,
    JudgeSettings,
    RunSettings,
    SampleCounts,
    Sampling,
)

if TYPE_CHECKING:
    from .outputs import load_activations
    from .projection import project
    from .report import write_report
    from .run import (
        Listener,
        RunResult,
        capture,
        check_traits,
        export,
        generate,
        import_traits,
        judge,
        new_trait,
        preview,
    )
    from .steering import steer
    from .storage import load_state
    from .vectors import (
        StaleWarning,
        evaluate_vectors,
        export_vectors,
        fit_experiment,
        fit_vectors,
        load_vector,
        load_vectors,
    )

_LAZY = {
    "Listener": "run",
    "RunResult": "run",
    "capture": "run",
    "check_traits": "run",
    "export": "run",
    "generate": "run",
    "import_traits": "run",
    "judge": "run",
    "new_trait": "run",
    "preview": "run",
    "StaleWarning": "vectors",
    "evaluate_vectors": "vectors",
    "export_vectors": "vectors",
    "fit_experiment": "vectors",
    "fit_vectors": "vectors",
    "load_activations": "outputs",
    "load_state": "storage",
    "load_vector": "vectors",
    "load_vectors": "vectors",
    "project": "projection",
    "steer": "steering",
    "write_report": "report",
}

__all__ = [
    "AccessError",
    "CaptureSettings",
    "DefinitionError",
    "EngineDiedError",
    "Execution",
    "ExitCode",
    "FailedSamplesError",
    "JudgeLimits",
    "JudgeSettings",
    "Listener",
    "LockedError",
    "NothingKeptError",
    "ResourceError",
    "RunResult",
    "RunSettings",
    "SampleCounts",
    "Sampling",
    "SelfCheckError",
    "SettingsChangedError",
    "StaleWarning",
    "StoppedError",
    "TraitmillError",
    "UsageError",
    "capture",
    "check_traits",
    "evaluate_vectors",
    "export",
    "export_vectors",
    "fit_experiment",
    "fit_vectors",
    "generate",
    "import_traits",
    "judge",
    "load_activations",
    "load_state",
    "load_vector",
    "load_vectors",
    "new_trait",
    "preview",
    "project",
    "steer",
    "write_report",
]


def find(name: str) -> Any:
    """Return what the face offers under a name, loading what it needs. Raise AttributeError."""
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    if name in __all__:
        return globals()[name]
    raise AttributeError(f"module 'traitmill' has no attribute {name!r}")


def __getattr__(name: str) -> Any:
    return find(name)
