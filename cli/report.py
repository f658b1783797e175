"""`traitmill report`: the pages of traits and of their experiment."""

from __future__ import annotations

from typing import Any

import click

from traitmill.engine.settings import DEFAULT_POOL, POOLS

from .options import GroupedCommand, force_unlock, option, selected, selection_options
from .render import complain
from .session import leave


@click.command(cls=GroupedCommand)
@selection_options
@option(
    "--pool",
    type=click.Choice(POOLS),
    default=DEFAULT_POOL,
    show_default=True,
    help="Which activations.",
    group="Pages",
)
@option(
    "--open",
    "open_",
    is_flag=True,
    help="Open the page in the browser.",
    group="Pages",
    common=True,
)
@force_unlock
def command(*, open_: bool, **options: Any) -> None:
    """Write report.html and plots/ for each trait, and for the experiment."""
    from traitmill.engine.report import write_report

    experiment, traits = selected(options)
    result = write_report(experiment, traits, notice=click.echo, **options)
    for page in result.pages:
        click.echo(page)
    for error in result.errors:
        complain(error)
    if open_ and result.pages:
        one = traits is not None and len(traits) == 1
        page = result.pages[0] if one else result.pages[-1]
        click.launch(str(page))
    leave(result.exit_code)
