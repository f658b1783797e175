"""Squares of numbers: how the methods' vectors agree, and which traits a vector tells apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .numbers import TraitFigures
from .picture import GRID, INK, SERIES, Picture, as_picture, panels

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.colors import LinearSegmentedColormap

MANY = 24
"""Traits beyond which a page does not list all pairs of them, and a picture has no numbers."""


def method_cosines(figures: TraitFigures) -> Picture:
    """Draw the cosines between the methods' vectors at the layer where they are compared."""
    layer = figures.comparison_layer
    listed = []
    cosines = figures.rows("cosine", layer=layer)
    for method, other, value in cosines.select("method", "other", "value").iter_rows():
        if method < other:
            listed.append(f"{method} and {other} {value:.2f}")
    pairs = ", ".join(listed) or "one method only"
    alt = f"Cosine between the methods' vectors at layer {layer}: {pairs}."
    return _heat_map("cosines", alt, figures.methods, cosines["value"], least=-1)


def transfer_picture(table: pl.DataFrame) -> Picture:
    """Draw each trait's vector on each trait's rows; pairs that were not measured stay blank.

    Of many traits, those that resemble each other stand side by side.
    """
    alt = "AUROC of each trait's vector on each trait's responses, as listed in the table below."
    names = list(table["trait"].unique(maintain_order=True))
    if len(names) <= MANY:
        return _heat_map("transfer", alt, names, table["value"], least=0)
    matrix = table["value"].to_numpy().reshape(len(names), len(names))
    order = alike(matrix)
    names = [names[at] for at in order]
    return _large_heat_map("transfer", alt, names, matrix[np.ix_(order, order)])


def alike(matrix: np.ndarray) -> list[int]:
    """Return an order of traits in which those of like rows and columns are neighbours.

    The leaves of a tree of average linkage, in the order in which neighbours differ least
    (Bar-Joseph et al. 2001, Bioinformatics 17). What was not measured counts as one half.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage

    known = np.nan_to_num(matrix, nan=0.5)
    profiles = np.concatenate([known, known.T], axis=1)
    return [int(at) for at in leaves_list(linkage(profiles, "average", optimal_ordering=True))]


def _heat_map(
    name: str, alt: str, names: Sequence[str], values: pl.Series, least: float
) -> Picture:
    """Draw a square of values up to 1, row by row, with the numbers in the cells."""
    matrix = values.to_numpy().reshape(len(names), len(names))
    side = 0.62 * len(names) + 1.2
    with panels(side - 0.4, width=side + 0.8) as (figure, ((axes,),)):
        axes.grid(visible=False)
        axes.pcolormesh(
            matrix,
            cmap=_colours(),
            vmin=least,
            vmax=1,
            edgecolors=GRID,
            linewidth=0.6,
        )
        for row, column in np.argwhere(np.isfinite(matrix)):
            said = f"{matrix[row, column]:.2f}"
            axes.text(column + 0.5, row + 0.5, said, ha="center", va="center")
        ticks = np.arange(len(names)) + 0.5
        axes.set_xticks(ticks, names, rotation=30, ha="right")
        axes.set_yticks(ticks, names)
        axes.tick_params(length=0, labelcolor=INK)
        axes.spines[:].set_visible(False)
        axes.invert_yaxis()
        return as_picture(figure, name, alt)


def _large_heat_map(name: str, alt: str, names: Sequence[str], matrix: np.ndarray) -> Picture:
    """Draw a square of AUROCs without numbers, its cells as one image."""
    # As wide as the page: a reader can enlarge the picture, whose letters are text.
    cell = min(0.2, 12.5 / len(names))
    side = cell * len(names)
    with panels(side + 1.2, width=side + 0.9) as (figure, ((axes,),)):
        axes.grid(visible=False)
        image = axes.imshow(matrix, cmap=_colours(), vmin=0, vmax=1, aspect="auto")
        size = {"fontsize": min(8, 66 * cell)}
        axes.set_xticks(np.arange(len(names)), names, rotation=90, **size)
        axes.set_yticks(np.arange(len(names)), names, **size)
        axes.tick_params(length=0, labelcolor=INK, pad=1)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(
            image, ax=axes, location="top", shrink=0.3, aspect=40, fraction=0.03, pad=0.01
        )
        bar.set_label("AUROC")
        return as_picture(figure, name, alt)


def _colours() -> LinearSegmentedColormap:
    """Return colours from least to most, nothing in the middle."""
    from matplotlib.colors import LinearSegmentedColormap

    ends = [f"{SERIES[1]}b0", "#ffffff00", f"{SERIES[0]}b0"]
    return LinearSegmentedColormap.from_list("", ends)
