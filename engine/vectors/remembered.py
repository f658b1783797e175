"""What a folder's vectors were last asked to be: `vectors/asked.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..errors import UsageError
from ..outputs import Metadata
from ..settings import DEFAULT_POOL, POOLS
from ..storage import Stored, TraitFolder
from .methods import DEFAULT_METHODS, check_methods
from .vector_files import Format


class AskedVectors(Stored):
    """Which vectors a command last had a folder hold."""

    mend: ClassVar[str] = "remove it, and name `methods` and `layers` again"

    methods: tuple[str, ...]
    layers: tuple[int, ...] | None
    """None is all that are captured."""
    pool: str
    format: Format


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which vectors a folder is to hold: what is given, else the folder's, else the defaults."""

    methods: tuple[str, ...]
    layers: tuple[int, ...] | None
    pool: str
    format: Format
    kept: str
    """What of it is the folder's own and no default, in words; empty for nothing."""

    def remember(self, folder: TraitFolder) -> None:
        """Let later commands go on with these."""
        asked = AskedVectors(
            methods=self.methods, layers=self.layers, pool=self.pool, format=self.format
        )
        asked.save(folder.asked_vectors)


def wanted_vectors(
    folder: TraitFolder,
    methods: Sequence[str] | None = None,
    layers: Sequence[int] | Literal["all"] | None = None,
    pool: str | None = None,
    format: Format | None = None,  # noqa: A002 - the option's name
) -> Wanted:
    """Return what a trait's vectors are to be. None is not given. Raise UsageError."""
    own = AskedVectors.load(folder.asked_vectors)
    defaults: dict[str, Any] = {
        "methods": DEFAULT_METHODS,
        "layers": None,
        "pool": DEFAULT_POOL,
        "format": "pt",
    }
    before = own.model_dump(include=set(defaults)) if own else dict(defaults)
    before["pool"] = kept_pool(folder)
    given: dict[str, Any] = {"methods": methods, "layers": layers, "pool": pool, "format": format}
    named = {name: value for name, value in given.items() if value is not None}
    values = before | named
    chosen = None if values["layers"] in (None, "all") else values["layers"]
    own_values = {name: before[name] for name in defaults if name not in named}
    return Wanted(
        methods=tuple(check_methods(values["methods"])),
        layers=chosen,
        pool=values["pool"],
        format=values["format"],
        kept=_said(own_values, defaults),
    )


def fitted_pool(folder: TraitFolder) -> str:
    """Return the pool of a folder's last fit, else response_mean. Raise UsageError."""
    own = AskedVectors.load(folder.asked_vectors)
    return own.pool if own else DEFAULT_POOL


def kept_pool(folder: TraitFolder) -> str:
    """Return the pool to work with where none is named. Raise UsageError.

    That of the last fit, where activations of it were exported last; else the first of those there.
    """
    captured = [pool for pool in POOLS if folder.tensor(pool).is_file()]
    first = fitted_pool(folder)
    with suppress(UsageError):
        named = str(folder.tensor(first).relative_to(folder.path))
        if named in Metadata.read(folder).files_sha256:
            return first  # a file that is gone is said to be missing
    return first if first in captured or not captured else captured[0]


def kept_line(kept: Mapping[str, str]) -> list[str]:
    """Return a line for each set of values that some traits have kept, by trait."""
    traits: dict[str, list[str]] = {}
    for name, said in kept.items():
        traits.setdefault(said, []).append(name)
    lines = []
    for said, names in traits.items():
        of = "" if len(names) == len(kept) else f"{', '.join(names)}: "
        if said:
            lines.append(f"{of}kept from the folder: {said} (name one to change it)")
    return lines


def _said(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    parts = []
    for name, value in values.items():
        if value != defaults[name]:
            listed = value if isinstance(value, str) else ",".join(map(str, value))
            parts.append(f"`{name}` {listed}")
    return ", ".join(parts)
