"""The pictures of a trait's page: which ones it shows, and how the curves are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..records import POLARITIES
from .heat_maps import method_cosines
from .numbers import TraitFigures
from .picture import INK, MUTED, SERIES, Picture, as_picture, fill_band, panels

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes


def trait_pictures(figures: TraitFigures, responses: pl.DataFrame) -> list[Picture]:
    """Return scores, AUROC and projections where rows were held out, and how vectors agree."""
    metadata = figures.metadata
    pictures = [score_histogram(responses, metadata.threshold, metadata.neg_threshold)]
    if figures.splits:
        pictures.append(auroc_by_layer(figures))
    if figures.best:
        pictures.append(projection_histogram(figures))
    if len(figures.methods) > 1:
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
    _band(axes, figures.rows("random_auroc", split=split), MUTED, hatched=True)
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


def _band(axes: Axes, rows: pl.DataFrame, colour: str, *, hatched: bool = False) -> None:
    fill_band(axes, rows["layer"], rows["low"], rows["high"], colour, hatched=hatched)
