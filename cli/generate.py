"""`traitmill generate`: stage 1, generation with judging and capture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from traitmill.cli.options import (
    CAPTURE_OPTIONS,
    capture_options,
    judge_options,
    model_options,
    plan_options,
    selection_options,
    speed_options,
    view_options,
)
from traitmill.cli.session import (
    Outcome,
    check_judge,
    leave,
    prepare_environment,
    read_settings,
    run_jobs,
)

if TYPE_CHECKING:
    from traitmill.engine.settings import RunSettings
    from traitmill.engine.storage.run_record import Manifest


@click.command()
@selection_options
@click.option(
    "--extract_activations",
    type=bool,
    default=True,
    show_default=True,
    help="Capture activations too.",
)
@click.option(
    "--capture",
    type=click.Choice(["all", "kept"]),
    default="all",
    show_default=True,
    help="Whose activations.",
)
@plan_options
@model_options
@judge_options
@view_options
@capture_options
@speed_options
def command(**options: Any) -> None:
    """Generate responses on vLLM, judge each as it is finished, capture activations, write the files.

    The same command run again goes on where it was; a folder's own model and judge stay unless others are named.
    """
    leave(generate(**options).exit_code)


def generate(
    experiment: str,
    trait: str | None,
    traits: str | None,
    experiments_dir: Path,
    gen_model: str | None,
    *,
    new_run: bool,
    blocks: str | None,
    force_unlock: bool,
    **options: Any,
) -> Outcome:
    """Everything that can be wrong is found, in this order, before any weights load and before anything is written."""
    from dataclasses import replace

    from traitmill.engine.storage.experiment import check_writable, select_traits
    from traitmill.engine.storage.run_record import load_manifest
    from traitmill.engine.traits.definition import load_traits

    prepare_environment()
    folders = select_traits(experiments_dir, experiment, trait, traits)
    definitions = load_traits(folders)
    runs = [manifest for folder in folders.values() if (manifest := load_manifest(folder))]
    settings = read_settings(options)
    if runs:
        settings = _as_recorded(settings, runs)
    check_writable(folders)
    check_judge(settings.judge, settings.limits)

    from traitmill.engine.models.hub import find_model, infer_model, lazy_tokenizer

    name = gen_model or (runs[0].source_name if runs else infer_model(experiment))
    click.echo(
        f"model: {name}"
        + (
            ""
            if gen_model
            else " (from the run's record or the experiment's name; --gen_model overrides)"
        )
    )
    ref = find_model(name)
    settings = replace(
        settings, sampling=replace(settings.sampling, model=ref.name, revision=ref.revision)
    )

    from traitmill.engine.run.job import open_job

    tokenize = lazy_tokenizer(ref)
    return run_jobs(
        folders,
        lambda notice: [
            open_job(t, folders[t.name], settings, ref, tokenize, notice, new_run=new_run)
            for t in definitions
        ],
        settings,
        ref,
        generate=True,
        judge=True,
        blocks=blocks,
        force_unlock=force_unlock,
    )


def _as_recorded(settings: RunSettings, runs: list[Manifest]) -> RunSettings:
    """What is not named of judge and capture stays the runs' own, the first one's where capture differs.

    More samples must not cost a second set of verdicts, go to another provider, or replace the tensors by others.
    Raises UsageError where none is named of several judges.
    """
    from dataclasses import replace

    from traitmill.cli.stored import recorded_settings
    from traitmill.engine.errors import UsageError
    from traitmill.engine.judging.client import OPENAI

    recorded = runs[0]
    source = click.get_current_context().get_parameter_source
    before, capture, judging, limits = (
        recorded_settings(recorded),
        settings.capture,
        settings.judge,
        {},
    )
    kept = {
        CAPTURE_OPTIONS[name] for name in CAPTURE_OPTIONS if source(name) is ParameterSource.DEFAULT
    }
    capture = replace(capture, **{field: getattr(before.capture, field) for field in kept})
    if source("judge_model") is ParameterSource.DEFAULT:
        judges = sorted(
            {"{model} (--judge_mode {mode})".format(**run.settings["judging"]) for run in runs}
        )
        if len(judges) > 1:
            raise UsageError(
                f"the traits were judged by {', '.join(judges)}: name one with --judge_model"
            )
        mode = (
            before.judging.mode if source("judge_mode") is ParameterSource.DEFAULT else judging.mode
        )
        judging = replace(before.judging, mode=mode)
        where = recorded.judges[recorded.judge_key].get("endpoint")
        if not settings.limits.base_url and where and where != OPENAI:
            limits = {"base_url": where}
        if judging.model != settings.judge.model:
            at = f" at {where}" if where else ""
            click.echo(
                f"judge: {judging.model}{at} (from the run's record; --judge_model overrides)"
            )
    execution = replace(settings.execution, limits=replace(settings.limits, **limits))
    return replace(settings, capture=capture, judging=judging, execution=execution)
