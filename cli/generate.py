"""`traitmill generate`: stage 1, generation with judging and capture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from . import options
from .session import run_to_end

PARAMS = (
    *options.SELECTION,
    *options.COUNTS,
    *options.SAMPLING,
    *options.JUDGE,
    *options.FILTERS,
    options.Option(
        "extract_activations",
        "Capture activations too.  [True]",
        "Capture",
        common=True,
        type=bool,
    ),
    options.CAPTURE_ROWS,
    *options.CAPTURE,
    *options.MACHINE,
)


@click.command(cls=options.GroupedCommand, greets=True, params=PARAMS)
def command(**given: Any) -> int:
    """Generate responses on vLLM, judge each as it is finished, capture activations, write the
    files.

    The same command run again goes on where it was. What is not given on a folder with a run is
    that run's: model, judge, sampling and all.
    """
    from traitmill.engine import run

    return run_to_end(run.generate, generate_arguments(given)).exit_code


def generate_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the engine's generate. Raise UsageError."""
    arguments = options.arguments(given)
    captures = arguments.pop("extract_activations", None)
    if captures is False:
        arguments["capture"] = "none"
    elif captures:
        arguments.setdefault("capture", "all")
    return arguments
