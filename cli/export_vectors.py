"""`traitmill export-vectors`: a trait's vectors for llama.cpp, persona_vectors and others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from traitmill.engine.errors import UsageError

from . import options
from .options import Option
from .render import say
from .vectors import POOL

PARAMS = (
    *options.SELECTION,
    Option(
        "format",
        "gguf: of llama.cpp; persona: the stacked .pt of persona_vectors; safetensors.",
        "File",
        common=True,
        required=True,
        type=click.Choice(["gguf", "persona", "safetensors"]),
    ),
    Option(
        "to",
        "The file to write.",
        "File",
        common=True,
        required=True,
        type=click.Path(path_type=Path, dir_okay=False),
    ),
    Option("method", "Whose vectors.  [the recommended one]", "Vectors", common=True),
    POOL,
)


@click.command(cls=options.GroupedCommand, params=PARAMS)
def command(**given: Any) -> int:
    """Write a trait's vectors of one method, all layers in one file, for another program.

    A card, FILE.md, says what they are. Vectors are written as they are, not scaled.
    """
    from traitmill.engine.vectors import export_vectors

    arguments = options.arguments(given)
    experiment, traits = arguments.pop("experiment"), arguments.pop("traits")
    if traits is None or len(traits) != 1:
        raise UsageError("vectors of one trait make a file; give one with --trait")
    written = export_vectors(experiment / traits[0], **arguments)
    if written.stale:
        say(f"note: {written.stale}")
    if written.doubt:
        say(f"note: no claim is made of these vectors ({written.doubt}); the card says so too")
    count = f"{len(written.layers)} layer{'s' if len(written.layers) != 1 else ''}"
    say(f"{written.path}: {written.method} at {count} of {traits[0]}; card: {written.card}")
    if written.left_out:
        named = ", ".join(map(str, written.left_out))
        say(f"  without layer {named}: llama.cpp adds nothing there")
    return 0
