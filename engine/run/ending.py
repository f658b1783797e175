"""Ends that are brought about however often whoever waits for them is cancelled."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T:
    """Return what work comes to. A cancellation meanwhile is raised after it, and does not end it.

    A task is cancelled twice where a timeout falls into the end of a group of tasks, say; a lock
    must not be let go then before the last byte is written.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()


async def on_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what a function returns on a thread, which no cancellation leaves behind: it may work
    on files that a lock guards."""
    call = partial(contextvars.copy_context().run, function, *args, **kwargs)
    return await to_the_end(asyncio.get_running_loop().run_in_executor(None, call))
