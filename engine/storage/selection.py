"""Which traits' folders a command works on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UsageError
from ..files import require_utf8
from ..traits import DEFINITION_FILE
from .folder import LOG_FOLDER, TraitFolder, check_name


def select(experiment: Path | str, traits: Sequence[str] | str | None) -> dict[str, TraitFolder]:
    """Return the folders of traits (None, `all`: all) of an experiment's folder.

    Raise UsageError as `select_traits` does.
    """
    folder = Path(experiment)
    if folder.name in ("", ".."):
        folder = folder.resolve()
    if isinstance(traits, str):
        traits = None if traits == "all" else [traits]
    return select_traits(folder.parent, folder.name, traits)


def select_traits(
    experiments_dir: Path, experiment: str, traits: Sequence[str] | None
) -> dict[str, TraitFolder]:
    """Return the folders of some traits of an experiment by name, in the order given.

    `traits` None is all that have a definition. Nothing outside the experiment is ever returned.
    Raise UsageError for names that are unknown, unsafe or given twice, and for unsafe folders.
    """
    check_name(experiment, "experiment")
    root = experiments_dir / experiment
    require_utf8(root)
    if not root.is_dir():
        known = sorted(path.name for path in experiments_dir.glob("*") if path.is_dir())
        raise UsageError(
            f"{root} does not exist; make {root}/<trait>/{DEFINITION_FILE} first, or check "
            f"`experiments_dir` (experiments there: {', '.join(known) or 'none yet'})"
        )
    if not root.resolve().is_relative_to(experiments_dir.resolve()):
        raise UsageError(
            f"{root} is a link out of {experiments_dir}; nothing is read or written there"
        )
    logs = root / LOG_FOLDER
    if logs.is_symlink() and not logs.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{logs} is a link out of {root}; nothing is written there")
    # A link that leads nowhere counts: its trait is refused, not left out. What is hidden is no
    # trait: an import that was killed leaves such a folder.
    found = (path for path in root.iterdir() if os.path.lexists(path / DEFINITION_FILE))
    available = sorted(path.name for path in found if not path.name.startswith("."))
    names = available if traits is None else list(traits)
    if traits is not None and not names:
        raise UsageError("`traits` names none; leave it out for all of them")
    if not names and (root / DEFINITION_FILE).is_file():
        raise UsageError(
            f"{root} is a trait's own folder: give its experiment, {root.parent}, and the trait, "
            f"{root.name}, apart"
        )
    if not names:
        raise UsageError(f"{root} has no traits; make {root}/<trait>/{DEFINITION_FILE} first")
    folders: dict[str, TraitFolder] = {}
    for name in names:
        check_name(name, "trait")
        if name in folders:
            raise UsageError(f"`traits` names {name} twice")
        folder = TraitFolder(root / name)
        if not folder.path.is_dir():
            listed = ", ".join(available) or "none yet"
            raise UsageError(f"{folder.path} does not exist; traits of {experiment}: {listed}")
        if not folder.path.resolve().is_relative_to(root.resolve()):
            raise UsageError(
                f"{folder.path} is a link out of {root}; nothing is read or written there"
            )
        folder.check_links()
        folders[name] = folder
    _refuse_twice(folders)
    return folders


def _refuse_twice(folders: Mapping[str, TraitFolder]) -> None:
    """Raise UsageError where a trait is a link to another: two would write into one folder."""
    seen: dict[Path, str] = {}
    for name, folder in folders.items():
        other = seen.setdefault(folder.path.resolve(), name)
        if other != name:
            raise UsageError(f"traits {other} and {name} are one folder: name one of them")
