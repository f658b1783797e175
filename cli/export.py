"""`traitmill export`: the documented files from Parquet, without a model."""

from __future__ import annotations

from pathlib import Path

import click

from traitmill.cli.options import selection_options
from traitmill.engine.errors import ExitCode, TraitmillError


@click.command()
@selection_options
@click.option("--threshold", type=float, help="A new threshold.  [the last one used]")
@click.option(
    "--csv_safe/--no_csv_safe",
    default=None,
    help="Quote cells a spreadsheet would run as formulas.  [as before]",
)
@click.option(
    "--use_judge", help="Verdict set to use: a judge's model name or key.  [the last one used]"
)
@click.option(
    "--force_unlock", is_flag=True, help="Take over a folder locked by a run on another host."
)
def command(
    experiment: str,
    trait: str | None,
    traits: str | None,
    experiments_dir: Path,
    threshold: float | None,
    csv_safe: bool | None,
    use_judge: str | None,
    *,
    force_unlock: bool,
) -> None:
    """Write CSVs, tensors and metadata again, with another threshold or verdict set. Takes seconds."""
    from traitmill.cli.session import leave
    from traitmill.engine.run.job import export_again
    from traitmill.engine.settings import Selection
    from traitmill.engine.storage.experiment import check_writable, select_traits
    from traitmill.engine.storage.lock import lock_traits
    from traitmill.engine.storage.run_record import load_manifest, need_manifest

    folders = select_traits(experiments_dir, experiment, trait, traits)
    if threshold is not None:
        Selection(threshold=threshold)
    if traits == "all":  # all that can be exported
        folders = {
            name: folder for name, folder in folders.items() if load_manifest(folder)
        } or folders
    for folder in folders.values():
        need_manifest(folder)
    check_writable(folders)
    codes = [ExitCode.OK]
    with lock_traits(list(folders.values()), force_unlock=force_unlock):
        for name, folder in folders.items():
            try:
                exported = export_again(
                    folder, click.echo, threshold=threshold, csv_safe=csv_safe, use_judge=use_judge
                )
            except (
                TraitmillError
            ) as error:  # one trait's trouble does not keep the others from being written
                click.echo(f"traitmill: {error}", err=True)
                codes.append(error.exit_code)
                continue
            shape = "" if exported.shape is None else f", all_layers.pt {list(exported.shape)}"
            used = need_manifest(folder)
            judge = f"{used.judges[used.judge_key]['model']} ({used.judge_key})"
            kept = f"{exported.kept['pos']} pos + {exported.kept['neg']} neg"
            click.echo(f"{name}: kept {kept} by judge {judge}{shape} in {folder}")
            if not all(exported.kept.values()):
                codes.append(ExitCode.NOTHING_KEPT)
    leave(max(codes))
