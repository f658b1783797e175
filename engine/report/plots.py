"""The pictures of a page: which ones it shows, and how each is drawn."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np

from ..records import POLARITIES
from .numbers import TraitFigures

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("scores", "auroc", "projections", "cosines", "neighbours", "transfer")
"""Of all pictures that any page can have."""
WIDTH = 8.5
"""Inches, of all but the heat maps: one width, one size of letters on the page."""
INK, MUTED = "#1b1f24", "#6b7079"
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
    "grid.color": "#d5d8dd",
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture as two files."""

    name: str
    alt: str
    """What a reader who cannot see it needs to know."""
    svg: bytes
    """On nothing: a dark page shows it inverted, with its hues turned back."""
    png: bytes
    """On white."""

    @property
    def address(self) -> str:
        """The SVG as a `data:` URI."""
        return f"data:image/svg+xml;base64,{b64encode(self.svg).decode()}"


@contextmanager
def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> Iterator[np.ndarray]:
    """Yield the axes `[rows, columns]` of an empty figure, in the style of the page."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)


def _picture(figure: Figure, name: str, alt: str) -> Picture:
    svg, png = BytesIO(), BytesIO()
    figure.savefig(png, format="png", dpi=140, metadata={"Software": None})
    clear = {"format": "svg", "transparent": True}
    figure.savefig(svg, **clear, metadata={"Date": None, "Creator": None})
    return Picture(name, alt, svg.getvalue(), png.getvalue())


# --- which pictures a page shows ---


def trait_pictures(figures: TraitFigures, responses: pl.DataFrame) -> list[Picture]:
    """Return scores, AUROC and projections where rows were held out, and how vectors agree."""
    pictures = [score_histogram(responses, figures.metadata.threshold)]
    if figures.splits and figures.fitted:
        pictures.append(auroc_by_layer(figures))
    if figures.recommendation:
        pictures.append(projection_histogram(figures))
    pictures.append(method_cosines(figures))
    if len(figures.layers) > 1:
        pictures.append(neighbour_cosines(figures))
    return pictures


def score_histogram(responses: pl.DataFrame, threshold: float) -> Picture:
    """Draw the judge's scores of both sides, kept or not, with the threshold."""
    scored = responses.drop_nulls("score")
    scores = {side: scored.filter(polarity=side)["score"].to_numpy() for side in POLARITIES}
    alt = (
        f"Histogram of judge scores from 0 to 100 for {len(scores['pos'])} pos and "
        f"{len(scores['neg'])} neg responses; a dashed line marks the threshold {threshold:g}."
    )
    with _figure(WIDTH, 2.6) as ((axes,),):
        _histogram(axes, scores, np.arange(0, 101, 5), ("threshold", threshold))
        axes.set(xlabel="judge's score", xlim=(0, 100))
        return _picture(axes.figure, "scores", alt)


def projection_histogram(figures: TraitFigures) -> Picture:
    """Draw held-out projections of both sides, in training standard deviations from the midpoint."""
    scores = figures.held_out_scores()
    together = np.concatenate(list(scores.values()))
    alt = (
        f"Histogram of held-out projections: pos has mean {scores['pos'].mean():.2f}, neg "
        f"{scores['neg'].mean():.2f}, in training standard deviations from the midpoint."
    )
    with _figure(WIDTH, 2.6) as ((axes,),):
        bins = np.linspace(together.min(), together.max() + 1e-9, 31)
        _histogram(axes, scores, bins, ("midpoint of training", 0.0))
        axes.set(xlabel="held-out projection, training standard deviations")
        return _picture(axes.figure, "projections", alt)


def auroc_by_layer(figures: TraitFigures) -> Picture:
    """Draw held-out AUROC by layer: one row of panels a split, one column a fitted method.

    Each panel has one method's curve with its 95 % band, the other methods' curves in grey, and the
    band of random vectors.
    """
    splits, methods, best = figures.splits, figures.fitted, figures.recommendation
    size = (WIDTH, 1.9 * len(splits) + 0.7)
    with _figure(*size, rows=len(splits), columns=len(methods)) as panels:
        for axes, (split, method) in zip(panels.flat, product(splits, methods), strict=True):
            random = figures.curve("random_auroc", split, "random")
            band = {"alpha": 0.25, "linewidth": 0}
            axes.fill_between(random.layers, random.low, random.high, color=MUTED, **band)
            for other in methods:
                curve = figures.curve("auroc", split, other)
                axes.plot(curve.layers, curve.values, color=MUTED, linewidth=0.6)
            curve = figures.curve("auroc", split, method)
            colour = SERIES[figures.methods.index(method)]
            axes.fill_between(curve.layers, curve.low, curve.high, color=colour, **band)
            axes.plot(curve.layers, curve.values, color=colour, marker="o", markersize=2.5)
            axes.axhline(0.5, color=MUTED, linestyle=":", linewidth=1)
            if best and best.method == method:
                axes.axvline(best.layer, color=INK, linestyle="--", linewidth=1)
        for axes, method in zip(panels[0], methods, strict=True):
            axes.set_title(method)
        for axes, split in zip(panels[:, 0], splits, strict=True):
            axes.set_ylabel(f"AUROC, unseen {split}s")
        for axes in panels[-1]:
            axes.set_xlabel("layer")
        axes.set_ylim(min(0.4, axes.get_ylim()[0]), 1.02)
        axes.xaxis.get_major_locator().set_params(integer=True)
        tops = []
        for method in methods:
            curve = figures.curve("auroc", splits[0], method)
            top = int(curve.values.argmax())
            tops.append(f"{method} peaks at {curve.values[top]:.2f} at layer {curve.layers[top]}")
        alt = (
            f"Held-out AUROC by layer with 95 % intervals, one panel a method, for unseen "
            f"{' and '.join(f'{split}s' for split in splits)}: {'; '.join(tops)}."
        )
        return _picture(axes.figure, "auroc", alt)


