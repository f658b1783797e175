"""The engine's words as the command line says them: settings as options, steps as commands."""

from __future__ import annotations

import errno
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from traitmill.engine.errors import ResourceError, Step, TraitmillError, UsageError
from traitmill.engine.settings import DEFAULT_POOL, NAMES

PROGRAM = "traitmill"
_OPTIONS = {
    *NAMES,
    "adapter",
    "coefficients",
    "coherence",
    "experiments_dir",
    "experiment",
    "force_unlock",
    "format",
    "gen_model",
    "gpus",
    "method",
    "methods",
    "n_traits",
    "n_random",
    "new_run",
    "reset",
    "texts",
    "to",
    "positions",
    "trait",
    "traits",
    "use_judge",
    "vectors",
    "extract_activations",
    "yes",
}
_SCARCE = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
"""What a machine has run out of: disk, memory, open files, processes."""
_NO_MEMORY = ("can't start new thread", "failed to map segment", "cannot allocate memory")


def options_in(text: str) -> str:
    """Return a text with settings in backquotes as options: `n_examples` is --n_examples."""

    def render(match: re.Match[str]) -> str:
        if match[1] in _OPTIONS:
            return f"--{match[1]}"
        return match[0]

    return re.sub("`([a-z_]+)`", render, text)


def say(line: str) -> None:
    """Write one of the engine's lines to standard output."""
    click.echo(options_in(line))


def command(step: Step, traits: Sequence[str] = ()) -> str:
    """Return the command of a step, on its folder or on several traits beside it, to be pasted."""
    folder = step.folder
    which = f"--trait {shlex.quote(folder.name)}"
    if len(traits) > 1:
        which = f"--traits {','.join(traits)}"
    words = [f"{program()} {step.name} --experiment {shlex.quote(folder.parent.name)} {which}"]
    where = str(folder.parent.parent)
    if where != "experiments":
        words.append(f"--experiments_dir {shlex.quote(where)}")
    for name, value in step.settings:
        if (name, value) != ("pool", DEFAULT_POOL):
            words.append(f"--{name} {shlex.quote(str(value))}")
    return " ".join(words)


def program() -> str:
    """Return what runs this command where it is pasted: the name alone only where that finds it."""
    own = Path(sys.argv[0]).absolute()
    found = shutil.which(PROGRAM)
    if (
        own.name == PROGRAM
        and own.is_file()
        and (found is None or Path(found).resolve() != own.resolve())
    ):
        return shlex.quote(str(own))
    if found is None:
        return f"{shlex.quote(sys.executable)} -m {PROGRAM}"
    return PROGRAM


def error_text(error: TraitmillError) -> str:
    """Return an error as the command line says it: what is wrong, and what to run."""
    text = options_in(error.message)
    if error.step is None:
        return text
    return f"{text}: {command(error.step)}"


def complain(*errors: TraitmillError) -> None:
    """Write errors to standard error."""
    for error in errors:
        click.echo(f"traitmill: {error_text(error)}", err=True)


def as_error(error: BaseException) -> TraitmillError | None:
    """Return an error of the engine or of the machine as one a user can act on; None for a bug."""
    if isinstance(error, TraitmillError):
        return error
    if isinstance(error, OSError) and error.errno not in _SCARCE:
        return UsageError(f"{_where(error)}; {_remedy(error)}")
    scarce = isinstance(error, OSError | MemoryError)
    if isinstance(error, RuntimeError | ImportError):
        scarce = any(words in str(error).lower() for words in _NO_MEMORY)
    if not scarce:
        return None
    return ResourceError(
        f"this machine has run out of something: {_where(error)}; what was stored is safe: free "
        "some disk or memory (or raise the limits of ulimit), and run again"
    )


def _where(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error).strip() or type(error).__name__


def _remedy(error: OSError) -> str:
    if isinstance(error, IsADirectoryError):
        return "a folder is where a file belongs: move it away and run again"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return "a file is where a folder belongs: move it away and run again"
    if isinstance(error, PermissionError):
        return "check its permissions, or use another --experiments_dir"
    return "what was stored is safe: mend that and run again"
