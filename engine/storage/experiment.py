"""Where traits live: experiments/<experiment>/<trait>/, and which of them a command means."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..traits.definition import DEFINITION_FILE, check_name

_INSIDE = (
    "activations/per_token",
    *(f"parquet/{kind}" for kind in ("responses", "verdicts", "activations", "quarantine")),
)


def command_on(name: str, folder: Path, traits: Sequence[str] = ()) -> str:
    """The command `traitmill <name>` on a trait's folder, or on several traits beside it, to be pasted."""
    which = f"--traits {','.join(traits)}" if len(traits) > 1 else f"--trait {folder.name}"
    where = folder.parent.parent
    elsewhere = (
        "" if where == Path("experiments") else f" --experiments_dir {shlex.quote(str(where))}"
    )
    return f"traitmill {name} --experiment {folder.parent.name} {which}{elsewhere}"


def select_traits(
    experiments_dir: Path, experiment: str, trait: str | None, traits: str | None
) -> dict[str, Path]:
    """The trait folders a command works on, by name, in the order given.

    Exactly one of `trait` (one name) and `traits` (comma-separated names, or `all`) is given. Nothing outside the
    experiment's folder is ever returned. Raises UsageError.
    """
    if (trait is None) == (traits is None):
        raise UsageError("give one of --trait NAME and --traits NAME,NAME (or --traits all)")
    check_name(experiment, "experiment")
    root = experiments_dir / experiment
    if not root.is_dir():
        known = (
            ", ".join(sorted(p.name for p in experiments_dir.glob("*") if p.is_dir())) or "none yet"
        )
        raise UsageError(
            f"{root} does not exist; make {root}/<trait>/{DEFINITION_FILE} first, or check --experiments_dir "
            f"(experiments there: {known})"
        )
    inside = experiments_dir.resolve()
    if not root.resolve().is_relative_to(inside):
        raise UsageError(
            f"{root} is a link out of {experiments_dir}; nothing is read or written there"
        )
    available = sorted(p.parent.name for p in root.glob(f"*/{DEFINITION_FILE}"))
    if traits == "all":
        names = available
        if not names:
            raise UsageError(f"{root} has no traits; make {root}/<trait>/{DEFINITION_FILE} first")
    else:
        names = [
            name.strip() for name in ([trait] if trait is not None else (traits or "").split(","))
        ]
    folders = {}
    if traits is not None and "" in names:
        raise UsageError(
            f"--traits {traits!r} has an empty name; write names with one comma between them, or all"
        )
    for name in names:
        check_name(name, "trait")
        folder = root / name
        if name in folders:
            raise UsageError(f"--traits names {name} twice")
        if not folder.is_dir():
            raise UsageError(
                f"{folder} does not exist; traits of {experiment}: {', '.join(available) or 'none yet'}"
            )
        if not folder.resolve().is_relative_to(root.resolve()):
            raise UsageError(f"{folder} is a link out of {root}; nothing is read or written there")
        _check_links(folder)
        folders[name] = folder
    _check_links(root)
    return folders


def _check_links(folder: Path) -> None:
    """Raise UsageError where something we would write through is a link out of the folder."""
    for name in (".logs", "parquet", "responses", "activations", "vectors", "plots", *_INSIDE):
        path = folder / name
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"{path} is a link out of {folder}; nothing is written there. To keep runs on another disk, put all of "
                "them there and name it with --experiments_dir"
            )


def check_writable(folders: dict[str, Path]) -> None:
    """Raise UsageError for a folder that cannot be written, before any work is done."""
    for folder in folders.values():
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(
                f"{folder} cannot be written; check its permissions, or use another --experiments_dir"
            )
