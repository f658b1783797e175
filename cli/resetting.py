"""What --reset names, as the defaults that the settings have again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from traitmill.engine.errors import UsageError
from traitmill.engine.settings import DEFAULTS, NAMES, value_of


def defaults_of(names: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of the settings that --reset names. Raise UsageError."""
    from traitmill.engine.models import infer_model

    reset: dict[str, Any] = {}
    for name in (part.strip().removeprefix("--") for part in (names or "").split(",")):
        if name == "extract_activations" and name in options:
            reset["capture"] = value_of(DEFAULTS, "capture")
        elif name == "gen_model" and name in options:
            reset[name] = infer_model(options["experiment"])
        elif name in NAMES and name in options:
            reset[name] = value_of(DEFAULTS, name)
        elif names is not None:
            known = [each for each in options if each in NAMES]
            raise UsageError(
                f"`reset` {name[:40]!r} is no setting of this command; it has: {', '.join(known)}"
            )
    return reset
