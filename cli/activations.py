"""`traitmill activations`: stage 2, capture of stored responses from their stored token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from traitmill.cli.options import CAPTURE_OPTIONS, capture_options, selection_options, speed_options
from traitmill.cli.session import leave, prepare_environment, read_capture, read_speed


@click.command()
@selection_options
@click.option(
    "--capture",
    type=click.Choice(["all", "kept"]),
    default="all",
    show_default=True,
    help="Whose activations.",
)
@click.option(
    "--threshold",
    type=float,
    help="A new threshold; the CSVs are written again too.  [the run's own]",
)
@click.option(
    "--per_token", is_flag=True, help="Also every token's state at --layers, as safetensors shards."
)
@click.option("--yes", is_flag=True, help="Do not ask before writing many gigabytes (--per_token).")
@capture_options
@speed_options
def command(
    experiment: str,
    trait: str | None,
    traits: str | None,
    experiments_dir: Path,
    capture: Any,
    threshold: float | None,
    blocks: str | None,
    *,
    per_token: bool,
    yes: bool,
    force_unlock: bool,
    **options: Any,
) -> None:
    """Capture activations of stored responses, and write the files. Nothing is generated or judged.

    --pool adds to the pools that are there. What is not given of --layers, --include_embeddings, --capture_dtype and
    --attention stays as the run had it. With --per_token, write the states of every token at --layers into
    activations/per_token/ instead.
    """
    from dataclasses import replace

    from traitmill.cli.stored import work_on_stored
    from traitmill.engine.settings import RunSettings
    from traitmill.engine.storage.experiment import check_writable, select_traits

    prepare_environment()
    folders = select_traits(experiments_dir, experiment, trait, traits)
    wanted, execution = read_capture(options), read_speed(options)
    check_writable(folders)
    if per_token:
        from traitmill.cli.per_token import write_states

        write_states(
            folders, wanted, execution, rows=capture, yes=yes, blocks=blocks, force_unlock=force_unlock
        )
        return

    source = click.get_current_context().get_parameter_source
    typed = [
        field
        for option, field in CAPTURE_OPTIONS.items()
        if source(option) is ParameterSource.COMMANDLINE
    ]
    given = {field: getattr(wanted, field) for field in typed}

    def change(settings: RunSettings) -> RunSettings:
        own = settings.capture
        # A pool stands beside those the run has: none of its files goes.
        pools = tuple(dict.fromkeys([*own.pools, *given.get("pools", ())]))
        view = settings.selection if threshold is None else replace(settings.selection, threshold=threshold)
        return replace(
            settings,
            capture=replace(own, **given | {"pools": pools}),
            capture_rows=capture,
            view=view,
        )

    leave(
        work_on_stored(
            folders, change, execution, judge=False, blocks=blocks, force_unlock=force_unlock
        ).exit_code
    )
