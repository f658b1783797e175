"""An experiment's page: its traits, what keeps others from it, and what transfers between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TraitmillError
from ..outputs import Metadata
from ..settings import DEFAULT_POOL
from ..storage import TraitFolder, has_run
from ..traits import DEFINITION_FILE
from ..vectors import evaluated_traits, read_transfer
from .heat_maps import MANY, transfer_picture
from .numbers import TraitFigures, choice, farthest, judge_name
from .page import write_page
from .render import inline_script, render

if TYPE_CHECKING:
    import polars as pl

FILTERED = 12
"""Traits from which on their table can be filtered by typing."""


def write_experiment_report(
    experiment: Path, notice: Callable[[str], None], pool: str = DEFAULT_POOL
) -> Path:
    """Write `report.html` in an experiment's folder: its evaluated traits, and their transfer.

    A trait whose evaluation does not fit its activations is left out with a notice. Raise
    UsageError for a transfer table that cannot be read.
    """
    transfer = read_transfer(experiment, notice, pool)
    traits: list[dict[str, Any]] = []
    models, stale = set(), {}
    for folder in evaluated_traits(experiment, pool):
        try:
            figures = TraitFigures(folder, pool)
        except TraitmillError as error:
            notice(f"{folder.name} is left out of the experiment's report: {error.message}")
            stale[folder.name] = error.message
            continue
        models.add(figures.metadata.model)
        link = ""
        if folder.report(pool).is_file():
            link = str(folder.report(pool).relative_to(experiment))
        traits.append({"figures": figures, "link": link, "choice": choice(figures)})
    script, digest = inline_script("filter.js") if len(traits) >= FILTERED else ("", "")
    pictures = [] if transfer is None else [transfer_picture(transfer)]
    page = render(
        "experiment.html",
        experiment=experiment.name,
        pool=pool,
        models=sorted(models),
        traits=traits,
        missing=_missing(experiment, {row["figures"].name for row in traits}, stale, pool),
        judge_name=judge_name,
        script=script,
        script_hash=digest,
        pictures={picture.name: picture for picture in pictures},
        **_pairs(transfer),
    )
    return write_page(TraitFolder(experiment), page, pictures, pool)


def _pairs(transfer: pl.DataFrame | None) -> dict[str, Any]:
    """Return what the page lists of the transfer table: all pairs of few traits, of many the
    farthest."""
    if transfer is None:
        return {"pairs": [], "reach": []}
    if transfer["trait"].n_unique() > MANY:
        return {"pairs": [], "reach": farthest(transfer)}
    return {"pairs": transfer.to_dicts(), "reach": []}


def _missing(
    experiment: Path, shown: set[str], stale: Mapping[str, str], pool: str
) -> dict[str, str]:
    """Return why each trait with a definition that the page does not show is not there."""
    names = sorted(path.parent.name for path in experiment.glob(f"*/{DEFINITION_FILE}"))
    return {
        name: stale.get(name) or _why_missing(TraitFolder(experiment / name), pool)
        for name in names
        if name not in shown
    }


def _why_missing(folder: TraitFolder, pool: str) -> str:
    if not folder.metadata.is_file():
        if not has_run(folder):
            return "no run yet"
        return "its run has written no activations yet"
    try:
        metadata = Metadata.read(folder)
    except TraitmillError as error:
        return error.message
    kept = {"pos": metadata.n_examples_pos, "neg": metadata.n_examples_neg}
    for side, count in kept.items():
        if count < 2:
            return f"the {side} side kept {count or 'nothing'}; a vector needs two a side or more"
    return f"no vectors of {pool} were fitted yet"
