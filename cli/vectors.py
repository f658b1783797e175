"""`traitmill vectors`: stage 3, vectors and how good they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from traitmill.cli.options import parse_layers, selection_options
from traitmill.engine.errors import ExitCode, TraitmillError, UsageError
from traitmill.engine.settings import POOLS

if TYPE_CHECKING:
    from traitmill.engine.vectors.evaluation import Evaluation
    from traitmill.engine.vectors.fit import Format


@click.command()
@selection_options
@click.option(
    "--methods",
    default="mean_diff,probe,ica,gradient",
    show_default=True,
    help="Comma-separated; pca and random are there too.",
)
@click.option("--layers", help="Layers to fit, such as 5,10-15.  [all captured]")
@click.option(
    "--pool",
    type=click.Choice(POOLS),
    default=POOLS[0],
    show_default=True,
    help="Which activations.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["pt", "safetensors"]),
    default="pt",
    show_default=True,
    help="pt: one file a vector; safetensors: one file a method.",
)
@click.option(
    "--force_unlock", is_flag=True, help="Take over a folder locked by a run on another host."
)
def command(
    experiment: str,
    trait: str | None,
    traits: str | None,
    experiments_dir: Path,
    methods: str,
    layers: str | None,
    pool: str,
    format_: Format,
    *,
    force_unlock: bool,
) -> None:
    """Fit trait vectors from captured activations, measure them on held-out questions and instructions.

    Writes vectors/ and evaluation.parquet in each trait's folder; `traitmill report` shows them.
    """
    from traitmill.engine.storage.experiment import check_writable, select_traits
    from traitmill.engine.storage.lock import lock_traits
    from traitmill.engine.vectors.methods import check_methods
    from traitmill.engine.vectors.transfer import update_transfer

    folders = select_traits(experiments_dir, experiment, trait, traits)
    check_writable(folders)
    names = check_methods([name.strip() for name in methods.split(",") if name.strip()])
    chosen = parse_layers(layers)
    code = ExitCode.OK
    with lock_traits(list(folders.values()), force_unlock=force_unlock):
        for folder in folders.values():
            try:
                fit_trait(folder, names, chosen, pool, format_)
            except TraitmillError as error:
                if len(folders) == 1:
                    raise
                click.echo(
                    f"traitmill: {error}", err=True
                )  # the other traits are none the worse for it
                code = max(code, error.exit_code)
        update_transfer(experiments_dir / experiment, click.echo, pool)
    raise click.exceptions.Exit(code)


def fit_trait(
    folder: Path,
    methods: tuple[str, ...],
    layers: tuple[int, ...] | None = None,
    pool: str = POOLS[0],
    format_: Format = "pt",
) -> Evaluation:
    """Fit, evaluate and write one trait; all is computed before anything is written."""
    from traitmill.engine.outputs.load import load_activations
    from traitmill.engine.vectors.evaluation import (
        evaluate_vectors,
        read_evaluation,
        write_evaluation,
    )
    from traitmill.engine.vectors.fit import fit_vectors, write_vectors

    activations = load_activations(folder, pool)
    vectors = fit_vectors(activations, methods, layers)
    evaluation = evaluate_vectors(activations, vectors)
    try:
        dropped = read_evaluation(folder, activations.metadata, pool).beyond(vectors)
    except UsageError:  # there is none, or none of these activations
        dropped = ""
    paths = write_vectors(folder, vectors, format_, evaluation.held_out())
    write_evaluation(folder, evaluation)
    click.echo(
        f"{folder.name}: {len(vectors.methods)} methods x {len(vectors.layers)} layers from {activations.n_pos} pos "
        f"and {activations.n_neg} neg -> {paths[0].parent}"
    )
    sentences = [evaluation.recommendation.reason] if evaluation.recommendation else []
    for sentence in [*sentences, *evaluation.notes]:
        click.echo(f"  {sentence}")
    if dropped:
        click.echo(
            f"  the evaluation no longer covers {dropped}, measured before; to compare all, fit them together"
        )
    return evaluation
