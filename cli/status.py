"""`traitmill status`: what a run holds. Takes no lock and loads no model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from traitmill.cli.options import selection_options

if TYPE_CHECKING:
    from traitmill.engine.storage.state import TraitView

_WIDE = 240
"""Columns of a table that is not shown on a terminal."""


@click.command()
@selection_options
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def command(
    experiment: str, trait: str | None, traits: str | None, experiments_dir: Path, *, as_json: bool
) -> None:
    """Planned, generated, judged, captured and kept, by status, per trait (default: all traits)."""
    from traitmill.engine.storage.experiment import select_traits
    from traitmill.engine.storage.run_record import load_manifest
    from traitmill.engine.storage.state import load_view

    if trait is None and traits is None:
        traits = "all"
    folders = select_traits(experiments_dir, experiment, trait, traits)
    found = {
        name: _facts(load_view(folder)) if load_manifest(folder) else None
        for name, folder in folders.items()
    }
    if as_json:
        click.echo(
            json.dumps({"experiment": experiment, "traits": found}, indent=1, ensure_ascii=False)
        )
    else:
        _print(experiment, found)


def _facts(view: TraitView) -> dict[str, Any]:
    from traitmill.engine.outputs.export import judge_summary

    manifest = view.manifest
    sizes = {
        name: sum(path.stat().st_size for path in (view.folder / name).rglob("*") if path.is_file())
        for name in ("parquet", "responses", "activations", "vectors")
    }
    return {
        "created": manifest.created,
        "counts": view.counts(),
        "judge": judge_summary(view),
        "judges": manifest.judges,
        "settings": manifest.settings,
        "bytes": sizes,
        "quarantined": len(list((view.folder / "parquet" / "quarantine").glob("*"))),
    }


def _print(experiment: str, found: dict[str, dict[str, Any] | None]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{experiment}", title_justify="left")
    for column in (
        "trait",
        "side",
        "planned",
        "generated",
        "judged",
        "captured",
        "kept",
        "other",
        "MB",
        "model",
        "judge",
    ):
        table.add_column(
            column,
            justify="left" if column in ("trait", "side", "other", "model", "judge") else "right",
        )
    for name, facts in found.items():
        if facts is None:
            table.add_row(name, "", "no run yet")
            continue
        for polarity, side in facts["counts"].items():
            first = polarity == "pos"
            other = {n: c for n, c in side["responses"].items() if c and n != "ok"}
            other |= {n: c for n, c in side["verdicts"].items() if c and n != "scored"}
            table.add_row(
                name if first else "",
                polarity,
                str(side["planned"]),
                str(side["responses"]["ok"]),
                str(side["verdicts"]["scored"]),
                str(side["captured"]),
                str(side["kept"]),
                ", ".join(f"{count} {status}" for status, count in other.items()),
                f"{sum(facts['bytes'].values()) / 1e6:.1f}" if first else "",
                facts["settings"]["identity"]["model"] if first else "",
                facts["settings"]["judging"]["model"] if first else "",
            )
    # Without a terminal there is no width to keep to: whoever reads it wants the whole of it.
    Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE).print(table)
