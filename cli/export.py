"""`traitmill export`: the documented files from Parquet, without a model."""

from __future__ import annotations

from typing import Any

import click

from .options import GroupedCommand, force_unlock, option, selected, selection_options
from .render import complain, options_in
from .session import leave


@click.command(cls=GroupedCommand)
@selection_options
@option(
    "--threshold",
    type=float,
    help="A new threshold.  [the last one used]",
    group="Files",
    common=True,
)
@option(
    "--use_judge",
    help="Verdict set to use: a judge's model name or key.  [the last one used]",
    group="Files",
    common=True,
)
@force_unlock
def command(
    threshold: float | None, use_judge: str | None, *, force_unlock: bool, **options: Any
) -> None:
    """Write CSVs, tensors and metadata again, with another threshold or verdict set. Takes seconds."""
    from traitmill.engine import run

    experiment, traits = selected(options)
    result = run.export(
        experiment,
        traits,
        threshold=threshold,
        use_judge=use_judge,
        force_unlock=force_unlock,
    )
    for name, exported in result.exported.items():
        shape = ""
        if exported.shape is not None:
            shape = f", all_layers.pt {list(exported.shape)}"
        kept = f"{exported.kept['pos']} pos + {exported.kept['neg']} neg"
        click.echo(f"{name}: kept {kept} by judge {exported.judge}{shape} in {experiment / name}")
        if exported.unjudged:
            click.echo(f"  {exported.unjudged} responses are not judged by it")
        for remark in exported.remarks:
            click.echo(f"  {options_in(remark)}")
    for error in result.errors.values():
        complain(error)
    leave(result.exit_code)
