"""`traitmill steer`: what a trait's vectors do to answers, against baselines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from traitmill.engine.errors import UsageError
from traitmill.engine.settings import POOLS

from . import options
from .options import Option
from .render import command as command_of
from .render import complain, error_text, say
from .session import leave_if, watched
from .values import Layers

if TYPE_CHECKING:
    from traitmill.engine.steering import SteeringResult

POSITIONS = ("response", "prompt", "all")
PARAMS = (
    *options.SELECTION,
    Option("methods", "Comma-separated.  [mean_diff]", "Vectors", common=True),
    Option(
        "layers",
        "Layers, such as 5,10-15, each with its own vector.  [nearest the middle of those that "
        "read the trait as well as the best]",
        "Vectors",
        common=True,
        type=Layers(),
    ),
    Option(
        "coefficients",
        "Comma-separated, in units of the layer's mean residual norm.  [a grid of both signs, "
        "finer where coherence breaks]",
        "Vectors",
        common=True,
    ),
    Option(
        "positions",
        "Whose states are moved: the response's tokens, the prompt's, or all.  [as last steered, "
        "else response]",
        "Vectors",
        common=True,
        type=click.Choice(POSITIONS),
    ),
    Option(
        "n_examples",
        "Responses of each coefficient and baseline.  [as last steered, else 20]",
        "What",
        common=True,
        type=int,
    ),
    Option(
        "n_random",
        "Random vectors of the same length to compare with.  [as last steered, else 5]",
        "What",
        type=int,
    ),
    Option(
        "ablate",
        "Also take the direction out of every state, under the pos instruction.",
        "What",
        common=True,
        is_flag=True,
    ),
    Option(
        "coherence",
        "Least mean coherence that holds.  [as last steered, else 75]",
        "What",
        type=float,
    ),
    Option(
        "pool",
        f"Of the vectors.  [the folder's, else {POOLS[0]}]",
        "Vectors",
        type=click.Choice(POOLS),
    ),
    *(each for each in options.SAMPLING if each.name in ("max_new_tokens", "seed")),
    *options.JUDGE,
    *(each for each in options.MACHINE if each.name != "capture_device"),
)


@click.command(cls=options.GroupedCommand, greets=True, params=PARAMS)
def command(**given: Any) -> int:
    """Answer a trait's questions, without an instruction, with its vector added to the model.

    Answers are judged for the trait and for coherence, beside unsteered ones, those under a pos
    instruction and those of random vectors. Writes steering.parquet and steering/responses.csv in
    each trait's folder; traitmill report shows them. Run again, it goes on where it was.
    """
    from traitmill.engine.steering import steer

    arguments = options.arguments(given)
    if "methods" in arguments:
        names = arguments["methods"].split(",")
        arguments["methods"] = [name.strip() for name in names if name.strip()]
    if "layers" in arguments and arguments["layers"] is None:
        raise UsageError("`layers` all is too much to steer at: name the layers, as 12,16")
    if "coefficients" in arguments:
        arguments["coefficients"] = _numbers(arguments["coefficients"])
    result = watched(steer, arguments)
    say_result(result)
    leave_if(interrupted=result.interrupted)
    return result.exit_code


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"`coefficients` {text[:60]!r}: write numbers with commas between them, as 0.25,-0.5"
        ) from None


def say_result(result: SteeringResult) -> None:
    """Write what steering came to, by trait, and into the run's log."""
    from traitmill.engine.run import append

    complain(*result.errors.values())
    lines = list(_lines(result))
    for line in lines:
        say(line)
    if result.log is not None:
        failed = [f"stopped: {error_text(error)}" for error in result.errors.values()]
        append(result.log, "\n".join([*failed, *lines]))


def _lines(result: SteeringResult) -> Iterator[str]:
    """Yield each trait's claim and where its figures stand, how it ended, and the log."""
    for trait in result.traits.values():
        root = trait.folder
        said, *why = trait.claim.text.splitlines()
        yield f"{trait.name}: {said}"
        yield from (f"  {line}" for line in why)
        yield f"  figures: {root.steering_table}, texts: {root.steering.path / 'responses.csv'}"
    if result.interrupted:
        yield "interrupted; everything is stored. Run the same command again to go on"
    elif result.errors:
        yield "what is stored is safe; run the same command again to go on"
    if result.log is not None and result.log.exists():
        yield f"{result.seconds:.0f} s; log: {result.log}"
    if result.traits and not result.interrupted and not result.errors:
        first = next(iter(result.traits.values())).folder
        yield f"its curve beside the rest: {command_of(first.step('report'), list(result.traits))}"
