"""Why vLLM refused, failed or died, in one line for a user."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from multiprocessing.process import BaseProcess

from ..errors import EngineDiedError


def own_words(error: ValueError) -> str:
    """Return what a configuration's check says; pydantic's first line only counts the faults."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return "; ".join(fault["msg"] for fault in error.errors(include_input=False))[:300]
    return first_line(error)


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def killed(processes: Iterable[BaseProcess]) -> str:
    """Say which signal ended one of an engine's processes; empty where none did.

    vLLM ends what an error has left with signals too: where the log names one, that is the reason.
    """
    for process in processes:
        if process.exitcode is not None and process.exitcode < 0:
            by = signal.Signals(-process.exitcode).name
            memory = ", as when memory runs out" if by == "SIGKILL" else ""
            return f"its process was ended by {by}{memory}"
    return ""


def died(logged: str, processes: Iterable[BaseProcess], otherwise: str) -> EngineDiedError:
    """Return the error of an engine that died: why the log says, or its processes do."""
    return EngineDiedError(
        f"the generation engine died: {logged or killed(processes) or otherwise}. What was stored "
        "is safe; run the same command again to go on"
    )
