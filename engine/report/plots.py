"""The report's pictures. Each is one matplotlib figure, saved as SVG and PNG, and put into the page
as inline SVG."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 10.0
"""Inches, of all but the heat maps: one width, one size of letters on the page."""
# Colours of a figure on white. In the page each becomes a CSS variable, so that a dark page can
# have its own.
PAPER, INK, MUTED, GRID = "#ffffff", "#1b1f24", "#6b7079", "#d5d8dd"
SERIES = ("#1f6feb", "#c2570c", "#11804f", "#8a3ffc", "#c4314b", "#7a8088")
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    **{colour: f"series-{i}" for i, colour in enumerate(SERIES)},
}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "traitmill",
    "font.size": 10,
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
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture in three forms."""

    name: str
    title: str
    alt: str
    """What a reader who cannot see it needs to know."""
    inline: str
    """An `<svg>` element for the page, coloured by CSS variables."""
    svg: bytes
    png: bytes


@dataclass(frozen=True, slots=True)
class Curve:
    """A method's figures by layer, each `[n_layers]`."""

    layers: Sequence[int]
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@contextmanager
def _figure(width: float, height: float, columns: int = 1) -> Iterator[tuple[Figure, Any]]:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(1, columns, sharey=columns > 1, squeeze=False)[0]


def _picture(figure: Figure, name: str, title: str, alt: str) -> Picture:
    svg, png = BytesIO(), BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=120, metadata={"Software": None})
    return Picture(
        name,
        title,
        alt,
        _inline(svg.getvalue().decode(), name, alt),
        svg.getvalue(),
        png.getvalue(),
    )


