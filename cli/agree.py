"""`traitmill agree`: do you and the judge agree?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from traitmill.engine.errors import ExitCode, UsageError

from . import options
from .options import Option
from .render import say

PARAMS = (
    *options.SELECTION[:2],
    options.EXPERIMENTS_DIR,
    Option(
        "marks",
        "The CSV that responses.html saved.",
        "What",
        common=True,
        required=True,
        type=click.Path(path_type=Path),
    ),
)
LISTED = 10
"""Responses named of each kind; their numbers are those of traitmill show and of the page."""


@click.command(cls=options.GroupedCommand, params=PARAMS)
def command(**given: Any) -> int:
    """Say how far your marks and the judge agree: share, and Cohen's kappa with its interval.

    Open a trait's responses.html (its report links to it), mark what you read as right or wrong,
    and save the marks.
    """
    from traitmill.engine.outputs import read_agreement
    from traitmill.engine.storage import check_name, select_traits

    if given["trait"] is None:
        raise UsageError("give `trait` NAME")
    experiment = check_name(given["experiment"], "experiment")
    folders = select_traits(given["experiments_dir"], experiment, [given["trait"]])
    found = read_agreement(folders[given["trait"]], given["marks"])
    value, low, high = found.share
    say(
        f"{found.n} marked, {found.wrong} of them as wrong: you agree with the judge on "
        f"{value:.0%} (95 % interval {low:.0%} to {high:.0%})"
    )
    for which, ids in (("left out", found.rejected), ("let pass", found.passed)):
        if ids:
            more = f" and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
            listed = ", ".join(each[:8] for each in ids[:LISTED])
            say(f"wrongly {which}, as you read them: {listed}{more}")
    if found.kappa is None:
        say(
            "Cohen's kappa is not defined: to all that is marked the judge, or you, gave one "
            "answer; mark responses of both sides of the threshold"
        )
    else:
        value, low, high = found.kappa
        say(f"Cohen's kappa {value:.2f}, 95 % interval {low:.2f} to {high:.2f}")
    say("this is of what was marked: for a figure of all, mark responses in the planned order")
    if found.outdated:
        say(f"{found.outdated} marks are of scores or texts that changed since, and do not count")
    return ExitCode.OK
