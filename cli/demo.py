"""`traitmill demo`: everything once, on the model that comes along: no GPU, no key, no hub."""

from __future__ import annotations

from pathlib import Path

import click

from traitmill.engine.errors import ExitCode, UsageError
from traitmill.engine.models.demo import EMBEDDED

TRAIT = "poem"
N_EXAMPLES = 50
MAX_NEW_TOKENS = 64


@click.command()
@click.option(
    "--experiments_dir",
    type=click.Path(path_type=Path),
    default=Path("experiments"),
    show_default=True,
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Another seed gives other responses."
)
@click.option("--new_run", is_flag=True, help="Move the last demo aside and run it again.")
def command(experiments_dir: Path, seed: int, *, new_run: bool) -> None:
    """Poems against plain sentences, written and judged by a 135M model: 50 responses a side.

    The model is far too small for real work; the machinery is the real one. Run again, it goes on
    where it was.
    """
    from .run import run
    from .session import leave

    folder = experiments_dir / "demo" / TRAIT
    if not folder.is_dir():
        raise UsageError(f"{folder} is missing; run the demo in a checkout of traitmill")
    click.echo(f"demo: {TRAIT}, {N_EXAMPLES} responses a side, model {EMBEDDED}, judged by itself")
    code = run(
        experiment="demo",
        trait=TRAIT,
        traits=None,
        experiments_dir=experiments_dir,
        gen_model=EMBEDDED,
        judge_model="local",
        n_examples=N_EXAMPLES,
        max_new_tokens=MAX_NEW_TOKENS,
        seed=seed,
        new_run=new_run,
        extract_activations=True,
        force_unlock=False,
    )
    if code == ExitCode.OK:
        click.echo(f"look at {folder}/report.html, or at your own trait: docs/creating_traits.md")
    leave(code)
