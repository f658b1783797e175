"""`traitmill activations`: stage 2, capture of stored responses from their stored token ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from traitmill.engine.errors import ExitCode

from . import options
from .render import say
from .session import prepare_environment, run_to_end

if TYPE_CHECKING:
    from traitmill.engine.run import TokenEstimate

ASK_ABOVE = 10 << 30
"""Bytes of states of every token from which a person is asked first."""
PER_TOKEN = options.Option(
    "per_token",
    "Instead write every token's state at --layers, as safetensors shards.",
    "Capture",
    common=True,
    is_flag=True,
)
YES = options.Option(
    "yes", "Do not ask before writing many gigabytes (--per_token).", "Capture", is_flag=True
)
PARAMS = (
    *options.SELECTION,
    options.RESET,
    *options.FILTERS,
    options.CAPTURE_ROWS,
    *options.CAPTURE,
    PER_TOKEN,
    YES,
    *options.MACHINE,
)


@click.command(cls=options.GroupedCommand, greets=True, params=PARAMS)
def command(**given: Any) -> int:
    """Capture activations of stored responses, and write the files. Nothing is generated or judged.

    --pool adds to the pools that are there. What else is not given stays as the run had it. With
    --per_token, write the states of every token at --layers into activations/per_token/ instead.
    """
    from traitmill.engine import run

    arguments = options.arguments(given)
    yes = arguments.pop("yes", False)
    if arguments.pop("per_token", False):
        return _capture_tokens(arguments, yes=yes)
    return run_to_end(run.capture, arguments).exit_code


def _capture_tokens(arguments: Mapping[str, Any], *, yes: bool) -> ExitCode:
    """Say how much will be written, ask above a limit, then write it."""
    from traitmill.engine.run import capture_tokens

    def confirm(estimate: TokenEstimate) -> bool:
        click.echo(
            f"{estimate.responses:,} responses, {estimate.tokens:,} tokens, {estimate.n_layers} "
            f"layers: about {estimate.n_bytes / 2**30:.2f} GiB"
        )
        return yes or estimate.n_bytes <= ASK_ABOVE or click.confirm("write that much?")

    prepare_environment()
    faults = capture_tokens(**arguments, confirm=confirm, notice=say)
    for line in faults:
        click.echo(line, err=True)
    if faults:
        return ExitCode.FAILED_SAMPLES
    return ExitCode.OK
