"""`traitmill vectors`: stage 3, vectors and how good they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from traitmill.engine.settings import POOLS

from . import options
from .options import Option
from .render import command as step
from .render import complain, say
from .values import Layers
from .waiting import LayerDisplay

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
    from traitmill.engine.vectors import fit_experiment

    arguments = options.arguments(given)
    if "methods" in arguments:
        names = arguments["methods"].split(",")
        arguments["methods"] = [name.strip() for name in names if name.strip()]
    if "layers" in arguments and arguments["layers"] is None:
        arguments["layers"] = "all"
    result = fit_experiment(**arguments, on_fitted=say_fitted, on_layer=LayerDisplay(), notice=say)
    complain(*result.errors.values())
    for line in _next_steps(result.fitted):
        say(line)
    return result.exit_code


def _next_steps(fitted: Mapping[str, FittedTrait]) -> Iterator[str]:
    """Yield what to do for what still shows earlier rows, else for a page."""
    from traitmill.engine.outputs import renewing
    from traitmill.engine.storage import TraitFolder

    folders = {name: TraitFolder(each.folder.parent) for name, each in fitted.items()}
    pages: dict[tuple[tuple[str, object], ...], list[str]] = {}
    for name, folder in folders.items():
        for anew, shown in renewing(folder).items():
            if anew.name == "report":
                pages.setdefault(anew.settings, []).append(name)
            else:
                yield f"{name}: {', '.join(shown)} show earlier rows; to renew: {step(anew)}"
    for settings, names in pages.items():
        report = folders[names[0]].step("report", **dict(settings))
        yield f"the report shows earlier rows; to renew it: {step(report, names)}"
    if folders and not pages:
        yield f"next: {step(next(iter(folders.values())).step('report'), list(folders))}"


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
    if fitted.removed:
        which = "a vector" if fitted.removed == 1 else f"{fitted.removed} vectors"
        say(f"  removed {which} of rows that are exported no more; fit them with the others anew")
    if fitted.dropped:
        say(
            f"  the evaluation no longer covers {fitted.dropped}, measured before; to compare all, "
            "fit them together"
        )
