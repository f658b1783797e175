"""`traitmill preview`: a few responses of both sides, side by side, before a run is paid."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from traitmill.engine.errors import UsageError
from traitmill.engine.records import POLARITIES

from . import options
from .render import command_of, complain, say
from .session import leave_if, watched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table
    from rich.text import Text

    from traitmill.engine.run import Preview

_OWN = {"experiment", "experiments_dir", "trait", "traits", "questions"}
"""Options that say what is previewed, or that its next command has anyway."""
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
    from traitmill.engine.storage import TraitFolder, has_run

    arguments = options.arguments(given)
    traits = arguments.pop("traits")
    if traits is None or len(traits) != 1:
        raise UsageError("a preview is of one trait: name it with --trait")
    found = watched(preview, {**arguments, "trait": traits[0]})
    _show(found)
    complain(*found.result.errors)
    leave_if(interrupted=found.result.interrupted)
    # Nothing of it is kept: what was typed has to be given to the run too.
    typed = {name: given[name] for name in given if _is_typed(name)}
    if not found.result.errors:
        path = arguments["experiment"] / traits[0]
        say(f"next: {command_of('run', path, **typed)}")
        if typed and has_run(TraitFolder(path)):
            say(
                "a run stands there: where these settings are others, it needs --new_run, which "
                "moves that run aside"
            )
    return max((error.exit_code for error in found.result.errors), default=0)


def _is_typed(name: str) -> bool:
    typed = click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE
    return typed and name not in _OWN


def _show(found: Preview) -> None:
    from rich.rule import Rule
    from rich.text import Text

    from .display import open_console

    console = open_console(sys.stdout)
    heads = [Text(f"{side}: {found.instruction[side]}", style="bold") for side in POLARITIES]
    console.print(_side_by_side(heads))
    for question, rows in groupby(found.rows, key=lambda row: row.question):
        cells = {polarity: Text("nothing generated", style="dim") for polarity in POLARITIES}
        for row in rows:
            score = row.status if row.score is None else f"score {row.score:g}"
            score += ", cut off" if row.cut_off else ""
            cells[row.polarity] = Text.assemble((f"{score}\n", "bold"), row.response.strip(), "\n")
        console.print(Rule(style="dim"))
        console.print(Text(question, style="italic"))
        console.print(_side_by_side(list(cells.values())))
    if any(trait.settings.judge.is_local for trait in found.result.traits.values()):
        say("scores: 50 is the middle of the responses shown")
    if found.result.usage is not None:
        say(f"judge: {found.result.usage}")


def _side_by_side(cells: Sequence[Text]) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 1, 0, 0), expand=True)
    for _ in cells:
        table.add_column(ratio=1)
    table.add_row(*cells)
    return table
