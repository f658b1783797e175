"""One replica as the driver sees it: its actor, its room, and what is under way with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from .actor import Hello


@dataclass(slots=True, eq=False)
class Request:
    """Something asked of an engine, whichever has it; one answer comes of it."""

    number: int
    method: str
    arguments: tuple[Any, ...]
    answer: asyncio.Future[Any]


@dataclass(slots=True, eq=False)
class Member:
    """One replica. `actor` is another one each time it is started."""

    index: int
    actor: Any = None
    hello: Hello | None = None
    up: bool = False
    """Whether its models are loaded."""
    live: bool = False
    """Whether it may be asked for responses."""
    captures: bool = False
    """Whether its capture model is loaded."""
    capturing: int = 0
    """Capture calls under way."""
    under_way: dict[int, Request] = field(default_factory=dict)
    outbox: list[Request] = field(default_factory=list)
    posted: asyncio.Event = field(default_factory=asyncio.Event)
    talks: list[asyncio.Task[None]] = field(default_factory=list)
    failures: int = 0
    """In a row, without an answer between them."""
    given_up: bool = False

    @property
    def room(self) -> int:
        if not self.live or self.hello is None:
            return 0
        return self.hello.capacity - len(self.under_way)

    def __str__(self) -> str:
        where = "" if self.hello is None else f" on {self.hello.node}"
        return f"replica {self.index + 1}{where}"


def refuse_differing(members: Sequence[Member]) -> None:
    """Raise UsageError where nodes have other versions than the first: results would differ."""
    first = members[0].hello
    assert first is not None  # noqa: S101 - it has started
    for member in members[1:]:
        assert member.hello is not None  # noqa: S101 - as above
        for name in sorted({*first.versions, *member.hello.versions}):
            own, other = member.hello.versions.get(name), first.versions.get(name)
            if own != other:
                raise UsageError(
                    f"{member} has {name} {own or 'not installed'}, {members[0]} has "
                    f"{other or 'not installed'}: install the same on all nodes"
                )
