"""`traitmill demo`: everything once, on the model that comes along: no GPU, no key, no hub."""

from __future__ import annotations

from pathlib import Path

import click

from traitmill.engine.errors import ExitCode, UsageError

from . import options
from .render import say

TRAIT = "poem"
N_EXAMPLES = 50
MAX_NEW_TOKENS = 64
COEFFICIENTS, QUESTIONS = (0.25, 0.45), 3
"""What is shown of steering, beside unsteered answers."""
PARAMS = (
    options.EXPERIMENTS_DIR,
    options.Option(
        "new_run", "Move the last demo aside and run it again.", "What", is_flag=True, common=True
    ),
    options.Option(
        "seed", "Another seed gives other responses.", "Sampling", type=int, default=0, common=True
    ),
)


@click.command(cls=options.GroupedCommand, greets=True, params=PARAMS)
def command(experiments_dir: Path, seed: int, *, new_run: bool) -> int:
    """Poems against plain sentences, written and judged by a 135M model: 50 responses a side.

    The model is far too small for real work; the machinery is the real one. Run again, it goes on
    where it was.
    """
    from traitmill.engine.models import EMBEDDED

    from .run import run_all

    folder = experiments_dir / "demo" / TRAIT
    if not folder.is_dir():
        raise UsageError(f"{folder} is missing; run the demo in a checkout of traitmill")
    say(f"demo: {TRAIT}, {N_EXAMPLES} responses a side, model {EMBEDDED}, judged by itself")
    code = run_all(
        {
            "experiment": experiments_dir / "demo",
            "traits": [TRAIT],
            "model": EMBEDDED,
            "judge_model": "local",
            "n_examples": N_EXAMPLES,
            "max_new_tokens": MAX_NEW_TOKENS,
            "seed": seed,
            "new_run": new_run,
        },
        goes_on=True,
    )
    if code == ExitCode.OK:
        _show_steering(experiments_dir / "demo")
        say(f"look at {folder}/report.html, or at your own trait: docs/creating_traits.md")
    return code


def _show_steering(experiment: Path) -> None:
    """Answer a few questions with the trait's vector added, side by side by coefficient."""
    import asyncio

    from traitmill.engine.steering import glimpse
    from traitmill.engine.storage import TraitFolder

    from .display import Display
    from .render import command as command_of

    display = Display()
    say("steering: the same questions without an instruction, the vector added to the model")
    try:
        found = asyncio.run(
            glimpse(
                experiment,
                TRAIT,
                coefficients=COEFFICIENTS,
                n_questions=QUESTIONS,
                listener=display,
            )
        )
    finally:
        display.ended()
    for question, answers in found:
        say(f"\n{question}")
        for coefficient, answer in zip((0.0, *COEFFICIENTS), answers, strict=True):
            say(f"  {coefficient:<5g} {' '.join(answer.split())[:160]}")
    say(f"\nmeasure it: {command_of(TraitFolder(experiment / TRAIT).step('steer'))}")
