"""`traitmill run`: generate, vectors and report in one resumable command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from traitmill.engine.errors import ExitCode

from .generate import PARAMS, generate_arguments
from .layers import LayerDisplay
from .options import GroupedCommand
from .render import complain, say
from .session import run_to_end


@click.command(cls=GroupedCommand, greets=True, params=PARAMS)
def command(**given: Any) -> int:
    """Everything: generate, judge, capture, fit vectors, evaluate them, write report.html.

    Takes the options of traitmill generate. The same command run again goes on where it was.
    """
    arguments = generate_arguments(given)
    if arguments.get("capture") == "none":
        say("`extract_activations` False: there is nothing to fit vectors to; stage 1 only")
    return run_all(arguments)


def run_all(arguments: Mapping[str, Any]) -> ExitCode:
    """Run stage 1 and, for the traits it finished, stage 3 and the pages."""
    from traitmill.engine import run

    result = run_to_end(run.generate, arguments, goes_on=True)
    finished = [
        trait for trait in result.traits.values() if trait.finished and trait.state.any_captured()
    ]
    if not finished:
        return result.exit_code
    # One that is named now; else the folder's vectors stay of the pool that they are of.
    pool = finished[0].settings.capture.pools[0] if "pool" in arguments else None
    force_unlock = bool(arguments.get("force_unlock"))
    names = [trait.name for trait in finished]
    code = _fit_and_report(arguments["experiment"], names, pool=pool, force_unlock=force_unlock)
    return max(result.exit_code, code)


def _fit_and_report(experiment: Any, names: list[str], **how: Any) -> ExitCode:
    """Fit and show traits; one trait's trouble does not keep the others from it."""
    from traitmill.engine.report import write_report
    from traitmill.engine.vectors import fit_experiment

    from .vectors import say_fitted

    shown: dict[str, Any] = {"on_fitted": say_fitted, "on_layer": LayerDisplay(), "notice": say}
    fitted = fit_experiment(experiment, names, **shown, **how)
    complain(*fitted.errors.values())
    if not fitted.fitted:
        return fitted.exit_code
    result = write_report(experiment, list(fitted.fitted), notice=say, **how)
    for page in result.pages:
        say(f"report: {page}")
    complain(*result.errors)
    return max(fitted.exit_code, result.exit_code)
