"""`traitmill demo`: everything once, on the model that comes along: no GPU, no key, no hub."""

from __future__ import annotations

from pathlib import Path

import click

from traitmill.engine.errors import ExitCode, UsageError
from traitmill.engine.models.hub import EMBEDDED

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

    The model is far too small for real work; the machinery is the real one. Run again, it goes on where it was.
    """
    from traitmill.cli.main import cli
    from traitmill.cli.run import run
    from traitmill.cli.session import leave

    if not (experiments_dir / "demo" / TRAIT).is_dir():
        raise UsageError(
            f"{experiments_dir}/demo/{TRAIT} is missing; run the demo in a checkout of traitmill"
        )
    click.echo(f"demo: {TRAIT}, {N_EXAMPLES} responses a side, model {EMBEDDED}, judged by itself")
    command = cli.get_command(click.Context(cli), "run")
    assert command is not None  # noqa: S101 - our own table
    arguments = [
        "--experiment",
        "demo",
        "--trait",
        TRAIT,
        "--experiments_dir",
        str(experiments_dir),
    ]
    arguments += [
        "--gen_model",
        EMBEDDED,
        "--judge_model",
        "local",
        "--n_examples",
        str(N_EXAMPLES),
    ]
    arguments += ["--max_new_tokens", str(MAX_NEW_TOKENS), "--seed", str(seed)]
    if new_run:
        arguments.append("--new_run")
    options = command.make_context(
        "run", arguments, parent=click.get_current_context().find_root()
    ).params
    code = run(**options)
    if code == ExitCode.OK:
        click.echo(
            f"look at {experiments_dir}/demo/{TRAIT}/report.html, or at your own trait: docs/creating_traits.md"
        )
    leave(code)
