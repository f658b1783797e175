"""`traitmill status`: what a run holds. Takes no lock and loads no model."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from traitmill.engine.errors import ExitCode, TraitmillError

from . import options
from .render import complain, error_text, say

if TYPE_CHECKING:
    from traitmill.engine.storage import TraitFolder, TraitState

_WIDE = 240
"""Columns of a table that is not shown on a terminal."""
JSON = options.Option("json", "For programs.", "Output", common=True, is_flag=True)


@click.command(cls=options.GroupedCommand, params=[*options.SELECTION, JSON])
def command(**given: Any) -> int:
    """Planned, generated, judged, captured and kept, by status, per trait (default: all traits).

    Damaged files and lost rows are named, and the exit code is not 0.
    """
    from traitmill.engine.storage import has_run, select_traits

    arguments = options.arguments(given, all_traits=True)
    experiment = arguments["experiment"]
    folders = select_traits(experiment.parent, experiment.name, arguments["traits"])
    found: dict[str, dict[str, Any] | None] = {}
    code = ExitCode.OK
    for name, folder in folders.items():
        try:
            found[name] = None
            if has_run(folder):
                found[name], worse = _facts(folder)
                code = max(code, worse)
        except TraitmillError as error:
            complain(error)
            code = max(code, error.exit_code)
    if given["json"]:
        text = {"experiment": experiment.name, "traits": found}
        click.echo(json.dumps(text, indent=1, ensure_ascii=False))
    else:
        _print(experiment.name, found)
    return code


def _facts(folder: TraitFolder) -> tuple[dict[str, Any], ExitCode]:
    """Return what a trait's run holds, and what a fault in it means to the exit code."""
    from traitmill.engine.outputs import judge_summary, noted_stale, refuse_lost
    from traitmill.engine.storage import load_state, unfinished_sets, verdict_sets

    state = load_state(folder)
    faults, code = [], ExitCode.OK
    try:
        refuse_lost(state)
    except TraitmillError as error:
        faults, code = [error_text(error)], error.exit_code
    stale = noted_stale(folder)
    facts = {
        "created": state.record.created,
        "counts": state.counts(),
        "judge": judge_summary(state),
        "judges": {key: judge.model_dump() for key, judge in verdict_sets(folder).items()},
        "run": state.record.model_dump(),
        "threshold": state.choice.threshold,
        "neg_threshold": state.choice.thresholds["neg"],
        "paired": state.choice.paired,
        "coherence": state.choice.coherence,
        "bytes": _sizes(state),
        "quarantined": len(list(folder.quarantine.glob("*"))),
        "faults": faults,
        "stale": stale,
        "remarks": [*unfinished_sets(state), *_uncounted(state)],
    }
    return facts, code


def _uncounted(state: TraitState) -> list[str]:
    """Return a line of the rows that no count holds: of a run at work, or a killed one."""
    from traitmill.engine.storage import journaled

    parts = state.parts
    found = {"responses": journaled(parts["responses"]), "verdicts": journaled(parts["verdicts"])}
    if not any(found.values()):
        return []
    listed = " and ".join(f"{n} {name}" for name, n in found.items() if n)
    return [f"{listed} of the run's last seconds are stored, and counted by the next run"]


def _sizes(state: TraitState) -> dict[str, int]:
    """Return the bytes of each of the trait's folders."""
    sizes = {}
    for name in ("parquet", "responses", "activations", "vectors"):
        files = [path for path in (state.folder.path / name).rglob("*") if path.is_file()]
        sizes[name] = sum(path.stat().st_size for path in files)
    return sizes


def _print(experiment: str, found: Mapping[str, dict[str, Any] | None]) -> None:
    from rich.console import Console

    from .status_table import shown

    # Without a terminal there is no width to keep to: who reads it wants the whole of it.
    width = None
    if not sys.stdout.isatty():
        width = _WIDE
    console = Console(highlight=False, width=width)
    for part in shown(experiment, found):
        console.print(part)
    for name, facts in found.items():
        if facts is not None:
            for line in [*facts["faults"], *facts["remarks"]]:
                say(f"{name}: {line}")
            if facts["stale"]:
                stale = ", ".join(facts["stale"])
                say(f"{name}: {stale} show other rows or verdicts than the files do now")
