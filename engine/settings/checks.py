"""How a setting is refused."""

from __future__ import annotations

from ..errors import UsageError


def require(condition: bool, message: str) -> None:
    """Raise UsageError with the message unless the condition holds."""
    if not condition:
        raise UsageError(message)
