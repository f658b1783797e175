"""What a folder keeps of how its vectors were last tried: what is not given is that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import UsageError
from ..run import STEERING, shown_value, wanted_before
from ..storage import Asked, TraitFolder

OWN: Mapping[str, Any] = {
    "positions": "response",
    "n_examples": 20,
    "n_random": 5,
    "coherence": 75.0,
}
"""Settings of steering's own, by name, with their defaults."""


def with_kept(
    folders: Iterable[TraitFolder], given: Mapping[str, Any]
) -> tuple[dict[str, Any], str | None]:
    """Return what is given, and what the folders keep where it is not; and a line of the latter.

    Raise UsageError where folders of one command keep different values.
    """
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        for name, value in wanted_before(folder.steering).items():
            found.setdefault(name, {})[folder.name] = value
    judge = given.get("judge_model")
    if judge is not None and judge not in found.get("judge_model", {}).values():
        found.pop("judge_extra", None)  # it was added to another judge's requests
    taken = {}
    for name, values in found.items():
        first, *others = values.values()
        if name in given:
            continue
        if any(value != first for value in others):
            listed = ", ".join(f"{trait}: {shown_value(value)}" for trait, value in values.items())
            raise UsageError(
                f"the traits were steered with different `{name}` ({listed}): name one, or steer "
                "them one by one"
            )
        taken[name] = first
    told = {name: value for name, value in taken.items() if OWN.get(name) != value}
    if not told:
        return {**taken, **given}, None
    listed = ", ".join(f"`{name}` {shown_value(value)}".rstrip() for name, value in told.items())
    return {**taken, **given}, f"kept from the last steering: {listed} (name one to change it)"


def keep(folders: Iterable[TraitFolder], how: Mapping[str, Any]) -> None:
    """Note how folders are steered, in place of how they were."""
    kept = {name: value for name, value in how.items() if name in (*OWN, *STEERING)}
    for folder in folders:
        Asked(settings=kept).save(folder.steering.asked)
