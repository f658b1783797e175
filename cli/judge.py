"""`traitmill judge`: another judge, or an edited prompt, over stored responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from traitmill.cli.options import judge_options, selection_options
from traitmill.cli.session import check_judge, leave, prepare_environment, read_limits


@click.command()
@selection_options
@judge_options
@click.option(
    "--force_unlock", is_flag=True, help="Take over a folder locked by a run on another host."
)
def command(
    experiment: str,
    trait: str | None,
    traits: str | None,
    experiments_dir: Path,
    *,
    force_unlock: bool,
    **options: Any,
) -> None:
    """Judge stored responses: a new judge or an edited eval_prompt adds a verdict set beside the old ones.

    Nothing is generated again, and no verdict is paid for twice. The files are written from the new verdicts; go back
    to an older set with traitmill export --use_judge.
    """
    from dataclasses import replace

    from traitmill.cli.stored import work_on_stored
    from traitmill.engine.settings import JudgeSettings, RunSettings, Execution
    from traitmill.engine.storage.experiment import check_writable, select_traits
    from traitmill.engine.traits.definition import load_traits

    prepare_environment()
    folders = select_traits(experiments_dir, experiment, trait, traits)
    edited = {trait.name: trait for trait in load_traits(folders)}
    judging, limits = (
        JudgeSettings(model=options["judge_model"], mode=options["judge_mode"]),
        read_limits(options),
    )
    check_writable(folders)
    check_judge(judging, limits)

    def change(settings: RunSettings) -> RunSettings:
        return replace(settings, judging=judging, capture_rows="none")

    execution = Execution(limits=limits)
    leave(
        work_on_stored(
            folders, change, execution, judge=True, edited=edited, force_unlock=force_unlock
        ).exit_code
    )
