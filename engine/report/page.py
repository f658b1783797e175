"""The pages: one a trait and one an experiment, each a self-contained HTML file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import TraitmillError
from ..files import write_atomic
from ..outputs import audit_table
from ..settings import DEFAULT_POOL
from ..storage import TraitFolder, pool_suffix
from ..vectors import evaluated_traits, read_transfer
from . import numbers
from .numbers import Figure, TraitFigures
from .plots import NAMES, Picture, trait_pictures, transfer_picture


def write_trait_report(folder: TraitFolder, pool: str = DEFAULT_POOL) -> Path:
    """Write `report.html` and `plots/` in a trait's folder from its evaluation and records.

    Pages and pictures of other pools than response_mean have the pool in their names. The same
    files give the same page. Raise UsageError, with nothing written, where an input is missing or
    stale.
    """
    figures = TraitFigures(folder, pool)
    metadata, responses = figures.metadata, audit_table(folder)
    pictures = trait_pictures(figures, responses)
    page = _render(
        "trait.html",
        folder=folder,
        pool=pool,
        metadata=metadata,
        best=numbers.best_choice(figures),
        notes=figures.evaluation.notes,
        yields=numbers.yields(metadata),
        dollars=numbers.dollars(metadata),
        judge_auroc=numbers.judge_auroc(metadata),
        pictures={picture.name: picture for picture in pictures},
        splits=figures.splits,
        methods=numbers.method_rows(figures),
        cosine_layer=figures.comparison_layer(),
        audit=numbers.audit(responses),
        settings=numbers.settings(metadata),
    )
    return _write(folder, page, pictures, pool)


def write_experiment_report(
    experiment: Path, notice: Callable[[str], None], pool: str = DEFAULT_POOL
) -> Path:
    """Write `report.html` in an experiment's folder: its evaluated traits, and their transfer.

    A trait whose evaluation does not fit its activations is left out with a notice. Raise
    UsageError for a transfer table that cannot be read.
    """
    table = read_transfer(experiment, notice, pool)
    traits = []
    for folder in evaluated_traits(experiment, pool):
        try:
            figures = TraitFigures(folder, pool)
        except TraitmillError as error:
            notice(f"{folder.name} is left out of the experiment's report: {error}")
            continue
        page = folder.report(pool)
        traits.append(
            {
                "name": folder.name,
                "page": page.relative_to(experiment) if page.is_file() else None,
                "metadata": figures.metadata,
                "best": numbers.best_choice(figures),
            }
        )
    pictures, pairs = [], []
    if table is not None:
        pictures = [transfer_picture(table)]
        for row in table.iter_rows(named=True):
            pairs.append(row | {"auroc": Figure(row["value"], row["low"], row["high"])})
    text = _render(
        "experiment.html",
        experiment=experiment.name,
        models=sorted({trait["metadata"].model for trait in traits}),
        pool=pool,
        traits=traits,
        pictures={picture.name: picture for picture in pictures},
        pairs=pairs,
    )
    return _write(TraitFolder(experiment), text, pictures, pool)


def _render(template: str, **context: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)


def _write(folder: TraitFolder, page: str, pictures: Sequence[Picture], pool: str) -> Path:
    """Write a page and its pictures; remove those of an earlier page, which no longer hold."""
    drawn = {picture.name: picture for picture in pictures}
    for name in NAMES:
        stem = f"{name}{pool_suffix(pool)}"
        svg, png = folder.plots / f"{stem}.svg", folder.plots / f"{stem}.png"
        if name in drawn:
            write_atomic(svg, drawn[name].svg)
            write_atomic(png, drawn[name].png)
        else:
            svg.unlink(missing_ok=True)
            png.unlink(missing_ok=True)
    write_atomic(folder.report(pool), page.encode("utf-8", "backslashreplace"))
    return folder.report(pool)
