"""Import traits of other projects: the definition, the originals and the report, or nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import unicodedata
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import DefinitionError, UsageError
from ..files import sha256_of
from ..settings import plain_arguments
from ..storage import check_name
from ..traits import (
    DEFINITION_FILE,
    IMPORT_KINDS,
    Foreign,
    check_bytes,
    definition_bytes,
    parse_definition,
    read_foreign,
)

IMPORTED = "imported"
"""A trait's folder of originals, and of the report on what was made of them."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A trait that was imported, and what was taken, changed and left."""

    name: str
    path: Path
    took: tuple[str, ...]
    changed: tuple[str, ...]
    left: tuple[str, ...]
    advice: tuple[str, ...]
    to_mend: tuple[str, ...]
    """What `check_traits` calls errors."""


@plain_arguments
def import_traits(
    source: Path | str,
    experiment: Path | str,
    *,
    kind: str = "auto",
    questions: Path | str | None = None,
    model_name: str | None = None,
) -> list[Imported]:
    """Write traits of another project into an experiment's folder, the originals beside.

    `source` is a file or folder of persona_vectors, of assistant-axis, of trait-interp's scenarios,
    or a JSONL of pairs; `kind` says which, where that cannot be seen. `questions` is a JSONL of
    shared questions, `model_name` stands for {model_name} in a default role.

    One that is there just so is left as it is: an import that was cut off goes on. Raise UsageError
    or DefinitionError where one of them cannot be read, or another is there; nothing is written
    then.
    """
    if kind not in IMPORT_KINDS:
        raise UsageError(f"`format` {kind!r} is unknown; use one of {', '.join(IMPORT_KINDS)}")
    root = Path(experiment)
    check_name(root.name, "experiment")
    given = Path(questions) if questions is not None else None
    found = read_foreign(Path(source), kind, given, model_name)
    faults: list[str] = []
    for foreign in found:
        _give_name(foreign)
    for name, times in Counter(foreign.name for foreign in found).items():
        if times > 1:
            faults.append(f"{times} of the traits would be {name}: rename their files or folders")
    for foreign in found:
        if (root / foreign.name).exists() and not _is_there(foreign, root):
            faults.append(f"{root / foreign.name} is there already; move it, or import elsewhere")
        try:
            parse_definition(foreign.name, definition_bytes(foreign), str(foreign.files[0]))
        except DefinitionError as error:
            faults += error.faults
    if faults:
        raise DefinitionError(faults)
    root.mkdir(parents=True, exist_ok=True)
    for foreign in found:
        if not (root / foreign.name).exists():
            _write(foreign, root)
    return [_imported(foreign, root) for foreign in found]


def _is_there(foreign: Foreign, root: Path) -> bool:
    """Return whether a trait's folder was imported already, and its definition never changed."""
    folder = root / foreign.name
    if not (folder / IMPORTED).is_dir():
        return False
    with suppress(OSError):
        return (folder / DEFINITION_FILE).read_bytes() == definition_bytes(foreign)
    return False


def _give_name(foreign: Foreign) -> None:
    """Give a trait a name that its folder can have, where its own is refused."""
    own = foreign.name
    if own == "all":
        raise UsageError("trait name 'all' is refused: `traits` all means every trait")
    try:
        check_name(own, "trait")
    except UsageError:
        plain = unicodedata.normalize("NFKD", own).encode("ascii", "ignore").decode()
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")[:100]
        if name in ("", "all"):
            raise
        foreign.name = check_name(name, "trait")
        foreign.changed.append(f"named {name}: {own!r} cannot be the name of a folder here")


def _write(foreign: Foreign, root: Path) -> None:
    """Write one trait's folder beside its place, then put it there whole."""
    temporary = root / f".importing-{foreign.name}-{os.getpid()}"
    try:
        kept = temporary / IMPORTED
        kept.mkdir(parents=True)
        for path in foreign.files:
            shutil.copyfile(path, kept / path.name)
        report = {
            "took": foreign.took,
            "changed": foreign.changed,
            "left": foreign.left,
            "advice": foreign.advice,
            "sha256": {path.name: sha256_of(kept / path.name) for path in foreign.files},
        }
        (kept / "import_report.json").write_text(
            json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        )
        (temporary / DEFINITION_FILE).write_bytes(definition_bytes(foreign))
        temporary.rename(root / foreign.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _imported(foreign: Foreign, root: Path) -> Imported:
    findings = check_bytes(foreign.name, definition_bytes(foreign))
    errors = [each for each in findings if each.severity == "error"]
    return Imported(
        name=foreign.name,
        path=root / foreign.name,
        took=tuple(foreign.took),
        changed=tuple(foreign.changed),
        left=tuple(foreign.left),
        advice=tuple(foreign.advice),
        to_mend=tuple(map(str, errors)),
    )
