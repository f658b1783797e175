"""What can go wrong, as the user should hear of it: each error is one clear line with a remedy, and
an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Literal


class ExitCode(IntEnum):
    """Exit codes of every command; the README's table is checked against this class."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    ACCESS = 3
    LOCKED = 4
    SETTINGS_CHANGED = 5
    FAILED_SAMPLES = 6
    NOTHING_KEPT = 7
    STOPPED = 8
    ENGINE_DIED = 9
    RESOURCES = 10
    SELF_CHECK = 11
    INTERRUPTED = 130


_COROUTINES = frozenset({"run", "generate", "activations", "judge", "steer"})
"""Steps that a program has to await."""


@dataclass(frozen=True, slots=True)
class Step:
    """What to do next on a trait's folder: a function of the package, which is a command too.

    `str` is the call; the command line shows the command.
    """

    name: Literal[
        "run", "generate", "activations", "vectors", "steer", "report", "judge", "export", "status"
    ]
    folder: Path
    settings: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        call = {
            "run": "generate",
            "activations": "capture",
            "vectors": "fit_experiment",
            "report": "write_report",
        }
        named = "".join(f", {name}={value!r}" for name, value in self.settings)
        experiment, trait = str(self.folder.parent), self.folder.name
        wait = "await " if self.name in _COROUTINES else ""
        name = call.get(self.name, self.name)
        return f"{wait}traitmill.{name}({experiment!r}, {trait!r}{named})"


class TraitmillError(Exception):
    """Base of all errors a user can act on.

    The message is what they read: it says what to do, and `step`, where there is one, does it.
    A setting stands in backquotes, as `n_examples`; the command line shows it as its option.
    """

    exit_code = ExitCode.INTERNAL

    def __init__(self, message: str, step: Step | None = None) -> None:
        super().__init__(message)
        self.message, self.step = message, step

    def __str__(self) -> str:
        return self.message if self.step is None else f"{self.message}: {self.step}"


class UsageError(TraitmillError):
    """An option or argument that cannot work."""

    exit_code = ExitCode.USAGE


class DefinitionError(UsageError):
    """One or more trait definitions are invalid; `faults` lists every one as `file: key: what`."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        count = len(self.faults)
        faults = f"{count} fault{'s' if count != 1 else ''}"
        head = f"{faults} in the trait definitions; mend them and run again:"
        super().__init__("\n".join([head, *(f"  {fault}" for fault in self.faults)]))


class AccessError(TraitmillError):
    """A model, key or token is missing, gated or refused."""

    exit_code = ExitCode.ACCESS


class LockedError(TraitmillError):
    """Another run holds a trait's folder."""

    exit_code = ExitCode.LOCKED


class SettingsChangedError(TraitmillError):
    """Settings that define the samples differ from those the folder was made with."""

    exit_code = ExitCode.SETTINGS_CHANGED


class FailedSamplesError(TraitmillError):
    """Some samples failed, and what is made of all of them waits until they are tried again."""

    exit_code = ExitCode.FAILED_SAMPLES


class NothingKeptError(TraitmillError):
    """One side has no response that passes the threshold."""

    exit_code = ExitCode.NOTHING_KEPT


class StoppedError(TraitmillError):
    """Work stopped on purpose and can be resumed: no quota, cost limit, patience."""

    exit_code = ExitCode.STOPPED


class EngineDiedError(TraitmillError):
    """The generation engine or the capture worker died."""

    exit_code = ExitCode.ENGINE_DIED


class DeadlyError(EngineDiedError):
    """One request that engines die with again and again: it is not asked once more."""


class ResourceError(TraitmillError):
    """Disk full, or memory that does not suffice even for one row."""

    exit_code = ExitCode.RESOURCES


class SelfCheckError(TraitmillError):
    """Captured activations contradict what they are checked against."""

    exit_code = ExitCode.SELF_CHECK


def require(condition: bool, message: str) -> None:
    """Raise UsageError with the message unless the condition holds."""
    if not condition:
        raise UsageError(message)
