"""`traitmill run`: generate, vectors and report in one resumable command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from traitmill.engine.errors import ExitCode
from traitmill.engine.settings import DEFAULTS

from .generate import PARAMS, generate_arguments
from .options import GroupedCommand
from .render import command_of, complain, say
from .session import run_to_end
from .waiting import LayerDisplay

if TYPE_CHECKING:
    from traitmill.engine.run import TraitResult
    from traitmill.engine.vectors import FittedTrait


@click.command(cls=GroupedCommand, greets=True, params=PARAMS)
def command(**given: Any) -> int:
    """Everything: generate, judge, capture, fit vectors, evaluate them, write report.html.

    Takes the options of traitmill generate. The same command run again goes on where it was.
    """
    arguments = generate_arguments(given)
    if arguments.get("capture") == "none":
        say("`extract_activations` False: there is nothing to fit vectors to; stage 1 only")
    return run_all(arguments)


def run_all(arguments: Mapping[str, Any], *, goes_on: bool = False) -> ExitCode:
    """Run stage 1 and, for the traits it finished, stage 3 and the pages.

    `goes_on`: the caller says what comes next.
    """
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
    how = {"pool": pool, "force_unlock": force_unlock}
    try:
        fitted, code = _fit_and_report(arguments["experiment"], names, **how)
    except KeyboardInterrupt:
        if arguments.get("new_run"):
            say("what was generated stands: go on without --new_run, which would begin another run")
        raise
    if fitted and not goes_on:
        for line in _next_steps([trait for trait in finished if trait.name in fitted], fitted):
            say(line)
    return max(result.exit_code, code)


def _next_steps(traits: Sequence[TraitResult], fitted: Mapping[str, FittedTrait]) -> Iterator[str]:
    """Yield what to do with what was fitted; nothing where the summary has said what to mend."""
    from .remarks import is_blind, is_trial

    worth = [trait for trait in traits if not is_blind(trait) and not is_trial(trait)]
    sure = [trait for trait in worth if _is_claimed(fitted[trait.name])]
    if sure:
        names = [trait.name for trait in sure]
        yield f"next: {command_of('steer', sure[0].folder.path, names)}"
    most = DEFAULTS.counts.n_examples
    few = [each for each in worth if each not in sure and _planned(each) < most]
    if few:
        more = command_of("run", few[0].folder.path, [each.name for each in few], n_examples=most)
        yield f"for a claim: {more}"


def _is_claimed(fitted: FittedTrait) -> bool:
    best = fitted.evaluation.recommendation
    return best is not None and best.claim


def _planned(trait: TraitResult) -> int:
    return max(trait.state.plan.n_planned.values())


def _fit_and_report(
    experiment: Any, names: list[str], **how: Any
) -> tuple[Mapping[str, FittedTrait], ExitCode]:
    """Fit and show traits; one trait's trouble does not keep the others from it."""
    from traitmill.engine.report import write_report
    from traitmill.engine.vectors import fit_experiment

    from .vectors import say_fitted

    shown: dict[str, Any] = {"on_fitted": say_fitted, "on_layer": LayerDisplay(), "notice": say}
    fitted = fit_experiment(experiment, names, **shown, **how)
    complain(*fitted.errors.values())
    if not fitted.fitted:
        return {}, fitted.exit_code
    result = write_report(experiment, list(fitted.fitted), notice=say, **how)
    for page in result.pages:
        say(f"report: {page}")
    complain(*result.errors)
    return fitted.fitted, max(fitted.exit_code, result.exit_code)
