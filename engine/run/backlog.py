"""What a stage has still to do: a bounded number of responses in memory, the rest in the store.

So a slow judge never holds generation up, a run of any length fits in memory, and resuming is the
same thing as having fallen behind.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from typing import Protocol

import numpy as np

from ..errors import TraitmillError
from ..records import Response, Sample
from .ending import on_thread
from .trait_run import TraitRun
from .writer import Writer

IN_MEMORY = 2048
_READ_BACK = 256
_SAMPLES_AHEAD = 64

Item = tuple[TraitRun, Response]
Planned = tuple[TraitRun, Sample]


class Samples:
    """Samples waiting for generation, built off the event loop a few ahead of the engine."""

    def __init__(self) -> None:
        self._positions: dict[TraitRun, deque[int]] = {}
        self._built: deque[Planned] = deque()
        self._more = asyncio.Event()
        self.waiting: Counter[TraitRun] = Counter()

    def add(self, run: TraitRun, positions: Iterable[int]) -> None:
        """Take positions of a trait's plan; traits are served in the order they came."""
        queue = self._positions.setdefault(run, deque())
        before = len(queue)
        queue.extend(positions)
        self.waiting[run] += len(queue) - before
        self._more.set()

    def drop(self, run: TraitRun) -> None:
        """Forget what is waiting of a trait."""
        self._positions.pop(run, None)
        self._built = deque(item for item in self._built if item[0] is not run)
        self.waiting[run] = 0

    async def take(self) -> list[Planned]:
        """Return the next sample, as a list of one; wait until there is one."""
        while True:
            while self._built:
                item = self._built.popleft()
                if self.waiting[item[0]]:  # else it was dropped while it was built
                    self.waiting[item[0]] -= 1
                    return [item]
            run = next((run for run, queue in self._positions.items() if queue), None)
            if run is None:
                self._more.clear()
                await self._more.wait()
                continue
            queue = self._positions[run]
            count = min(_SAMPLES_AHEAD, len(queue))
            positions = [queue.popleft() for _ in range(count)]
            samples = await on_thread(run.samples, positions)
            self._built.extend((run, sample) for sample in samples)


class Backlog:
    """Responses waiting for one stage."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._live: deque[Item] = deque()
        self._stored: dict[TraitRun, deque[bytes]] = {}
        self._more = asyncio.Event()
        self.waiting: Counter[TraitRun] = Counter()
        self.hurry = False
        """Whether a stage that gathers responses takes what there is."""

    def offer(self, run: TraitRun, response: Response) -> None:
        """Take a response just made; when too many wait already, keep only its id."""
        if len(self._live) >= IN_MEMORY or run in self._stored:
            self.owe(run, [response.sample.id.encode()])
            return
        self._live.append((run, response))
        self.waiting[run] += 1
        self._more.set()

    def owe(self, run: TraitRun, ids: Iterable[bytes]) -> None:
        """Take ids of responses that are stored, or will be at the next flush."""
        new = list(ids)
        if new:
            self._stored.setdefault(run, deque()).extend(new)
            self.waiting[run] += len(new)
            self._more.set()

    def drop(self, run: TraitRun) -> None:
        """Forget what is waiting of a trait."""
        self._stored.pop(run, None)
        self._live = deque(item for item in self._live if item[0] is not run)
        self.waiting[run] = 0

    def push(self) -> None:
        """From now on let a stage that gathers responses take what there is."""
        self.hurry = True
        self._more.set()

    async def take(self, limit: int = 1) -> list[Item]:
        """Return up to `limit` responses, at least one: wait until there is one."""
        await self._fill(1)
        return self._handed([self._live.popleft() for _ in range(min(limit, len(self._live)))])

    async def take_in_plan_order(self, limit: int, patience: float) -> list[Item]:
        """Return up to `limit` responses of one trait, in the order of its plan, none if dropped.

        What waits in full is so always cut into the same batches, and bfloat16 results move with
        the batch. Wait up to `patience` seconds for `limit` of them, unless `hurry` is set.
        """
        await self._fill(1)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._fill(limit, gather=True)
        await self._fill(limit, wait=False)
        if not self._live:  # dropped while more was gathered
            return []
        first = self._live[0][0]
        own = [item for item in self._live if item[0] is first]
        others = [item for item in self._live if item[0] is not first]
        ids = np.array([response.sample.id for _, response in own], "S32")
        own = [own[index] for index in np.argsort(first.state.plan.positions(ids))]
        self._live = deque([*own[limit:], *others])
        return self._handed(own[:limit])

    def _handed(self, items: list[Item]) -> list[Item]:
        for run, _ in items:
            self.waiting[run] -= 1
        return items

    async def _fill(self, wanted: int, *, wait: bool = True, gather: bool = False) -> None:
        """Have `wanted` responses in memory; without `wait`, as many as are stored."""
        while len(self._live) < wanted:
            if self._stored:
                await self._read_back()
            elif not wait or (gather and self.hurry):
                return
            else:
                self._more.clear()
                await self._more.wait()

    async def _read_back(self) -> None:
        """Move stored responses of one trait to memory; none has moved if this is cancelled."""
        run, queue = next(iter(self._stored.items()))
        ids = np.array([*islice(queue, _READ_BACK)], "S32")
        if run.state.responses.pending()[run.state.plan.positions(ids)].any():
            await self._writer.flush(run)
        state = run.state
        positions = state.plan.positions(ids)
        responses: list[Response] = []
        if run.error is None:
            try:
                responses = await on_thread(lambda: list(state.read_responses(positions)))
            except TraitmillError as error:
                self._writer.on_error(run, error)
        if self._stored.get(run) is not queue:  # dropped meanwhile
            return
        for _ in ids:
            queue.popleft()
        if not queue:
            del self._stored[run]
        if run.error is None:
            self._live.extend((run, response) for response in responses)


class Waiting(Protocol):
    """What a stage takes its work from."""

    waiting: Counter[TraitRun]

    def drop(self, run: TraitRun) -> None: ...
