"""`traitmill report`: the pages of traits and of their experiment."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import selection_options
from engine.errors import ExitCode, TraitmillError
from engine.settings import POOLS


@click.command()
@selection_options
@click.option("--pool", type=click.Choice(POOLS), default=POOLS[0], show_default=True, help="Which activations.")
@click.option("--open", "open_", is_flag=True, help="Open the page in the browser.")
def command(
    experiment: str, trait: str | None, traits: str | None, experiments_dir: Path, pool: str, *, open_: bool
) -> None:
    """Write report.html and plots/ for each trait, and for the experiment."""
    from engine.experiment import check_writable, select_traits
    from engine.report import write_experiment_report, write_trait_report

    folders = select_traits(experiments_dir, experiment, trait, traits)
    check_writable(folders)
    pages, code = [], ExitCode.OK
    for folder in folders.values():
        try:
            pages.append(write_trait_report(folder, pool))
        except TraitmillError as error:
            if len(folders) == 1:
                raise
            click.echo(f"traitmill: {error}", err=True)  # the other traits are none the worse for it
            code = max(code, error.exit_code)
    pages.append(write_experiment_report(experiments_dir / experiment, click.echo, pool))
    for page in pages:
        click.echo(page)
    if open_:
        click.launch(str(pages[0] if len(pages) == 2 else pages[-1]))
    raise click.exceptions.Exit(code)
