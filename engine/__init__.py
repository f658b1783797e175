"""traitmill's engine: trait definitions in; judged responses, all-layer activations and trait vectors out.

The library's front is lazy, so that importing it stays instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .outputs.load import load_activations
    from .vectors.evaluation import evaluate_vectors
    from .vectors.fit import fit_vectors

_ROOMS = {
    "load_activations": "outputs.load",
    "fit_vectors": "vectors.fit",
    "evaluate_vectors": "vectors.evaluation",
}

__all__ = ["evaluate_vectors", "fit_vectors", "load_activations"]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f".{_ROOMS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
