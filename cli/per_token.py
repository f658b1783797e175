"""`traitmill activations --per_token`: every token's state at chosen layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from traitmill.engine.errors import ExitCode

if TYPE_CHECKING:
    from traitmill.engine.run import TokenEstimate

ASK_ABOVE = 10 << 30
"""Bytes from which a person is asked first."""


def write_states(
    experiment: Path,
    traits: Sequence[str] | None,
    given: Mapping[str, Any],
    *,
    yes: bool,
    force_unlock: bool,
) -> ExitCode:
    """Say how much will be written, ask above a limit, then write it."""
    from traitmill.engine.run import capture_tokens

    def confirm(estimate: TokenEstimate) -> bool:
        click.echo(
            f"{estimate.responses:,} responses, {estimate.tokens:,} tokens, {estimate.n_layers} "
            f"layers: about {estimate.n_bytes / 2**30:.2f} GiB"
        )
        return yes or estimate.n_bytes <= ASK_ABOVE or click.confirm("write that much?")

    faults = capture_tokens(
        experiment, traits, confirm=confirm, notice=click.echo, force_unlock=force_unlock, **given
    )
    for line in faults:
        click.echo(line, err=True)
    if faults:
        return ExitCode.FAILED_SAMPLES
    return ExitCode.OK
