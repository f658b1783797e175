"""A clock that jumps to the next timer: minutes of a test pass in milliseconds."""

from __future__ import annotations

import asyncio
import selectors


class VirtualClock(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer, so that minutes pass in milliseconds."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_NoWait(self))

    def time(self) -> float:
        return self.now


class _NoWait(selectors.SelectSelector):
    """Instead of waiting for a timer, sets the clock to it."""

    def __init__(self, loop: VirtualClock) -> None:
        super().__init__()
        self.loop = loop

    def select(self, timeout=None):
        self.loop.now += (
            timeout or 0
        ) + 1e-7  # a turn of the loop takes time, else a rounded timer never comes
        return super().select(0)


def virtually(main):
    """Run a coroutine on a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(main)


class VirtualPolicy(asyncio.DefaultEventLoopPolicy):
    """For the fixture `event_loop_policy`: every test of a file runs on a virtual clock."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return VirtualClock()
