"""What a folder remembers of the commands that worked on it, and how that is said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..settings import DEFAULTS, RunSettings, value_of
from ..storage import Asked, TraitFolder

JUDGE = ("judge_model", "judge_mode", "judge_extra", "judge_base_url")
FILTERS = ("threshold", "neg_threshold", "paired")
CAPTURE = ("pool", "layers", "include_embeddings", "capture_dtype", "attention", "blocks")
ALL = (*JUDGE, *FILTERS, "capture", *CAPTURE)
"""Beside what defines the samples, which the run's record holds. Not how a machine is used, nor
what one command may spend: these are the machine's and the command's."""
SAMPLES = (
    *("temperature", "top_p", "top_k", "max_new_tokens", "seed", "dtype", "prompt_format"),
    *("system_prompt", "prefill", "thinking", "max_thinking_tokens", "chat_template_kwargs"),
)
"""What defines the samples and the run's record holds, beside the model and the counts."""
COUNTS = ("n_examples", "min_kept", "max_examples")
RUN = (*SAMPLES, *COUNTS, *ALL)
"""What matters to a run."""
STEERING = (*SAMPLES, *JUDGE)
"""What steering takes from the run: how many of each it asks for is its own, and filters and
capture are not of it."""
_TUPLES = {"pool", "layers"}


def wanted_before(folder: TraitFolder) -> dict[str, Any]:
    """Return the settings that commands last had a folder work with, by name.

    Raise UsageError where the file is damaged.
    """
    found = Asked.load(folder.asked)
    if found is None:
        return {}
    return {
        name: tuple(value) if name in _TUPLES and value is not None else value
        for name, value in found.settings.items()
    }


def remember(folder: TraitFolder, settings: Mapping[str, Any]) -> None:
    """Add settings to what a folder remembers."""
    Asked(settings={**wanted_before(folder), **settings}).save(folder.asked)


def values(settings: RunSettings, names: Iterable[str]) -> dict[str, Any]:
    """Return some settings by name."""
    return {name: value_of(settings, name) for name in names}


def kept_line(
    settings: RunSettings,
    given: Mapping[str, Any],
    names: Iterable[str],
    whose: str = "the folder",
    *,
    resets: bool = True,
) -> str | None:
    """Return a line of the settings that are a folder's own and not the defaults; None for none.

    `names` are those that matter to the command. `resets`: it gives each its default where asked.
    """
    own = {
        name: value_of(settings, name)
        for name in names
        if name not in given and value_of(settings, name) != value_of(DEFAULTS, name)
    }
    if not own:
        return None
    listed = ", ".join(f"`{name}` {shown_value(value)}".rstrip() for name, value in own.items())
    line = f"kept from {whose}: {listed}"
    if not resets:
        return line
    stays = "; pools that are captured stay" if "pool" in own else ""
    return f"{line} (name one to change it; `reset` NAME: its default{stays})"


def shown_value(value: Any) -> str:
    """Return a value as it is given; a switch that is on is its name alone."""
    if value is True:
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    if value is None:
        return "unset"
    text = str(value)
    return text if text and " " not in text and len(text) <= 60 else repr(text[:60])
