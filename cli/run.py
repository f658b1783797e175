"""`traitmill run`: generate, vectors and report in one resumable command."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from traitmill.cli.generate import command as generate_command
from traitmill.cli.generate import generate
from traitmill.cli.session import leave
from traitmill.engine.errors import ExitCode, TraitmillError

if TYPE_CHECKING:
    from traitmill.engine.run.job import TraitJob


def run(**options: Any) -> ExitCode:
    """Stage 1 and, for the traits it finished, stage 3 and the pages."""
    if not options["extract_activations"]:
        click.echo(
            "--extract_activations False: there will be nothing to fit vectors to; stopping after stage 1"
        )
    outcome = generate(**options)
    finished = [job for job in outcome.jobs if job.finished and job.view.any_captured()]
    if outcome.interrupted or not finished:
        return outcome.exit_code
    from traitmill.engine.storage.lock import lock_traits

    with lock_traits([job.folder for job in finished], force_unlock=options["force_unlock"]):
        return max(
            outcome.exit_code, _fit_and_report(finished, finished[0].settings.capture.pools[0])
        )


def _fit_and_report(jobs: Sequence[TraitJob], pool: str) -> ExitCode:
    from traitmill.cli.report import write_pages
    from traitmill.cli.vectors import fit_trait
    from traitmill.engine.report.page import write_experiment_report, write_trait_report
    from traitmill.engine.vectors.methods import DEFAULT_METHODS
    from traitmill.engine.vectors.transfer import update_transfer

    code = ExitCode.OK
    experiment = jobs[0].folder.parent
    fitted = []
    for job in jobs:
        try:
            fit_trait(job.folder, DEFAULT_METHODS, None, pool)
        except (
            TraitmillError
        ) as error:  # one trait's trouble does not keep the others from being fitted
            click.echo(f"traitmill: {error}", err=True)
            code = max(code, error.exit_code)
        else:
            fitted.append(job.folder)
    update_transfer(experiment, click.echo, pool)
    pages = [partial(write_trait_report, folder, pool) for folder in fitted]
    pages.append(partial(write_experiment_report, experiment, click.echo, pool))
    written, pages_code = write_pages(pages)
    for page in written:
        click.echo(f"report: {page}")
    return max(code, pages_code)


@click.command()
def command(**options: Any) -> None:
    """Everything: generate, judge, capture, fit vectors, evaluate them, write report.html.

    Takes the options of traitmill generate. The same command run again goes on where it was.
    """
    leave(run(**options))


command.params = list(generate_command.params)
