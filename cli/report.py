"""`traitmill report`: the pages of traits and of their experiment."""

from __future__ import annotations

from typing import Any

import click

from . import options
from .render import complain, say
from .vectors import POOL

OPEN = options.Option("open", "Open the page in the browser.", "Pages", common=True, is_flag=True)


@click.command(
    cls=options.GroupedCommand,
    params=[*options.SELECTION, OPEN, POOL, options.FORCE_UNLOCK],
)
def command(**given: Any) -> int:
    """Write report.html and plots/ for each trait, and for the experiment."""
    from traitmill.engine.report import write_report

    arguments = options.arguments(given)
    wants_open = arguments.pop("open", False)
    result = write_report(**arguments, notice=say)
    for page in result.pages:
        say(str(page))
    complain(*result.errors)
    if wants_open and result.pages:
        number = -1  # the experiment's
        if len(arguments["traits"] or ()) == 1:
            number = 0
        click.launch(str(result.pages[number]))
    return result.exit_code
