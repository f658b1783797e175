"""The engine's words as the command line says them: settings as options, steps as commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from traitmill.engine.errors import Step, TraitmillError
from traitmill.engine.settings import NAMES

_OPTIONS = {
    *NAMES,
    "experiments_dir",
    "experiment",
    "force_unlock",
    "gen_model",
    "methods",
    "new_run",
    "trait",
    "traits",
    "use_judge",
    "extract_activations",
}
_QUOTED = re.compile(r"`([a-z_]+)`")


def options_in(text: str) -> str:
    """Return a text with settings in backquotes as options: `n_examples` is --n_examples."""

    def render(match: re.Match[str]) -> str:
        if match[1] in _OPTIONS:
            return f"--{match[1]}"
        return match[0]

    return _QUOTED.sub(render, text)


def command(step: Step, traits: Sequence[str] = ()) -> str:
    """Return the command of a step, on its folder or on several traits beside it, to be pasted."""
    folder = Path(step.folder)
    which = f"--trait {folder.name}"
    if len(traits) > 1:
        which = f"--traits {','.join(traits)}"
    words = [f"traitmill {step.name} --experiment {folder.parent.name} {which}"]
    where = folder.parent.parent
    if where != Path("experiments"):
        words.append(f"--experiments_dir {shlex.quote(str(where))}")
    for name, value in step.settings:
        if (name, value) != ("pool", "response_mean"):
            words.append(f"--{name} {shlex.quote(str(value))}")
    return " ".join(words)


def error_text(error: TraitmillError) -> str:
    """Return an error as the command line says it: what is wrong, and what to run."""
    text = options_in(error.message)
    if error.step is None:
        return text
    return f"{text}: {command(error.step)}"


def complain(error: TraitmillError) -> None:
    """Write an error to standard error."""
    click.echo(f"traitmill: {error_text(error)}", err=True)
