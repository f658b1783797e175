"""Kinds of words that options take: a number or auto, a score or off, layers, names to reset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from traitmill.engine.errors import UsageError
from traitmill.engine.settings import DEFAULTS, NAMES, parse_layers, value_of


class Words(click.Choice[str]):
    """One of some words, shown as they are: a dash stays one, which in an option's name is as good
    as an underscore."""

    def normalize_choice(self, choice: object, ctx: click.Context | None) -> str:  # noqa: ARG002
        return str(choice)


class AutoInt(click.ParamType[int | None]):
    """A whole number from 1, or `auto`, which stands for `auto`'s value."""

    name = "N|auto"

    def __init__(self, auto: int | None = None) -> None:
        self._auto = auto

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if value == "auto":
            return self._auto
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a whole number from 1 nor auto", param, ctx)
        return int(value)


class ScoreOrOff(click.ParamType[float | str]):
    """A number, or `off`."""

    name = "N|off"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        try:
            return "off" if value == "off" else float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor off", param, ctx)


class Layers(click.ParamType[tuple[int, ...] | None]):
    """`5,10-15` as ascending indices, -1 being the embeddings; `all` is None."""

    name = "layers"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002 - click's signature
        ctx: click.Context | None,  # noqa: ARG002
    ) -> tuple[int, ...] | None:
        return parse_layers(value)


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