def neighbour_cosines(figures: TraitFigures) -> Picture:
    """Draw the cosine of each layer's vector with the next layer's, one curve a method."""
    means = []
    with _figure(WIDTH, 2.6) as ((axes,),):
        for method, colour in zip(figures.methods, SERIES, strict=False):
            curve = figures.curve("cosine_next_layer", "", method)
            axes.plot(
                curve.layers, curve.values, color=colour, marker="o", markersize=3, label=method
            )
            means.append(f"{method} {curve.values.mean():.2f}")
        low = min(-0.1, axes.get_ylim()[0])
        axes.set(xlabel="layer", ylabel="cosine with next layer", ylim=(low, 1.05))
        axes.xaxis.get_major_locator().set_params(integer=True)
        _legend(axes)
        alt = f"Cosine between each layer's vector and the next one's; means: {', '.join(means)}."
        return _picture(axes.figure, "neighbours", alt)


def method_cosines(figures: TraitFigures) -> Picture:
    """Draw the cosines between the methods' vectors at the layer where they are compared."""
    layer, methods = figures.comparison_layer(), figures.methods
    cosine = {
        (a, b): figures.find("cosine", "", a, layer, b).value for a in methods for b in methods
    }
    pairs = [f"{a} and {b} {cosine[a, b]:.2f}" for a, b in combinations(methods, 2)]
    listed = ", ".join(pairs) or "one method only"
    alt = f"Cosine between the methods' vectors at layer {layer}: {listed}."
    return _heat_map("cosines", alt, cosine, methods, colours="RdBu_r", span=(-1, 1))


def transfer_picture(table: pl.DataFrame) -> Picture:
    """Draw each trait's vector on each trait's rows; pairs that were not measured stay blank."""
    names = list(dict.fromkeys(table["trait"]))
    auroc, listed = {}, []
    for trait, target, value in table.select("trait", "target", "value").iter_rows():
        auroc[trait, target] = value
        said = "not measured" if value is None else f"{value:.2f}"
        listed.append(f"{trait} on {target} {said}")
    alt = f"AUROC of each trait's vector on each trait's responses: {', '.join(listed)}."
    labels = ("responses of", "vector of")
    return _heat_map("transfer", alt, auroc, names, colours="PuOr", span=(0, 1), labels=labels)


# --- parts of pictures ---


def _legend(axes: Axes) -> None:
    """Put the legend above the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))


def _histogram(
    axes: Axes, scores: Mapping[str, np.ndarray], bins: np.ndarray, line: tuple[str, float]
) -> None:
    """Draw both sides over each other, and a line with its label."""
    for colour, (side, values) in zip(SERIES, scores.items(), strict=False):
        axes.hist(values, bins.tolist(), color=colour, alpha=0.6, ec=colour, lw=0.8, label=side)
    axes.axvline(line[1], color=INK, linestyle="--", linewidth=1.2, label=line[0])
    axes.set_ylabel("responses")
    _legend(axes)


def _heat_map(
    name: str,
    alt: str,
    values: Mapping[tuple[str, str], float | None],
    names: Sequence[str],
    *,
    colours: str,
    span: tuple[float, float],
    labels: tuple[str, str] = ("", ""),
) -> Picture:
    """Draw values by row and column, with the numbers in the cells; None stays blank."""
    import matplotlib as mpl

    side = 0.62 * len(names) + 2.2
    matrix = np.array([[values[a, b] for b in names] for a in names], float)
    with _figure(side + 0.8, side - 0.4) as ((axes,),):
        axes.grid(visible=False)
        cells = axes.pcolormesh(matrix, cmap=mpl.colormaps[colours], vmin=span[0], vmax=span[1])
        for row, column in np.argwhere(np.isfinite(matrix)):
            value = matrix[row, column]
            bright = cells.to_rgba(value)[:3] @ np.array([0.299, 0.587, 0.114]) > 0.55
            ink = {True: "black", False: "white"}[bool(bright)]
            centre = (column + 0.5, row + 0.5)
            axes.text(*centre, f"{value:.2f}", ha="center", va="center", color=ink)
        ticks = np.arange(len(names)) + 0.5
        axes.set_xticks(ticks, names, rotation=30, ha="right")
        axes.set_yticks(ticks, names)
        axes.tick_params(length=0, labelcolor=INK)
        axes.spines[:].set_visible(False)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.invert_yaxis()
        return _picture(axes.figure, name, alt)
