"""`traitmill import`: traits of other projects as definitions here."""

from __future__ import annotations

from pathlib import Path

import click

from . import options
from .render import say

PARAMS = [
    options.Option(
        "to",
        "The experiment's folder name, made where missing.",
        "What",
        common=True,
        required=True,
    ),
    options.Option(
        "format",
        "What SOURCE is: persona_vectors and assistant_axis write alike.",
        "What",
        common=True,
        type=click.Choice(["auto", "persona_vectors", "assistant_axis", "scenarios", "pairs"]),
        default="auto",
        show_default=True,
    ),
    options.Option(
        "questions",
        "A JSONL of shared questions; a role's is looked for (extraction_questions.jsonl).",
        "What",
        common=True,
        type=click.Path(path_type=Path),
    ),
    options.Option(
        "model_name", "What stands for {model_name} in a default role.", "What", common=True
    ),
    options.EXPERIMENTS_DIR,
]


@click.command(cls=options.GroupedCommand, params=PARAMS)
@click.argument("source", type=click.Path(path_type=Path))
def command(
    source: Path,
    to: str,
    format: str,  # noqa: A002 - the option's name
    questions: Path | None,
    model_name: str | None,
    experiments_dir: Path,
) -> int:
    """Import traits from SOURCE: persona_vectors, assistant-axis, scenario folders, JSONL pairs.

    Says what was taken, changed and left; the originals and that report are kept in the trait's
    folder, under imported/. Nothing is written where one of them cannot be read.
    """
    from traitmill.engine.run import import_traits
    from traitmill.engine.storage import check_name

    root = experiments_dir / check_name(to, "experiment")
    found = import_traits(source, root, kind=format, questions=questions, model_name=model_name)
    for trait in found:
        say(f"{trait.path}")
        told = {"took": trait.took, "changed": trait.changed, "left": trait.left}
        told |= {"run with": trait.advice, "mend first": trait.to_mend}
        for word, lines in told.items():
            for line in lines:
                say(f"  {word:<10}  {line}")
    say(f"{len(found)} trait{'' if len(found) == 1 else 's'} imported into {root}")
    return 0