def _inline(svg: str, name: str, alt: str) -> str:
    """For the page: no prologue, ids that are unique in the page, width left to CSS, colours as
    variables, a title."""
    from markupsafe import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'^<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg)
    svg = re.sub(r'^<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg)
    svg = re.sub(PAPER, "none", svg, flags=re.IGNORECASE)
    for colour, variable in _VARIABLES.items():
        svg = re.sub(colour, f"var(--{variable})", svg, flags=re.IGNORECASE)
    title = f'<title id="{name}-title">{escape(alt)}</title>'
    return re.sub(
        r"^<svg ([^>]*)>",
        rf'<svg role="img" aria-labelledby="{name}-title" \1>{title}'.replace("\\n", " "),
        svg,
        count=1,
    )


def score_histogram(scores: Mapping[str, np.ndarray], threshold: float) -> Picture:
    """Judge scores of both sides, `[n]` each, kept or not, with the threshold."""
    with _figure(WIDTH, 2.8) as (figure, (axes,)):
        _sides(axes, scores, np.arange(0, 101, 5))
        axes.axvline(threshold, color=INK, linestyle="--", linewidth=1.2, label="threshold")
        axes.set(xlabel="judge's score", ylabel="responses", xlim=(0, 100))
        _legend(figure, axes)
        alt = (
            f"Histogram of judge scores from 0 to 100 for {len(scores['pos'])} pos and "
            f"{len(scores['neg'])} neg "
            f"responses; a dashed line marks the threshold {threshold:g}."
        )
        return _picture(figure, "scores", "Judge's scores", alt)


def projection_histogram(scores: Mapping[str, np.ndarray], where: str) -> Picture:
    """Held-out projections of both sides, `[n]` each, in training standard deviations from the
    midpoint."""
    together = np.concatenate(list(scores.values()))
    with _figure(WIDTH, 2.8) as (figure, (axes,)):
        _sides(axes, scores, np.linspace(together.min(), together.max() + 1e-9, 31))
        axes.axvline(0, color=INK, linestyle="--", linewidth=1.2, label="midpoint of training")
        axes.set(xlabel="held-out projection, training standard deviations", ylabel="responses")
        _legend(figure, axes)
        alt = (
            f"Histogram of held-out projections on {where}: pos has mean "
            f"{scores['pos'].mean():.2f}, neg "
            f"{scores['neg'].mean():.2f}, in training standard deviations from the midpoint."
        )
        return _picture(figure, "projections", f"Held-out projections on {where}", alt)


def _legend(figure: Figure, axes: Axes) -> None:
    """Beside the axes, where it hides nothing."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")


def _sides(axes: Axes, scores: Mapping[str, np.ndarray], bins: np.ndarray) -> None:
    for index, (side, values) in enumerate(scores.items()):
        axes.hist(
            values,
            bins=bins.tolist(),
            color=SERIES[index],
            alpha=0.6,
            label=side,
            ec=SERIES[index],
            lw=0.8,
        )


def auroc_by_layer(
    splits: Mapping[str, Mapping[str, Curve]], random: Mapping[str, Curve], best: int | None
) -> Picture:
    """Held-out AUROC by layer, one panel a split and one curve a method, each with its 95 % band."""
    with _figure(WIDTH, 3.6, len(splits)) as (figure, panels):
        for axes, (split, curves) in zip(panels, splits.items(), strict=True):
            band = random[split]
            axes.fill_between(
                band.layers,
                band.low,
                band.high,
                color=SERIES[5],
                alpha=0.22,
                linewidth=0,
                label="random vectors",
            )
            for index, (method, curve) in enumerate(curves.items()):
                axes.plot(
                    curve.layers,
                    curve.values,
                    color=SERIES[index],
                    marker="o",
                    markersize=3,
                    label=method,
                )
                axes.fill_between(
                    curve.layers,
                    curve.low,
                    curve.high,
                    color=SERIES[index],
                    alpha=0.09,
                    linewidth=0,
                )
            axes.axhline(0.5, color=MUTED, linestyle=":", linewidth=1)
            if best is not None:
                axes.axvline(best, color=INK, linestyle="--", linewidth=1, label="recommended")
            axes.set(
                title=f"unseen {split}s", xlabel="layer", ylim=(min(0.4, axes.get_ylim()[0]), 1.02)
            )
            axes.xaxis.get_major_locator().set_params(integer=True)
        panels[0].set_ylabel("AUROC")
        _legend(figure, panels[0])
        tops = [
            f"{method} peaks at {curve.values.max():.2f} at layer "
            f"{curve.layers[int(curve.values.argmax())]}"
            for method, curve in next(iter(splits.values())).items()
        ]
        alt = (
            f"Held-out AUROC by layer with 95 % intervals for unseen "
            f"{' and '.join(f'{s}s' for s in splits)}: " + "; ".join(tops)
        )
        return _picture(figure, "auroc", "Held-out AUROC by layer", alt + ".")


def neighbour_cosines(curves: Mapping[str, Curve]) -> Picture:
    """Cosine of each layer's vector with the next layer's, one curve a method."""
    with _figure(WIDTH, 2.8) as (figure, (axes,)):
        for index, (method, curve) in enumerate(curves.items()):
            axes.plot(
                curve.layers,
                curve.values,
                color=SERIES[index],
                marker="o",
                markersize=3,
                label=method,
            )
        axes.set(
            xlabel="layer",
            ylabel="cosine with next layer",
            ylim=(min(-0.1, axes.get_ylim()[0]), 1.05),
        )
        axes.xaxis.get_major_locator().set_params(integer=True)
        _legend(figure, axes)
        means = [f"{method} {curve.values.mean():.2f}" for method, curve in curves.items()]
        alt = (
            "Cosine between each layer's vector and the next one's; means: "
            + ", ".join(means)
            + "."
        )
        return _picture(figure, "neighbours", "Agreement of neighbouring layers", alt)


def heat_map(
    name: str,
    title: str,
    alt: str,
    matrix: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    span: tuple[float, float],
    labels: tuple[str, str] = ("", ""),
) -> Picture:
    """A matrix with its values written in the cells; NaN cells stay blank."""
    import matplotlib as mpl

    size = 0.62 * max(len(rows), len(columns)) + 2.2
    with _figure(size + 0.8, size - 0.4) as (figure, (axes,)):
        axes.grid(visible=False)
        colours = mpl.colormaps["RdBu_r" if span[0] < 0 else "PuOr"]
        axes.pcolormesh(
            matrix,
            cmap=colours,
            vmin=span[0],
            vmax=span[1],
            edgecolors="face",
            linewidth=0.3,
        )
        for row, column in np.argwhere(np.isfinite(matrix)):
            share = (matrix[row, column] - span[0]) / (span[1] - span[0])
            red, green, blue, _ = colours(share)
            bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
            axes.text(
                column + 0.5,
                row + 0.5,
                f"{matrix[row, column]:.2f}",
                ha="center",
                va="center",
                fontsize=9,
                color="#000000" if bright else "#fefefe",  # not PAPER, which the page leaves out
            )
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=30, ha="right")
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
        axes.tick_params(length=0, labelcolor=INK)
        axes.spines[:].set_visible(False)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.invert_yaxis()
        return _picture(figure, name, title, alt)
