"""`traitmill vectors`: stage 3, vectors and how good they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from traitmill.engine.settings import POOLS

from . import options
from .layers import LayerDisplay
from .options import Option
from .render import command as step
from .render import complain, say
from .values import Layers

if TYPE_CHECKING:
    from traitmill.engine.vectors import FittedTrait

POOL = Option(
    "pool",
    f"Which activations.  [the folder's, else {POOLS[0]}]",
    "Activations",
    type=click.Choice(POOLS),
)
PARAMS = (
    *options.SELECTION,
    Option(
        "methods",
        "Comma-separated; pca is there too.  [the folder's, else mean_diff,probe,ica,gradient]",
        "Vectors",
        common=True,
    ),
    Option(
        "layers",
        "Layers to fit, such as 5,10-15, or all.  [the folder's, else all captured]",
        "Vectors",
        common=True,
        type=Layers(),
    ),
    Option(
        "format",
        "pt: one file a vector; safetensors: one file a method.  [the folder's, else pt]",
        "Vectors",
        type=click.Choice(["pt", "safetensors"]),
    ),
    POOL,
    options.FORCE_UNLOCK,
)


@click.command(cls=options.GroupedCommand, greets=True, params=PARAMS)
def command(**given: Any) -> int:
    """Fit trait vectors from captured activations, measure them on held-out questions and
    instructions.

    Writes vectors/ and evaluation.parquet in each trait's folder; traitmill report shows them.
    """
    from traitmill.engine.storage import TraitFolder
    from traitmill.engine.vectors import fit_experiment

    arguments = options.arguments(given)
    if "methods" in arguments:
        names = arguments["methods"].split(",")
        arguments["methods"] = [name.strip() for name in names if name.strip()]
    if "layers" in arguments and arguments["layers"] is None:
        arguments["layers"] = "all"
    result = fit_experiment(**arguments, on_fitted=say_fitted, on_layer=LayerDisplay(), notice=say)
    complain(*result.errors.values())
    stale = [name for name, fitted in result.fitted.items() if fitted.stale]
    if stale:
        folder = TraitFolder(result.fitted[stale[0]].folder.parent)
        say(f"the report shows earlier rows; to renew it: {step(folder.step('report'), stale)}")
    elif result.fitted:
        folder = TraitFolder(next(iter(result.fitted.values())).folder.parent)
        say(f"next: {step(folder.step('report'), list(result.fitted))}")
    return result.exit_code


def say_fitted(name: str, fitted: FittedTrait) -> None:
    """Write what one trait's vectors are worth."""
    vectors, evaluation = fitted.vectors, fitted.evaluation
    if fitted.reused:
        say(f"{name}: fitted before, nothing has changed since")
    say(
        f"{name}: {len(vectors.methods)} methods x {len(vectors.layers)} layers from "
        f"{fitted.n_pos} pos and {fitted.n_neg} neg -> {fitted.folder}"
    )
    if evaluation.recommendation:
        for line in evaluation.recommendation.text.splitlines():
            say(f"  {line}")
    for note in evaluation.notes:
        say(f"  {note}")
    if fitted.dropped:
        say(
            f"  the evaluation no longer covers {fitted.dropped}, measured before; to compare all, "
            "fit them together"
        )
