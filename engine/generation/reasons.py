"""Why vLLM refused, failed or died, in one line for a user."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

from ..errors import AccessError, EngineDiedError, UsageError


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


@contextmanager
def said_of_start(model: str, last_error: Callable[[], str]) -> Iterator[None]:
    """Turn what vLLM raises as it starts into an error for a user."""
    try:
        yield
    except OSError as error:
        raise AccessError(f"vLLM cannot load model {model}: {first_line(error)}") from error
    except ValueError as error:  # of its configuration, pydantic's among them
        raise UsageError(f"vLLM refuses model {model}: {own_words(error)}") from error
    except RuntimeError as error:
        reason = last_error() or first_line(error)
        raise EngineDiedError(f"vLLM did not start with model {model}: {reason}") from error
    except (LookupError, AttributeError, TypeError, ImportError) as error:
        # What its code for a model looks for in the model's files, and does not find.
        raise UsageError(
            f"vLLM cannot start with the files of model {model}: {type(error).__name__}: "
            f"{first_line(error)}; compare them with those published"
        ) from error


def died(logged: str, processes: Iterable[BaseProcess], otherwise: str) -> EngineDiedError:
    """Return the error of an engine that died: why the log says, or its processes do."""
    return EngineDiedError(
        f"the generation engine died: {logged or killed(processes) or otherwise}. What was stored "
        "is safe; run the same command again to go on"
    )
