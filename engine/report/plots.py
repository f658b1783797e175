"""The pictures of a page: which ones it shows, and how each is drawn."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from ..records import POLARITIES
from .numbers import TraitFigures

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

NAMES = ("scores", "auroc", "projections", "cosines", "neighbours", "steering", "transfer")
"""Of all pictures that any page can have."""
WIDTH = 8.5
"""Inches, of all but the heat maps: one width, one size of letters on the page."""
INK = "#1b1f24"
MUTED = "#6b7079"
GRID = "#d5d8dd"
MANY = 24
"""Traits beyond which a page does not list all pairs of them, and a picture has no numbers."""
SERIES = ("#1f6feb", "#c2570c", "#11804f", "#8a3ffc", "#c4314b", "#7a8088")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "traitmill",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "lines.markersize": 3,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture as two files."""

    name: str
    alt: str
    """What a reader who cannot see it needs to know."""
    inches: float
    """Width."""
    svg: bytes
    """Without a background: a dark page shows it inverted, with its hues turned back."""
    png: bytes
    """On white."""

    @property
    def address(self) -> str:
        """The SVG as a `data:` URI."""
        return f"data:image/svg+xml;base64,{b64encode(self.svg).decode()}"


# --- which pictures a page shows ---


def trait_pictures(figures: TraitFigures, responses: pl.DataFrame) -> list[Picture]:
    """Return scores, AUROC and projections where rows were held out, and how vectors agree."""
    metadata = figures.metadata
    pictures = [score_histogram(responses, metadata.threshold, metadata.neg_threshold)]
    if figures.splits:
        pictures.append(auroc_by_layer(figures))
    if figures.best:
        pictures.append(projection_histogram(figures))
    pictures.append(method_cosines(figures))
    if len(figures.layers) > 1:
        pictures.append(neighbour_cosines(figures))
    return pictures


def score_histogram(
    responses: pl.DataFrame, threshold: float, neg_threshold: float | None = None
) -> Picture:
    """Draw the judge's scores of both sides, kept or not, with the thresholds."""
    if neg_threshold is None:
        neg_threshold = threshold
    marked = f"a dashed line marks the threshold {threshold:g}"
    if neg_threshold != threshold:
        marked = (
            f"dashed lines mark the thresholds {threshold:g} of pos and {neg_threshold:g} of neg"
        )
    scored = responses.drop_nulls("score")
    pos = scored.filter(polarity="pos")["score"].to_numpy()
    neg = scored.filter(polarity="neg")["score"].to_numpy()
    alt = (
        f"Histogram of judge scores from 0 to 100 for {len(pos)} pos and {len(neg)} neg "
        f"responses; {marked}."
    )
    with panels(2.6) as (figure, ((axes,),)):
        _histogram(axes, pos, neg, np.arange(0, 101, 5))
        _mark(axes, threshold, "threshold")
        if neg_threshold != threshold:
            _mark(axes, neg_threshold, "threshold of neg")
        axes.set(xlabel="judge's score", xlim=(0, 100))
        return as_picture(figure, "scores", alt)


def projection_histogram(figures: TraitFigures) -> Picture:
    """Draw held-out projections of both sides on the recommended vector."""
    scores = figures.rows("held_out_score")["value"].to_numpy()
    pos, neg = np.split(scores, [figures.metadata.n_examples_pos])
    alt = (
        f"Histogram of held-out projections: pos has mean {pos.mean():.2f}, neg {neg.mean():.2f}, "
        "in training standard deviations from the midpoint."
    )
    with panels(2.6) as (figure, ((axes,),)):
        _histogram(axes, pos, neg, np.histogram_bin_edges(scores, 30))
        _mark(axes, 0, "midpoint of training")
        axes.set(xlabel="held-out projection, training standard deviations")
        return as_picture(figure, "projections", alt)


