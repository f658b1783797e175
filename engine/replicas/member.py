"""One replica as the driver sees it: how it is brought up, its room, what is under way with it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ..capture import CaptureFacts
from ..errors import EngineDiedError, UsageError
from .actor import Hello

PLACED_S = 30.0
"""A process of Ray's is there within seconds, unless the cluster has no room for it."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class FaultError(EngineDiedError):
    """A replica raised an error of its own: to start it again would bring the same one."""


@dataclass(slots=True, eq=False)
class Request:
    """Something asked of an engine, whichever has it; one answer comes of it."""

    number: int
    method: str
    arguments: tuple[Any, ...]
    answer: asyncio.Future[Any]
    deaths: int = 0
    """Of engines, that it may have caused."""


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
    was_asked: bool = False
    """Whether the actor that ended last had requests under way."""

    @property
    def capacity(self) -> int:
        """Requests that it may have at once."""
        return self.hello.capacity if self.live and self.hello is not None else 0

    @property
    def room(self) -> int:
        return self.capacity - len(self.under_way)

    def ended(self) -> Any:
        """Note that its actor is gone; return it."""
        actor, self.actor = self.actor, None
        self.up = self.live = self.captures = False
        self.outbox.clear()
        self.posted.clear()
        return actor

    def suspects(self, deaths: int) -> int:
        """Return how many requests it has that so many engines died with."""
        return sum(request.deaths == deaths for request in self.under_way.values())

    def __str__(self) -> str:
        where = "" if self.hello is None else f" on {self.hello.node}"
        return f"replica {self.index + 1}{where}"


class Agreed:
    """What all replicas have in common: of those that come back on another node as well."""

    def __init__(self) -> None:
        self._first: tuple[str, Hello] | None = None
        self.capture: CaptureFacts | None = None
        """Of the first capture model that was loaded."""

    def refuse_versions(self, member: Member, hello: Hello) -> None:
        """Raise UsageError where a node has other versions than the first: results would differ."""
        whose, first = self._first or (f"{member} on {hello.node}", hello)
        for name in sorted({*first.versions, *hello.versions}):
            own, other = hello.versions.get(name), first.versions.get(name)
            if own != other:
                raise UsageError(
                    f"replica {member.index + 1} on {hello.node} has {name} "
                    f"{own or 'not installed'}, {whose} has {other or 'not installed'}: install "
                    "the same on all nodes"
                )
        self._first = whose, first

    def refuse_capture(self, loaded: CaptureFacts) -> None:
        """Raise UsageError where replicas would fill one activation set with rows of two kinds."""
        first = self.capture or loaded
        for name in ("dtype", "attention", "layers", "hidden_dim"):
            own, theirs = getattr(first, name), getattr(loaded, name)
            if own != theirs:
                raise UsageError(
                    f"the replicas capture with different {name} ({own} and {theirs}): name one "
                    "with `capture_dtype` and `attention`, or use nodes of one kind"
                )
        self.capture = first


async def closed(actor: Any) -> None:
    """Have an actor take its models down."""
    await actor.close.remote()


def is_fault(error: Exception) -> bool:
    """Return whether an actor that lives raised an error of its own, which it would raise again."""
    from ray.exceptions import RayTaskError

    return isinstance(error, RayTaskError)


def reason(error: Exception) -> str:
    """Return in a line what Ray says of an actor's end, or the error that the actor raised."""
    cause = getattr(error, "cause", error) if is_fault(error) else error
    lines = [line.strip() for line in _COLOURS.sub("", str(cause)).splitlines() if line.strip()]
    if not lines:
        return type(cause).__name__
    # An actor's error may end with what matters, behind a traceback.
    return lines[0][:200] if cause is error else f"{type(cause).__name__}: {lines[-1]}"[:200]


async def placed(
    member: Member, notice: Callable[[str], None], is_over: Callable[[], Awaitable[bool]]
) -> None:
    """Return once Ray has found a member's actor a place; say where that takes long.

    Raise FaultError where Ray `is_over`: no room will come.
    """
    here = asyncio.ensure_future(member.actor.here.remote())
    said = False
    while not (await asyncio.wait((here,), timeout=PLACED_S))[0]:
        if await is_over():
            here.cancel()
            raise FaultError("Ray's own processes on this machine have died")
        if not said:
            notice(f"{member} waits for room on the cluster; `ray status` shows what holds it")
        said = True
    await here


class Starts:
    """Replicas that are being brought up, some while others work already.

    Nobody waits for these tasks: a bug in one would else be lost.
    """

    def __init__(self, on_bug: Callable[[BaseException], None]) -> None:
        """`on_bug` gets what ended a task without being a fault that it handles."""
        self.tasks: set[asyncio.Task[None]] = set()
        self._bug: BaseException | None = None
        self._on_bug = on_bug

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something beside all else."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bug = error
            self._on_bug(error)

    def check(self) -> None:
        """Raise what ended one of them, if anything did."""
        if self._bug is not None:
            raise self._bug
