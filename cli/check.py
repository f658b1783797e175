"""`traitmill check`: what to mend in trait definitions, before a run is paid."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

import click

from traitmill.engine.errors import ExitCode

from . import options
from .render import say

PARAMS = (
    *options.SELECTION,
    options.Option("json", "Write the findings as JSON.", "Output", common=True, is_flag=True),
)


@click.command(cls=options.GroupedCommand, params=PARAMS)
def command(**given: Any) -> int:
    """Find what to mend in trait definitions: all of the experiment's, or those named.

    An error spoils the measurement, and generate refuses it: the exit code is 2 then. A warning is
    a doubt. Loads no model.
    """
    from traitmill.engine.run import check_traits

    as_json = given.pop("json")
    arguments = options.arguments(given, all_traits=True)
    arguments.pop("json", None)
    found = check_traits(**arguments)
    if as_json:
        click.echo(
            json.dumps(
                {name: [asdict(each) for each in findings] for name, findings in found.items()},
                indent=2,
                ensure_ascii=False,
            )
        )
    else:
        for name, findings in found.items():
            say(f"{name}: {'ok' if not findings else ''}".rstrip())
            for each in findings:
                say(f"  {each.severity:<7} {each}")
    counts = Counter(each.severity for findings in found.values() for each in findings)
    if not as_json:
        say(
            f"{_number(len(found), 'definition')}: {_number(counts['error'], 'error')}, "
            f"{_number(counts['warning'], 'warning')}"
        )
    return ExitCode.USAGE if counts["error"] else ExitCode.OK


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