def auroc_by_layer(figures: TraitFigures) -> Picture:
    """Draw held-out AUROC by layer: one row of panels a split, one column a method."""
    splits = figures.splits
    methods = figures.methods
    peaks = []
    for method in methods:
        peak = figures.peak(method)
        peaks.append(f"{method} peaks at {peak['value']:.2f} at layer {peak['layer']}")
    alt = f"Held-out AUROC by layer with 95 % intervals, unseen {splits[0]}s: {'; '.join(peaks)}."
    with panels(1.9 * len(splits) + 0.3, len(splits), len(methods)) as (figure, grid):
        for row, split in zip(grid, splits, strict=True):
            for axes, method in zip(row, methods, strict=True):
                _auroc_panel(axes, figures, split, method)
            row[0].set_ylabel(f"AUROC,\nunseen {split}s")
        for axes, method in zip(grid[0], methods, strict=True):
            axes.set_title(method)
        for axes in grid[-1]:
            axes.set_xlabel("layer")
        axes.set_ylim(min(0.4, axes.get_ylim()[0]), 1.02)
        axes.xaxis.get_major_locator().set_params(integer=True)
        return as_picture(figure, "auroc", alt)


def _auroc_panel(axes: Axes, figures: TraitFigures, split: str, method: str) -> None:
    """Draw a method's curve and band, the other methods in grey, and the band of random vectors."""
    _band(axes, figures.rows("random_auroc", split=split), MUTED)
    for other in figures.methods:
        rows = figures.rows("auroc", split=split, method=other)
        axes.plot(rows["layer"], rows["value"], color=MUTED, linewidth=0.6)
    rows = figures.rows("auroc", split=split, method=method)
    colour = SERIES[figures.methods.index(method)]
    _band(axes, rows, colour)
    axes.plot(rows["layer"], rows["value"], "o-", color=colour)
    axes.axhline(0.5, color=MUTED, linestyle=":", linewidth=1)
    if figures.best and figures.best.method == method:
        _mark(axes, figures.best.layer)


def neighbour_cosines(figures: TraitFigures) -> Picture:
    """Draw the cosine of each layer's vector with the next layer's, one curve a method."""
    means = []
    with panels(2.6) as (figure, ((axes,),)):
        for method, colour in zip(figures.methods, SERIES, strict=False):
            rows = figures.rows("cosine_next_layer", method=method)
            axes.plot(rows["layer"], rows["value"], "o-", color=colour, label=method)
            means.append(f"{method} {rows['value'].mean():.2f}")
        low = min(-0.1, axes.get_ylim()[0])
        axes.set(xlabel="layer", ylabel="cosine with next layer", ylim=(low, 1.05))
        axes.xaxis.get_major_locator().set_params(integer=True)
        alt = f"Cosine between each layer's vector and the next one's; means: {', '.join(means)}."
        return as_picture(figure, "neighbours", alt)


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


# --- parts of pictures ---


@contextmanager
def panels(
    height: float,
    rows: int = 1,
    columns: int = 1,
    width: float = WIDTH,
    *,
    share_y: bool = True,
) -> Iterator[tuple[Figure, np.ndarray]]:
    """Yield an empty figure of so many inches, and its axes `[rows, columns]`."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, sharex=True, sharey=share_y, squeeze=False)
        yield figure, axes


def as_picture(figure: Figure, name: str, alt: str, legend_of: int = -1) -> Picture:
    """Return the figure as files, with a legend above it, of one of its axes."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    svg = BytesIO()
    png = BytesIO()
    handles, labels = figure.axes[legend_of].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))
    ConstrainedLayoutEngine().execute(figure)  # once for both files
    figure.savefig(png, format="png", dpi=140, metadata={"Software": None})
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Picture(
        name=name,
        alt=alt,
        inches=figure.get_figwidth(),
        svg=svg.getvalue(),
        png=png.getvalue(),
    )


def _histogram(axes: Axes, pos: np.ndarray, neg: np.ndarray, bins: np.ndarray) -> None:
    for label, scores, colour in zip(POLARITIES, (pos, neg), SERIES, strict=False):
        axes.hist(
            scores,
            bins.tolist(),
            color=colour,
            alpha=0.6,
            edgecolor=colour,
            label=label,
        )
    axes.set_ylabel("responses")


def _mark(axes: Axes, x: float, label: str | None = None) -> None:
    axes.axvline(
        x,
        color=INK,
        linestyle="--",
        linewidth=1,
        label=label,
    )


def _band(axes: Axes, rows: pl.DataFrame, colour: str) -> None:
    axes.fill_between(
        rows["layer"],
        rows["low"],
        rows["high"],
        color=colour,
        alpha=0.25,
        linewidth=0,
    )


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
