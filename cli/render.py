"""The engine's words as the command line says them: settings as options, steps as commands."""

from __future__ import annotations

import errno
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import click

from traitmill.engine.errors import ResourceError, Step, TraitmillError, UsageError
from traitmill.engine.files import FULL_DISK
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
_SCARCE = (*FULL_DISK, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
"""What a machine has run out of: disk, memory, open files, processes."""
_HANGING = re.compile(r" *(?:- |\S+ {2,})?")
"""What stands before the text of a line, as "  - " and "FAIL  ": its next lines stand below it."""
_LABEL = 12
"""Characters before a command that stand in its line, as "next: "; more have their own."""
_LEAST = 20
"""Columns that a text takes on the narrowest terminal."""
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
    click.echo(fitted(options_in(line), columns(sys.stdout)))


def columns(stream: TextIO) -> int | None:
    """Return how wide a terminal is; None for a pipe or a file, which has no width to keep to."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def fitted(text: str, width: int | None) -> str:
    """Return a text whose lines are broken between words, where they are wider than a terminal.

    A command begins a line of its own and goes on after a backslash, so that it can be pasted. A
    word that is wider than the terminal, such as a path, stays whole for the same reason.
    """
    if width is None:
        return text
    return "\n".join(
        line if len(line) <= width else "\n".join(_broken(line, width)) for line in text.split("\n")
    )


def _broken(line: str, width: int) -> list[str]:
    hanging = _HANGING.match(line)
    indent = " " * (len(hanging[0]) if hanging else 0)
    found = re.search(rf"{re.escape(program())} [a-z_]+ --", line)
    if found is None:
        return _wrapped(line, width, "", indent)
    said, pasted = line[: found.start()], line[found.start() :]
    lines = []
    if len(said) > _LABEL:
        lines = _wrapped(said, width, "", indent)
        said = f"{indent}  "
    # What stands in quotes is one word.
    pasted = re.sub(r"'[^']*'", lambda match: match[0].replace(" ", "\0"), pasted)
    words = _wrapped(pasted, width - 2, said, " " * len(said))
    words = [each.replace("\0", " ") for each in words]
    return [*lines, *(f"{each} \\" for each in words[:-1]), words[-1]]


def _wrapped(text: str, width: int, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text,
        max(width, _LEAST),
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def command(step: Step, traits: Sequence[str] = ()) -> str:
    """Return the command of a step, on its folder or on several traits beside it, to be pasted."""
    return command_of(step.name, step.folder, traits, **dict(step.settings))


def command_of(name: str, folder: Path, traits: Sequence[str] = (), **settings: object) -> str:
    """Return a command on a trait's folder or on several traits beside it, to be pasted."""
    which = f"--trait {shlex.quote(folder.name)}"
    if len(traits) > 1:
        which = f"--traits {','.join(traits)}"
    words = [f"{program()} {name} --experiment {shlex.quote(folder.parent.name)} {which}"]
    # Where there are several pools, none named is that of the last fit.
    several = any(folder.glob("activations/all_layers.*.pt"))
    where = str(folder.parent.parent)
    if where != "experiments":
        words.append(f"--experiments_dir {shlex.quote(where)}")
    for option, value in settings.items():
        if value is True:
            words.append(f"--{option}")
        elif several or (option, value) != ("pool", DEFAULT_POOL):
            words.append(f"--{option} {shlex.quote(str(value))}")
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
        return _short(own)
    if found is None:
        return f"{shlex.quote(sys.executable)} -m {PROGRAM}"
    return PROGRAM


def _short(path: Path) -> str:
    """Return a path as it can be pasted: from here or from the home folder where it lies below."""
    with suppress(ValueError):
        return shlex.quote(str(path.relative_to(Path.cwd())))
    with suppress(ValueError, RuntimeError):
        return f"~/{shlex.quote(str(path.relative_to(Path.home())))}"
    return shlex.quote(str(path))


def error_text(error: TraitmillError) -> str:
    """Return an error as the command line says it: what is wrong, and what to run."""
    text = options_in(error.message)
    if error.step is None:
        return text
    return f"{text}: {command(error.step)}"


def complain(*errors: TraitmillError) -> None:
    """Write errors to standard error."""
    for error in errors:
        click.echo(fitted(f"traitmill: {error_text(error)}", columns(sys.stderr)), err=True)


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
