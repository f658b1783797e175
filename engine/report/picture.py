"""One picture as two files: its style, its empty axes, and how it is saved."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("scores", "auroc", "projections", "cosines", "neighbours", "steering", "transfer")
"""Of all pictures that any page can have."""
WIDTH = 8.5
"""Inches, of all but the heat maps: one width, one size of letters on the page."""
INK = "#1b1f24"
MUTED = "#6b7079"
GRID = "#d5d8dd"
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
    "hatch.linewidth": 0.5,
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


def fill_band(axes: Axes, x: Any, low: Any, high: Any, colour: str, *, hatched: bool) -> None:
    """Draw a band between two lines; of two that overlap, one is filled and one hatched."""
    from matplotlib.colors import to_rgba

    how: dict[str, Any] = {"facecolor": to_rgba(colour, 0.22), "edgecolor": to_rgba(colour, 0.6)}
    if hatched:
        how |= {"facecolor": "none", "hatch": "/////"}
    axes.fill_between(x, low, high, linewidth=0.6, **how)
