"""`traitmill preview`: a few responses of both sides, side by side, before a run is paid."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from traitmill.engine.errors import UsageError
from traitmill.engine.records import POLARITIES

from . import options
from .render import complain, say
from .session import leave_if, watched

if TYPE_CHECKING:
    from traitmill.engine.run import Preview

PARAMS = (
    *options.SELECTION,
    options.Option(
        "questions", "How many questions.  [3]", "What", common=True, type=int, default=3
    ),
    *options.SAMPLING,
    *options.JUDGE,
    *options.MACHINE,
)


@click.command(cls=options.GroupedCommand, greets=True, params=PARAMS)
def command(**given: Any) -> int:
    """Generate and judge the first questions under the first instruction pair, and show both sides.

    Nothing is kept. It costs one call of the judge for each response: six without --questions.
    """
    from traitmill.engine.run import preview

    arguments = options.arguments(given)
    traits = arguments.pop("traits")
    if traits is None or len(traits) != 1:
        raise UsageError("a preview is of one trait: name it with --trait")
    if "gen_model" in arguments:
        arguments["model"] = arguments.pop("gen_model")
    found = watched(preview, {**arguments, "trait": traits[0]})
    _show(found)
    complain(*found.result.errors)
    leave_if(interrupted=found.result.interrupted)
    return max((error.exit_code for error in found.result.errors), default=0)


def _show(found: Preview) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from .display import open_console

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, expand=True)
    for polarity in POLARITIES:
        table.add_column(Text(f"{polarity}: {found.instruction[polarity]}"), ratio=1)
    for question, rows in groupby(found.rows, key=lambda row: row.question):
        cells = {polarity: Text("nothing generated", style="dim") for polarity in POLARITIES}
        for row in rows:
            score = row.status if row.score is None else f"score {row.score:g}"
            cells[row.polarity] = Text.assemble((f"{score}\n", "bold"), row.response.strip(), "\n")
        table.add_row(Text(question, style="italic"), "")
        table.add_row(*cells.values())
    console = open_console(sys.stdout)
    console.print(table)
    if found.result.usage is not None:
        say(f"judge: {found.result.usage}")
