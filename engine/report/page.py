"""A trait's page: one self-contained HTML file, and its pictures as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..files import write_atomic
from ..outputs import PAGE_MARK, exported_table, note_stale, stale_files
from ..settings import DEFAULT_POOL
from ..storage import TraitFolder, pool_suffix
from .numbers import (
    TraitFigures,
    audit,
    choice,
    dollars,
    judge_name,
    method_rows,
    moment,
    settings,
    yields,
)
from .picture import NAMES, Picture
from .plots import trait_pictures
from .render import render
from .responses import write_responses
from .steering import steered


def write_trait_report(folder: TraitFolder, pool: str = DEFAULT_POOL) -> Path:
    """Write `report.html` and `plots/` in a trait's folder from its evaluation and records.

    Pages and pictures of other pools than response_mean have the pool in their names. The same
    files give the same page. Raise UsageError, with nothing written, where an input is missing or
    stale, or the records hold more than the files.
    """
    figures = TraitFigures(folder, pool)
    metadata = figures.metadata
    responses = exported_table(folder)
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
        captured=moment(metadata.extraction_date),
        judge_name=judge_name,
        best=figures.best,
        choice=choice(figures),
        methods=method_rows(figures),
        yields=yields(metadata),
        dollars=dollars(metadata),
        audit=audit(responses),
        steering=steering,
        old_steering=folder.steering_table.name in stale_files(folder),
        settings=dict(settings(metadata.model_dump())),
        mark=PAGE_MARK,
        made_from=metadata.sha256,
    )
    path = write_page(folder, page, pictures, pool)
    write_responses(folder, responses, metadata, pool)
    note_stale(folder)
    return path


def write_page(folder: TraitFolder, page: str, pictures: Sequence[Picture], pool: str) -> Path:
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
