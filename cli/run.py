"""`traitmill run`: generate, vectors and report in one resumable command."""

from __future__ import annotations

from typing import Any

import click

from traitmill.engine.errors import ExitCode

from .generate import command as generate_command
from .generate import generate
from .options import GroupedCommand
from .render import complain
from .session import leave


def run(**options: Any) -> ExitCode:
    """Run stage 1 and, for the traits it finished, stage 3 and the pages."""
    if not options["extract_activations"]:
        click.echo(
            "--extract_activations False: there will be nothing to fit vectors to; stopping after "
            "stage 1"
        )
    experiment = options["experiments_dir"] / options["experiment"]
    force_unlock = options["force_unlock"]
    result = generate(**options)
    finished = [
        trait for trait in result.traits.values() if trait.finished and trait.state.any_captured()
    ]
    if result.interrupted or not finished:
        return result.exit_code
    from traitmill.engine.report import write_report
    from traitmill.engine.vectors import fit_experiment

    from .vectors import say_fitted

    pool = finished[0].settings.capture.pools[0]
    fitted = fit_experiment(
        experiment,
        [trait.name for trait in finished],
        pool=pool,
        force_unlock=force_unlock,
        on_fitted=say_fitted,
        notice=click.echo,
    )
    errors = list(fitted.errors.values())
    code = max(result.exit_code, fitted.exit_code)
    if fitted.fitted:
        pages = write_report(
            experiment,
            list(fitted.fitted),
            pool=pool,
            force_unlock=force_unlock,
            notice=click.echo,
        )
        errors += pages.errors
        code = max(code, pages.exit_code)
        for page in pages.pages:
            click.echo(f"report: {page}")
    for error in errors:
        complain(error)
    return ExitCode(code)


@click.command(cls=GroupedCommand)
def command(**options: Any) -> None:
    """Everything: generate, judge, capture, fit vectors, evaluate them, write report.html.

    Takes the options of traitmill generate. The same command run again goes on where it was.
    """
    leave(run(**options))


command.params = list(generate_command.params)
