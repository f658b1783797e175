"""One stage of a run: it takes from its backlog and keeps a number of calls under way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from ..errors import TraitmillError
from .backends import Stage as Name
from .backlog import Waiting
from .trait_run import TraitRun

Item = TypeVar("Item")


class Stage(Generic[Item]):
    """Takes work, calls a backend, passes results on.

    `call` gets what `take` returned. A TraitmillError of it goes to `on_error`, which may stop the
    stage as a whole by setting `error`; anything else is a bug and ends the run.
    """

    def __init__(
        self,
        name: Name,
        backlog: Waiting,
        take: Callable[[], Awaitable[list[tuple[TraitRun, Item]]]],
        call: Callable[[list[tuple[TraitRun, Item]]], Awaitable[None]],
        concurrency: int,
        on_change: Callable[[], None],
        on_error: Callable[[Stage[Any], TraitmillError], None],
    ) -> None:
        self.name: Name = name
        self.backlog = backlog
        self.error: TraitmillError | None = None
        self._take, self._call = take, call
        self._concurrency = concurrency
        self._on_change, self._on_error = on_change, on_error
        self._under_way: dict[asyncio.Task[None], list[TraitRun]] = {}
        self._runs: Counter[TraitRun] = Counter()
        self._undone: Counter[TraitRun] = Counter()
        """Taken and not done, since the stage stopped."""

    def left(self, run: TraitRun) -> int:
        """Return how many records of a trait are waiting, under way, or not done."""
        return self.backlog.waiting[run] + self._runs[run] + self._undone[run]

    def under_way(self, run: TraitRun) -> bool:
        """Return whether a call for a trait is under way."""
        return self._runs[run] > 0

    @property
    def busy(self) -> bool:
        """Whether any call is under way."""
        return bool(self._under_way)

    async def work(self, group: asyncio.TaskGroup) -> None:
        """Keep calls under way until the stage stops, or this is cancelled."""
        slots = asyncio.Semaphore(self._concurrency)
        while self.error is None:
            await slots.acquire()
            items = [item for item in await self._take() if item[0].error is None]
            runs = [run for run, _ in items]
            if self.error is not None:
                self._undone.update(runs)
            elif items:
                task = group.create_task(self._one(items))
                self._under_way[task] = runs
                self._runs.update(runs)
                task.add_done_callback(self._ended)
                task.add_done_callback(lambda _: slots.release())
                continue
            slots.release()
            self._on_change()

    async def _one(self, items: list[tuple[TraitRun, Item]]) -> None:
        try:
            await self._call(items)
        except TraitmillError as error:
            self._undone.update(run for run, _ in items)
            self._on_error(self, error)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._runs.subtract(self._under_way.pop(task))
        self._on_change()

    def cancel(self, run: TraitRun | None = None) -> None:
        """Cancel the calls under way, of one trait or all."""
        for task, runs in list(self._under_way.items()):
            if run is None or run in runs:
                task.cancel()

    async def drain(self, seconds: float) -> None:
        """Wait for the calls under way to be answered, so long at most; then cancel them."""
        if self._under_way:
            await asyncio.wait(set(self._under_way), timeout=seconds)
        self.cancel()


Stages = Mapping[Name, Stage[Any]]


def is_stuck(stages: Stages, run: TraitRun) -> bool:
    """Return whether all that is left of a trait belongs to stages that stopped.

    Calls to a judge outlast its stage: what they bring is paid for. Each ends at its deadline.
    """
    if stages["judging"].under_way(run):
        return False
    left = [stage for stage in stages.values() if stage.left(run)]
    return bool(left) and all(stage.error is not None for stage in left)


def is_engine_free(stages: Stages, runs: Sequence[TraitRun]) -> bool:
    """Return whether nothing more will be asked of the generation engine."""
    generation, judging = stages["generation"], stages["judging"]
    runs = [run for run in runs if run.error is None]
    if generation.error is None and any(generation.left(run) for run in runs):
        return False
    if judging.error is not None:
        return True
    if generation.error is None and any(run.may_grow for run in runs):
        return False
    return not any(run.settings.judge.is_local and judging.left(run) for run in runs)
