"""`traitmill judge`: another judge, or an edited prompt, over stored responses."""

from __future__ import annotations

from typing import Any

import click

from . import options
from .session import run_to_end

ASK = options.Option(
    "ask",
    "Judge the trait, or how coherent each response is (then: export --coherence 50).  [trait]",
    "Judge",
    common=True,
    type=click.Choice(["trait", "coherence"]),
)


@click.command(
    cls=options.GroupedCommand,
    greets=True,
    params=[*options.SELECTION, ASK, options.RESET, *options.JUDGE, options.FORCE_UNLOCK],
)
def command(**given: Any) -> int:
    """Judge stored responses: a new judge or an edited eval_prompt adds a verdict set beside the
    old.

    Nothing is generated again, and no verdict is paid for twice. Without --judge_model the folder's
    own judge is asked. The files are written from the new verdicts; go back to an older set with
    traitmill export --use_judge.
    """
    from traitmill.engine import run

    return run_to_end(run.judge, options.arguments(given)).exit_code
