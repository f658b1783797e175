"""`traitmill vectors`: stage 3, vectors and how good they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from traitmill.engine.settings import DEFAULT_POOL, POOLS

from .options import (
    GroupedCommand,
    Layers,
    force_unlock,
    option,
    selected,
    selection_options,
)
from .render import complain, options_in
from .session import leave

if TYPE_CHECKING:
    from traitmill.engine.vectors import FittedTrait


@click.command(cls=GroupedCommand)
@selection_options
@option(
    "--methods",
    default="mean_diff,probe,ica,gradient",
    show_default=True,
    help="Comma-separated; pca is there too.",
    group="Vectors",
    common=True,
)
@option(
    "--layers",
    type=Layers(),
    help="Layers to fit, such as 5,10-15.  [all captured]",
    group="Vectors",
    common=True,
)
@option(
    "--pool",
    type=click.Choice(POOLS),
    default=DEFAULT_POOL,
    show_default=True,
    help="Which activations.",
    group="Vectors",
)
@option(
    "--format",
    "format_",
    type=click.Choice(["pt", "safetensors"]),
    default="pt",
    show_default=True,
    help="pt: one file a vector; safetensors: one file a method.",
    group="Vectors",
)
@force_unlock
def command(methods: str, format_: Any, **options: Any) -> None:
    """Fit trait vectors from captured activations, measure them on held-out questions and
    instructions.

    Writes vectors/ and evaluation.parquet in each trait's folder; traitmill report shows them.
    """
    from traitmill.engine.vectors import fit_experiment

    experiment, traits = selected(options)
    result = fit_experiment(
        experiment,
        traits,
        methods=[name.strip() for name in methods.split(",") if name.strip()],
        format=format_,
        on_fitted=say_fitted,
        notice=click.echo,
        **options,
    )
    for error in result.errors.values():
        complain(error)
    leave(result.exit_code)


def say_fitted(name: str, fitted: FittedTrait) -> None:
    """Write what one trait's vectors are worth."""
    vectors, evaluation = fitted.vectors, fitted.evaluation
    click.echo(
        f"{name}: {len(vectors.methods)} methods x {len(vectors.layers)} layers from "
        f"{fitted.n_pos} pos and {fitted.n_neg} neg -> {fitted.folder}"
    )
    sentences = list(evaluation.notes)
    if evaluation.recommendation:
        sentences.insert(0, evaluation.recommendation.reason)
    if fitted.dropped:
        sentences.append(
            f"the evaluation no longer covers {fitted.dropped}, measured before; to compare all, "
            "fit them together"
        )
    for sentence in sentences:
        click.echo(f"  {options_in(sentence)}")
