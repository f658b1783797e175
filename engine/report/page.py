"""The pages: one a trait and one an experiment, each a self-contained HTML file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import TraitmillError
from ..files import write_atomic
from ..outputs import PAGE_MARK, audit_table, note_stale
from ..settings import DEFAULT_POOL
from ..storage import TraitFolder, pool_suffix
from ..vectors import evaluated_traits, read_transfer
from .numbers import TraitFigures, audit, choice, dollars, farthest, method_rows, settings, yields
from .plots import MANY, NAMES, Picture, trait_pictures, transfer_picture
from .render import render
from .responses import write_responses
from .steering import steered


def write_trait_report(folder: TraitFolder, pool: str = DEFAULT_POOL) -> Path:
    """Write `report.html` and `plots/` in a trait's folder from its evaluation and records.

    Pages and pictures of other pools than response_mean have the pool in their names. The same
    files give the same page. Raise UsageError, with nothing written, where an input is missing or
    stale.
    """
    figures = TraitFigures(folder, pool)
    metadata = figures.metadata
    responses = audit_table(folder)
    pictures = trait_pictures(figures, responses)
    steering = steered(folder, metadata, pool)
    if steering is not None:
        pictures.append(steering.picture)
    page = render(
        "trait.html",
        experiment=folder.experiment.name,
        pool=pool,
        pictures={picture.name: picture for picture in pictures},
        figures=figures,
        metadata=metadata,
        best=figures.best,
        choice=choice(figures),
        methods=method_rows(figures),
        yields=yields(metadata),
        dollars=dollars(metadata),
        audit=audit(responses),
        steering=steering,
        settings=dict(settings(metadata.model_dump())),
        mark=PAGE_MARK,
        made_from=metadata.tensor_sha256(pool),
    )
    path = _write(folder, page, pictures, pool)
    write_responses(folder, responses, metadata)
    note_stale(folder)
    return path


def write_experiment_report(
    experiment: Path, notice: Callable[[str], None], pool: str = DEFAULT_POOL
) -> Path:
    """Write `report.html` in an experiment's folder: its evaluated traits, and their transfer.

    A trait whose evaluation does not fit its activations is left out with a notice. Raise
    UsageError for a transfer table that cannot be read.
    """
    transfer = read_transfer(experiment, notice, pool)
    traits, models = [], set()
    for folder in evaluated_traits(experiment, pool):
        try:
            figures = TraitFigures(folder, pool)
        except TraitmillError as error:
            notice(f"{folder.name} is left out of the experiment's report: {error.message}")
            continue
        models.add(figures.metadata.model)
        link = ""
        if folder.report(pool).is_file():
            link = str(folder.report(pool).relative_to(experiment))
        traits.append({"figures": figures, "link": link, "choice": choice(figures)})
    pictures, pairs, reach = [], [], []
    if transfer is not None:
        pictures = [transfer_picture(transfer)]
        if transfer["trait"].n_unique() > MANY:
            reach = farthest(transfer)
        else:
            pairs = transfer.to_dicts()
    page = render(
        "experiment.html",
        experiment=experiment.name,
        pool=pool,
        pictures={picture.name: picture for picture in pictures},
        models=sorted(models),
        traits=traits,
        pairs=pairs,
        reach=reach,
    )
    return _write(TraitFolder(experiment), page, pictures, pool)


def _write(folder: TraitFolder, page: str, pictures: Sequence[Picture], pool: str) -> Path:
    """Write a page and its pictures; remove those of an earlier page, which no longer hold."""
    drawn = {picture.name: picture for picture in pictures}
    for name in NAMES:
        stem = f"{name}{pool_suffix(pool)}"
        svg = folder.plots / f"{stem}.svg"
        png = folder.plots / f"{stem}.png"
        if name in drawn:
            write_atomic(svg, drawn[name].svg)
            write_atomic(png, drawn[name].png)
        else:
            svg.unlink(missing_ok=True)
            png.unlink(missing_ok=True)
    path = folder.report(pool)
    write_atomic(path, page.encode("utf-8", "backslashreplace"))
    return path
