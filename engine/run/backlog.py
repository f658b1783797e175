"""What a stage has still to do: a bounded number of responses in memory, the rest read back from the store.

So a slow judge never holds generation up, a run of any length fits in memory, and resuming is the same thing as
having fallen behind.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

import numpy as np

from ..errors import TraitmillError
from ..records import Response
from ..storage.index import PENDING
from .job import TraitJob
from .writer import Recorder

Item = tuple[TraitJob, Response]

IN_MEMORY = 2048
_READ_BACK = 256


class Backlog:
    """Responses waiting for one stage."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._live: deque[Item] = deque()
        self._stored: dict[TraitJob, deque[bytes]] = {}
        self._more = asyncio.Event()

    def __len__(self) -> int:
        return len(self._live) + sum(map(len, self._stored.values()))

    def offer(self, job: TraitJob, response: Response) -> None:
        """Take a response just made; when too many wait already, only its id is remembered."""
        if len(self._live) < IN_MEMORY and job not in self._stored:
            self._live.append((job, response))
            self._more.set()
        else:
            self.owe(job, [response.sample.id.encode()])

    def owe(self, job: TraitJob, ids: Iterable[bytes]) -> None:
        """Take responses that are stored already, or will be at the next flush."""
        waiting = deque(ids)
        if waiting:
            self._stored.setdefault(job, deque()).extend(waiting)
            self._more.set()

    async def take(self, limit: int) -> list[Item]:
        """Up to `limit` responses, at least one: waits until there is one."""
        await self._fill(1)
        return [self._live.popleft() for _ in range(min(limit, len(self._live)))]

    async def take_in_plan_order(self, limit: int) -> list[Item]:
        """Like `take`, but of one trait and in its plan's order: what waits in full is then always cut into the same
        batches, and bfloat16 results move with the batch."""
        await self._fill(limit)
        first = self._live[0][0]
        own = [item for item in self._live if item[0] is first]
        others = [item for item in self._live if item[0] is not first]
        order = np.argsort(
            first.view.plan.positions(np.array([item[1].sample.id for item in own], "S32"))
        )
        own = [own[index] for index in order]
        self._live = deque([*own[limit:], *others])
        return own[:limit]

    async def _fill(self, wanted: int) -> None:
        while len(self._live) < wanted and (self._stored or not self._live):
            if self._stored:
                await self._read_back()
            else:
                self._more.clear()
                await self._more.wait()

    async def _read_back(self) -> None:
        job, waiting = next(iter(self._stored.items()))
        ids = np.array([waiting.popleft() for _ in range(min(_READ_BACK, len(waiting)))], "S32")
        if not waiting:
            del self._stored[job]
        if (job.view.responses.status[job.view.plan.positions(ids)] == PENDING).any():
            await self._recorder.flush(job)
        if job.error is not None:
            return
        view = job.view
        try:
            responses = await asyncio.to_thread(
                lambda: list(
                    view.store.responses(job.name, view.responses, view.plan.positions(ids))
                )
            )
        except TraitmillError as error:
            self._recorder.on_error(job, error)
            return
        self._live.extend((job, response) for response in responses)
