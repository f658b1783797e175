"""Replicas that are being brought up, some while others work already: what goes wrong is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Starts:
    """Tasks that nobody waits for. A bug in one would else be lost."""

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
