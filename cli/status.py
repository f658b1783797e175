"""`traitmill status`: what a run holds. Takes no lock and loads no model."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from traitmill.engine.errors import ExitCode

from .options import GroupedCommand, option, selected, selection_options
from .render import options_in
from .session import leave

if TYPE_CHECKING:
    from traitmill.engine.storage import TraitState

_WIDE = 240
"""Columns of a table that is not shown on a terminal."""
_COLUMNS = ("trait", "side", "planned", "generated", "judged", "captured", "kept", "other", "MB")
_LEFT = ("trait", "side", "other", "model", "judge")


@click.command(cls=GroupedCommand)
@selection_options
@option("--json", "as_json", is_flag=True, help="For programs.", group="Output", common=True)
def command(*, as_json: bool, **options: Any) -> None:
    """Planned, generated, judged, captured and kept, by status, per trait (default: all traits)."""
    from traitmill.engine.run.selection import select
    from traitmill.engine.storage import has_run, load_state

    experiment, traits = selected(options, default_all=True)
    folders = select(experiment, traits)
    states = {}
    for name, folder in folders.items():
        states[name] = load_state(folder) if has_run(folder) else None
    found = {name: _facts(state) if state else None for name, state in states.items()}
    if as_json:
        text = {"experiment": experiment.name, "traits": found}
        click.echo(json.dumps(text, indent=1, ensure_ascii=False))
    else:
        _print(experiment.name, found)
    damaged = any(facts and facts["damaged"] for facts in found.values())
    leave(ExitCode.RESOURCES if damaged else ExitCode.OK)


def _facts(state: TraitState) -> dict[str, Any]:
    from traitmill.engine.outputs import judge_summary
    from traitmill.engine.storage import unfinished_sets, verdict_sets

    root = state.folder.path
    sizes = {}
    for name in ("parquet", "responses", "activations", "vectors"):
        files = [path for path in (root / name).rglob("*") if path.is_file()]
        sizes[name] = sum(path.stat().st_size for path in files)
    return {
        "created": state.record.created,
        "counts": state.counts(),
        "judge": judge_summary(state),
        "judges": {key: facts.model_dump() for key, facts in verdict_sets(state.folder).items()},
        "run": state.record.model_dump(),
        "threshold": state.threshold,
        "bytes": sizes,
        "quarantined": len(list(state.folder.quarantine.glob("*"))),
        "damaged": state.damaged,
        "remarks": unfinished_sets(state),
    }


def _print(experiment: str, found: dict[str, dict[str, Any] | None]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=experiment, title_justify="left")
    for column in (*_COLUMNS, "model", "judge"):
        table.add_column(column, justify="left" if column in _LEFT else "right")
    for name, facts in found.items():
        if facts is None:
            table.add_row(name, "", "no run yet")
            continue
        megabytes = f"{sum(facts['bytes'].values()) / 1e6:.1f}"
        model, judge = facts["run"]["sampling"]["model"], facts["judge"]["model"] or "-"
        for polarity, side in facts["counts"].items():
            head, tail = ("", ""), ("", "", "")
            if polarity == "pos":
                head, tail = (name, polarity), (megabytes, model, judge)
            table.add_row(head[0], polarity, *_cells(side), *tail)
    # Without a terminal there is no width to keep to: who reads it wants the whole of it.
    width = None if sys.stdout.isatty() else _WIDE
    Console(highlight=False, width=width).print(table)
    for name, facts in found.items():
        if facts is None:
            continue
        for line in [*facts["damaged"], *facts["remarks"]]:
            click.echo(f"{name}: {options_in(line)}")


def _cells(side: dict[str, Any]) -> list[str]:
    """Return the counts of one side, and what is neither generated nor scored."""
    other = {name: n for name, n in side["responses"].items() if n and name != "ok"}
    other |= {name: n for name, n in side["verdicts"].items() if n and name != "scored"}
    counts = (
        side["planned"],
        side["responses"]["ok"],
        side["verdicts"]["scored"],
        side["captured"],
        side["kept"],
    )
    return [*map(str, counts), ", ".join(f"{count} {name}" for name, count in other.items())]
