"""`traitmill activations`: stage 2, capture of stored responses from their stored token ids."""

from __future__ import annotations

from typing import Any

import click

from .options import (
    GroupedCommand,
    capture_options,
    capture_rows_option,
    help_all,
    machine_options,
    option,
    selected,
    selection_options,
    threshold_option,
    typed,
)
from .session import leave, run_to_end


@click.command(cls=GroupedCommand)
@selection_options
@threshold_option
@capture_rows_option
@capture_options
@option(
    "--per_token",
    is_flag=True,
    help="Instead write every token's state at --layers, as safetensors shards.",
    group="Capture",
    common=True,
)
@option(
    "--yes",
    is_flag=True,
    help="Do not ask before writing many gigabytes (--per_token).",
    group="Capture",
)
@machine_options
@help_all
def command(*, per_token: bool, yes: bool, force_unlock: bool, **options: Any) -> None:
    """Capture activations of stored responses, and write the files. Nothing is generated or judged.

    --pool adds to the pools that are there. What else is not given stays as the run had it. With
    --per_token, write the states of every token at --layers into activations/per_token/ instead.
    """
    from traitmill.engine import run

    experiment, traits = selected(options)
    given = typed(options)
    if per_token:
        from .per_token import write_states

        leave(write_states(experiment, traits, given, yes=yes, force_unlock=force_unlock))
    result = run_to_end(
        lambda listener, stop: run.capture(
            experiment, traits, force_unlock=force_unlock, listener=listener, stop=stop, **given
        )
    )
    leave(result.exit_code)
