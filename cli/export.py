"""`traitmill export`: the documented files from Parquet, without a model."""

from __future__ import annotations

from typing import Any

import click

from . import options
from .options import Option
from .render import command as step_command
from .render import complain, say
from .values import ScoreOrOff

PARAMS = (
    *options.SELECTION,
    Option("threshold", "A new threshold.  [the last one used]", "Files", common=True, type=float),
    Option(
        "neg_threshold",
        "Another one for neg, which is kept below; off: that of pos.  [the last one used]",
        "Files",
        common=True,
        type=ScoreOrOff(),
    ),
    Option(
        "paired/--no_paired",
        "Keep a response only where its twin of the other side passes.  [as last time]",
        "Files",
        common=True,
        default=None,
    ),
    Option(
        "coherence",
        "Keep only what scores so much for coherence (judge --ask coherence); off.  [as last time]",
        "Files",
        common=True,
        type=ScoreOrOff(),
    ),
    Option(
        "use_judge",
        "Verdict set to use: a judge's model name or key.  [the last one used]",
        "Files",
        common=True,
    ),
    options.RESET,
    options.FORCE_UNLOCK,
)


@click.command(cls=options.GroupedCommand, params=PARAMS)
def command(**given: Any) -> int:
    """Write CSVs, tensors and metadata again, with other filters or another verdict set.

    Takes seconds, and no model.
    """
    from traitmill.engine import run
    from traitmill.engine.outputs import renewing
    from traitmill.engine.storage import TraitFolder

    arguments = options.arguments(given)
    if arguments.get("neg_threshold", 0) is None:  # reset
        arguments["neg_threshold"] = "off"
    result = run.export(**arguments)
    for name, exported in result.exported.items():
        kept = f"{exported.kept['pos']} pos + {exported.kept['neg']} neg"
        line = f"{name}: kept {kept} by judge {exported.judge}"
        if exported.shape is not None:
            line += f", all_layers.pt {list(exported.shape)}"
        say(f"{line} in {arguments['experiment'] / name}")
        if exported.filters:
            say(f"  also by {', '.join(exported.filters)}, which the folder remembers")
        if exported.unjudged:
            say(f"  {exported.unjudged} responses are not judged by it")
        for remark in exported.remarks:
            say(f"  {remark}")
        if exported.asking:
            say(
                f"  {exported.unasked} responses pass but for a score of their coherence; judge it "
                f"and export again: {step_command(exported.asking)}"
            )
        if exported.thinking:
            say(f"  {exported.thinking}")
        if exported.stale:
            shown = ", ".join(exported.stale)
            say(f"  {shown} show other rows or verdicts than these; to renew them:")
            for step in renewing(TraitFolder(arguments["experiment"] / name)):
                say(f"    {step_command(step)}")
    complain(*result.errors.values())
    return result.exit_code
