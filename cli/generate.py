"""`traitmill generate`: stage 1, generation with judging and capture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .options import (
    GroupedCommand,
    capture_options,
    capture_rows_option,
    counts_options,
    help_all,
    judge_options,
    machine_options,
    option,
    sampling_options,
    selected,
    selection_options,
    threshold_option,
    typed,
)
from .session import leave, run_to_end

if TYPE_CHECKING:
    from traitmill.engine.run import RunResult


@click.command(cls=GroupedCommand)
@selection_options
@counts_options
@sampling_options
@judge_options
@threshold_option
@option(
    "--extract_activations",
    type=bool,
    default=True,
    help="Capture activations too.  [True]",
    group="Capture",
    common=True,
)
@capture_rows_option
@capture_options
@machine_options
@help_all
def command(**options: Any) -> None:
    """Generate responses on vLLM, judge each as it is finished, capture activations, write the
    files.

    The same command run again goes on where it was. What is not given on a folder with a run is
    that run's: model, judge, sampling and all.
    """
    leave(generate(**options).exit_code)


def generate(**options: Any) -> RunResult:
    """Run stage 1 with the options of the command."""
    from traitmill.engine import run

    experiment, traits = selected(options)
    model, new_run = options.pop("gen_model"), options.pop("new_run")
    force_unlock = options.pop("force_unlock")
    if not options.pop("extract_activations"):
        options["capture"] = "none"
    given = typed(options)
    return run_to_end(
        lambda listener, stop: run.generate(
            experiment,
            traits,
            model=model,
            new_run=new_run,
            force_unlock=force_unlock,
            listener=listener,
            stop=stop,
            **given,
        )
    )
