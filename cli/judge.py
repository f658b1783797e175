"""`traitmill judge`: another judge, or an edited prompt, over stored responses."""

from __future__ import annotations

from typing import Any

import click

from .options import (
    GroupedCommand,
    force_unlock,
    help_all,
    judge_options,
    selected,
    selection_options,
    typed,
)
from .session import leave, run_to_end


@click.command(cls=GroupedCommand)
@selection_options
@judge_options
@force_unlock
@help_all
def command(*, force_unlock: bool, **options: Any) -> None:
    """Judge stored responses: a new judge or an edited eval_prompt adds a verdict set beside the
    old.

    Nothing is generated again, and no verdict is paid for twice. Without --judge_model the folder's
    own judge is asked. The files are written from the new verdicts; go back to an older set with
    traitmill export --use_judge.
    """
    from traitmill.engine import run

    experiment, traits = selected(options)
    given = typed(options)
    result = run_to_end(
        lambda listener, stop: run.judge(
            experiment, traits, force_unlock=force_unlock, listener=listener, stop=stop, **given
        )
    )
    leave(result.exit_code)
