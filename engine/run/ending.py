"""Ends that are brought about however often whoever waits for them is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def to_the_end(work: Coroutine[Any, Any, Any]) -> None:
    """Wait until work is done. A cancellation meanwhile is raised after it, and does not end it.

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
    task.result()
    if cancelled is not None:
        raise cancelled
