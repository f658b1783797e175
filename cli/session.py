"""What commands that work on models share: the environment, a run with its display, the end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from traitmill.engine.errors import ExitCode

if TYPE_CHECKING:
    from traitmill.engine.run import Listener, RunResult


def prepare_environment() -> None:
    """Read .env (HF_TOKEN, OPENAI_API_KEY, OPENAI_BASE_URL); turn telemetry off."""
    from dotenv import find_dotenv, load_dotenv

    load_dotenv(find_dotenv(usecwd=True))
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "VLLM_NO_USAGE_STATS"):
        os.environ.setdefault(name, "1")


def run_to_end(
    call: Callable[[Listener, asyncio.Event], Awaitable[RunResult]],
) -> RunResult:
    """Run one of the engine's commands with a display; Ctrl-C or SIGTERM ends it early.

    The first press lets the run flush what it has, the second leaves at once.
    """
    from .display import Display

    prepare_environment()
    display = Display(sys.stdout)
    presses = 0

    async def run() -> RunResult:
        stop = asyncio.Event()

        def press() -> None:
            nonlocal presses
            presses += 1
            if presses > 1:
                os._exit(ExitCode.INTERRUPTED)
            display.notice("stopping: flushing what is in hand (press again to leave at once)")
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, press)
        return await call(display, stop)

    try:
        result = asyncio.run(run())
    finally:
        display.ended()
        # asyncio puts back the system's own handler.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    display.summary(result)
    return result


def leave(code: ExitCode) -> None:
    """End the process. An interrupted run does not wait for a thread that still loads a model."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code == ExitCode.INTERRUPTED:
        os._exit(code)
    sys.exit(int(code))
