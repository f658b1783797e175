"""What commands that work on models share: the environment, a run with its display, the end."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from traitmill.engine.errors import ExitCode, UsageError

from .waiting import waiting

if TYPE_CHECKING:
    from traitmill.engine.run import RunResult

T = TypeVar("T")


def prepare_environment() -> None:
    """Read .env (HF_TOKEN, OPENAI_API_KEY, OPENAI_BASE_URL and the like); turn telemetry off."""
    from dotenv import find_dotenv, load_dotenv

    found = find_dotenv(usecwd=True)
    try:
        load_dotenv(found)
    except ValueError:  # UnicodeDecodeError is one
        raise UsageError(f"{found} is not in UTF-8, or holds a zero byte; save it anew") from None
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "VLLM_NO_USAGE_STATS"):
        os.environ.setdefault(name, "1")


def run_to_end(
    call: Callable[..., Awaitable[RunResult]],
    arguments: Mapping[str, Any],
    *,
    goes_on: bool = False,
) -> RunResult:
    """Call one of the engine's commands with a display, and write its summary.

    `goes_on`: the caller does the next step itself.
    """
    from traitmill.engine.run import append

    from .display import open_console
    from .summary import print_summary

    result = watched(call, arguments)
    print_summary(open_console(sys.stdout), result, goes_on=goes_on)
    if result.log is not None:
        text = io.StringIO()
        print_summary(open_console(text), result, goes_on=goes_on)
        append(result.log, text.getvalue())
    leave_if(interrupted=result.interrupted)
    return result


def watched(call: Callable[..., Awaitable[T]], arguments: Mapping[str, Any]) -> T:
    """Call one of the engine's commands with a display; return what it returns.

    The first Ctrl-C, SIGTERM or SIGHUP lets the run store what is in hand, the second leaves at
    once.
    """
    import asyncio  # here, since a command without it starts a tenth faster

    from .display import Display

    prepare_environment()
    display = Display()

    async def run() -> T:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def press() -> None:
            if stop.is_set():
                display.ended()
                waiting.stop()
                os._exit(ExitCode.INTERRUPTED)
            display.notice("stopping: storing what is in hand (press again to leave at once)")
            stop.set()

        for number in (signal.SIGINT, *ending_signals()):
            loop.add_signal_handler(number, press)
        return await call(**arguments, listener=display, stop=stop)

    try:
        return asyncio.run(run())
    finally:
        display.ended()
        # asyncio puts back the system's own handler.
        for number in ending_signals():
            signal.signal(number, signal.default_int_handler)


def ending_signals() -> list[signal.Signals]:
    """Return the signals that end a command: that of a scheduler, and that of a terminal that is
    lost, unless it is ignored, as under nohup."""
    both = (signal.SIGTERM, signal.SIGHUP)
    return [number for number in both if signal.getsignal(number) is not signal.SIG_IGN]


def leave_if(*, interrupted: bool) -> None:
    """End an interrupted command: a thread may still be loading a model, and is not waited for."""
    if interrupted:
        waiting.stop()
        os._exit(ExitCode.INTERRUPTED)
