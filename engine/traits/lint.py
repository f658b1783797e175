"""What a definition's author should mend before a run is paid: findings, each with its remedy.

An error spoils the measurement, and no run starts with it. A warning is a doubt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import DefinitionError
from ..records import POLARITIES
from .definition import DEFINITION_FILE, DRAFT, KEYS, SCHEMA_KEY, parse_definition
from .lint_texts import Finding, error, text_findings, warning


def check_definition(name: str, folder: Path) -> list[Finding]:
    """Return what is to be mended in a trait's definition, errors first.

    What cannot be read at all is a finding too. Raise nothing for what an author can mend.
    """
    path = folder / DEFINITION_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [error("missing", "", "is missing", "write it (see docs/creating_traits.md)")]
    except OSError as fault:
        return [error("unreadable", "", f"cannot be read: {fault.strerror}", "check the file")]
    return check_bytes(name, data)


def check_bytes(name: str, data: bytes) -> list[Finding]:
    """Return the findings of a definition's bytes, errors first."""
    findings = [*_keys(data)]
    try:
        trait = parse_definition(name, data, "")
    except DefinitionError as refused:
        mend = "see docs/creating_traits.md"
        faults = [fault.removeprefix(": ") for fault in refused.faults]
        # A key that is missing under its right name was named already, as it is mistyped.
        renamed = {each.meant for each in findings}
        findings += [
            error("invalid", "", fault, mend)
            for fault in faults
            if fault.partition(":")[0] not in renamed or "not missing" not in fault
        ]
    else:
        findings += text_findings(trait)
    return sorted(findings, key=lambda finding: finding.severity != "error")


def definition_errors(folders: Mapping[str, Path]) -> list[str]:
    """Return the errors of several definitions that can be read, as `file: key: what; remedy`."""
    return [
        f"{folder / DEFINITION_FILE}: {finding}"
        for name, folder in folders.items()
        for finding in check_definition(name, folder)
        if finding.severity == "error"
    ]


# --- keys ---


def _keys(data: bytes) -> Iterator[Finding]:
    """Find keys that are never read: a slip of the pen is an error, another word a doubt."""
    try:
        raw = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return
    if not isinstance(raw, dict):
        return
    yield from _unknown(raw, KEYS, "")
    pairs = raw.get("instruction")
    listed = pairs if isinstance(pairs, list) else []
    sided = {f"instruction[{index}]": pair for index, pair in enumerate(listed)}
    sided["assistant_name"] = raw.get("assistant_name")
    for where, pair in sided.items():
        if isinstance(pair, dict):
            yield from _unknown(pair, POLARITIES, where)
    if raw.get(DRAFT):
        yield warning(
            "draft", DRAFT, "is a draft that no one has read", f"read it, then remove `{DRAFT}`"
        )


def _unknown(raw: Mapping[str, Any], known: Sequence[str], where: str) -> Iterator[Finding]:
    for key in raw:
        if key in known or key in (SCHEMA_KEY, DRAFT):
            continue
        plain = key.lower().replace("-", "_").replace(" ", "_")
        near = get_close_matches(plain, known, n=1, cutoff=0.75)
        near += [name for name in known if plain.startswith(name)]  # positive, negative
        if near and near[0] not in raw:
            said = f"unknown key `{key}`: did you mean `{near[0]}`?"
            meant = ".".join(filter(None, (where, near[0])))
            yield error("unknown-key", where, said, "it is not read as it stands", meant)
        else:
            said = f"unknown key `{key}` is never read"
            yield warning("unknown-key", where, said, f"known are {', '.join(known)}")
