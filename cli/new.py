"""`traitmill new`: a trait definition to write over, or a draft to read."""

from __future__ import annotations

import asyncio
import shlex
from typing import Any

import click

from traitmill.engine.errors import UsageError

from . import options
from .render import program, say
from .session import prepare_environment

_JUDGE = tuple(
    option for option in options.JUDGE if option.name in {"judge_model", "judge_base_url"}
)
PARAMS = (
    options.Option(
        "experiment", "Its folder, made where missing.", "What", common=True, required=True
    ),
    options.Option("trait", "The new trait's name.", "What", common=True, required=True),
    options.Option(
        "from",
        "One sentence that says what the trait is: --judge_model, or the judge of the experiment's "
        "other traits, drafts it (one paid call).",
        "What",
        common=True,
    ),
    options.EXPERIMENTS_DIR,
    *_JUDGE,
)


@click.command(cls=options.GroupedCommand, params=PARAMS)
def command(**given: Any) -> int:
    """Begin a trait definition: a scaffold whose texts say what belongs in their place.

    With --from the judge's model drafts it; a draft is marked until you have read it. Editors
    complete keys by the JSON Schema that is put beside the traits.
    """
    from traitmill.engine.run import new_trait
    from traitmill.engine.storage import check_name

    prepare_environment()
    sentence = given["from"]
    judging = {option.name: given[option.name] for option in _JUDGE}
    asked = {name: value for name, value in judging.items() if value is not None}
    if asked and sentence is None:
        raise UsageError(f"--{next(iter(asked))} is for a draft: say what the trait is with --from")
    root = given["experiments_dir"] / check_name(given["experiment"], "experiment")
    drafting = new_trait(root, given["trait"], sentence=sentence, notice=say, **asked)
    path = asyncio.run(drafting)
    say(str(path))
    which = f"--experiment {given['experiment']} --trait {given['trait']}"
    if given["experiments_dir"] != options.EXPERIMENTS_DIR.default:
        which += f" --experiments_dir {shlex.quote(str(given['experiments_dir']))}"
    say(f"next: write it, then {program()} check {which}")
    return 0
