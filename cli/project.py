"""`traitmill project`: any texts along trait vectors, as a table and a page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from traitmill.engine.errors import UsageError
from traitmill.engine.settings import DTYPES

from . import options
from .options import Option, setting
from .render import say
from .session import prepare_environment
from .values import AutoInt, Layers

if TYPE_CHECKING:
    from traitmill.engine.projection import Progress, ProjectionResult

_NAMED = 5
_EVERY_S = 5.0
PARAMS = (
    Option(
        "texts",
        "A .jsonl or .csv file with messages, or response and prompt; a .txt file or a folder of "
        "them; a trait's or an experiment's folder.",
        "What",
        common=True,
        required=True,
        type=click.Path(path_type=Path),
    ),
    Option(
        "vectors",
        "EXPERIMENT/TRAIT whose vectors; several with commas.",
        "What",
        common=True,
        required=True,
    ),
    Option(
        "to",
        "Folder for the table and the page.",
        "What",
        common=True,
        required=True,
        type=click.Path(path_type=Path),
    ),
    options.EXPERIMENTS_DIR,
    Option("methods", "Comma-separated.  [the recommended one]", "Vectors", common=True),
    Option(
        "layers",
        "Such as 5,10-15.  [the recommended one]",
        "Vectors",
        common=True,
        type=Layers(),
    ),
    Option(
        "gen_model",
        "Reads the texts; give it twice to compare two models.  [the vectors' own, with its "
        "adapter]",
        "Models",
        common=True,
        multiple=True,
    ),
    Option(
        "adapter",
        "A LoRA adapter: the model reads the texts without it and with it, to compare the two.",
        "Models",
        common=True,
        multiple=True,
    ),
    setting("capture_dtype", "Of the computation.", "Machine", choices=DTYPES),
    setting("attention", "transformers' attn_implementation.", "Machine"),
    setting("blocks", "Path of the decoder blocks in the model, where not found.", "Machine"),
    setting("capture_device", "cpu, cuda or cuda:N.", "Machine"),
    setting("batch_size", "Most texts at once.  [auto]", "Machine", kind=AutoInt()),
)


@click.command(cls=options.GroupedCommand, greets=True, params=PARAMS)
def command(**given: Any) -> int:
    """Place texts along trait vectors: every turn's mean, and every token's projection.

    A projection is in standard deviations of a training side, 0 midway between the two sides.
    Writes projections.parquet, projections.csv and index.html; of several models, comparison.csv.
    Cut off, the same command goes on.
    """
    from traitmill.engine.projection import project

    prepare_environment()
    source = click.get_current_context().get_parameter_source
    settings = {
        name: given[name]
        for name in ("capture_dtype", "attention", "blocks", "capture_device", "batch_size")
        if source(name) is ParameterSource.COMMANDLINE
    }
    methods = given["methods"]
    if given["layers"] is None and source("layers") is ParameterSource.COMMANDLINE:
        raise UsageError("--layers all: name layers; each is a column of every token")
    result = project(
        given["texts"],
        _folders(given["experiments_dir"], given["vectors"]),
        given["to"],
        methods=[name.strip() for name in methods.split(",")] if methods else None,
        layers=given["layers"],
        models=given["gen_model"] or None,
        adapters=given["adapter"] or None,
        notice=say,
        progress=_Teller(),
        **settings,
    )
    for line in _lines(result):
        say(line)
    return result.exit_code


class _Teller:
    """Says how far it is, every few seconds."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() - self._said >= _EVERY_S:
            self._said = time.monotonic()
            say(f"{progress.model}: {_counted(progress.texts, 'text')}")


def _folders(experiments_dir: Path, named: str) -> list[Path]:
    """Return the traits' folders that EXPERIMENT/TRAIT,EXPERIMENT/TRAIT names. Raise UsageError."""
    from traitmill.engine.storage import check_name, select_traits

    folders = []
    for name in named.split(","):
        experiment, _, trait = name.strip().partition("/")
        if not experiment or not trait:
            raise UsageError(f"--vectors {name.strip()!r}: write EXPERIMENT/TRAIT")
        check_name(experiment, "experiment")
        if "/" in trait:
            raise UsageError(
                f"--vectors {name.strip()!r}: write EXPERIMENT/TRAIT alone; another folder of "
                "experiments than `experiments` is given with --experiments_dir"
            )
        [folder] = select_traits(experiments_dir, experiment, [trait]).values()
        folders.append(folder.path)
    return folders


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _lines(result: ProjectionResult) -> Iterator[str]:
    summary = result.summary
    if result.reused:
        yield "projected before; nothing has changed since"
    several = len({each.model for each in summary.means}) > 1
    for each in summary.means:
        model = f"{each.model}, " if several else ""
        yield f"{each.vector}, {model}{each.role}: {each.value:+.2f} ({_counted(each.n, 'turn')})"
    for gap in summary.differences:
        interval = ""
        if gap.half_width is not None:
            low, high = gap.value - gap.half_width, gap.value + gap.half_width
            interval = f", 95 % interval {low:+.2f} to {high:+.2f}"
        yield (
            f"{gap.vector}, turns of {gap.role}: {gap.model} is {gap.value:+.2f} from the first "
            f"model{interval}"
        )
    for line in summary.failed[:_NAMED]:
        yield f"not read: {line}"
    if summary.n_failed > _NAMED:
        yield f"not read: {summary.n_failed - _NAMED} more (column error of the table)"
    files = {"table": result.table, "without tokens": result.csv, "page": result.page}
    for name, path in {"comparison": result.comparison, **files}.items():
        if path is not None:
            yield f"{name}: {path}"
