"""traitmill: trait definitions in; judged responses, all-layer activations and trait vectors out.

The engine's face under the package's name. `engine/` and `cli/` are the links beside this file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from traitmill import engine

if TYPE_CHECKING:
    from traitmill.engine import *  # noqa: F403 - what __getattr__ finds, for type checkers

__all__ = engine.__all__


def __getattr__(name: str) -> Any:
    # Not getattr(engine, name): `engine.capture` is the package of that name once it is loaded.
    if name in __all__:
        return engine.find(name)
    raise AttributeError(f"module 'traitmill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
