"""`traitmill report`: the pages of traits and of their experiment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click

from traitmill.cli.options import selection_options
from traitmill.engine.errors import ExitCode, TraitmillError
from traitmill.engine.settings import POOLS


@click.command()
@selection_options
@click.option(
    "--pool",
    type=click.Choice(POOLS),
    default=POOLS[0],
    show_default=True,
    help="Which activations.",
)
@click.option("--open", "open_", is_flag=True, help="Open the page in the browser.")
@click.option(
    "--force_unlock", is_flag=True, help="Take over a folder locked by a run on another host."
)
def command(
    experiment: str,
    trait: str | None,
    traits: str | None,
    experiments_dir: Path,
    pool: str,
    *,
    open_: bool,
    force_unlock: bool,
) -> None:
    """Write report.html and plots/ for each trait, and for the experiment."""
    from traitmill.engine.report.page import write_experiment_report, write_trait_report
    from traitmill.engine.storage.experiment import check_writable, select_traits
    from traitmill.engine.storage.lock import lock_traits

    folders = select_traits(experiments_dir, experiment, trait, traits)
    check_writable(folders)
    pages = [partial(write_trait_report, folder, pool) for folder in folders.values()]
    whole = partial(write_experiment_report, experiments_dir / experiment, click.echo, pool)
    with lock_traits(list(folders.values()), force_unlock=force_unlock):
        written, code = write_pages(pages)
        if written:
            pages_too, worse = write_pages([whole])
            written, code = [*written, *pages_too], max(code, worse)
    for page in written:
        click.echo(page)
    if open_ and written:
        click.launch(str(written[0] if len(folders) == 1 else written[-1]))
    raise click.exceptions.Exit(code)


def write_pages(pages: Sequence[Callable[[], Path]]) -> tuple[list[Path], ExitCode]:
    """Write each page; one that cannot be written is said, and the others are none the worse for it."""
    written, code = [], ExitCode.OK
    for page in pages:
        try:
            written.append(page())
        except TraitmillError as error:
            click.echo(f"traitmill: {error}", err=True)
            code = max(code, error.exit_code)
    return written, code
