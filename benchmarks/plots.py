"""The benchmarks' pictures, drawn from stored results; each is saved as SVG and PNG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import GUIDE
from traitmill.engine.report.picture import SERIES, STYLE


@contextmanager
def _saved(folder: Path, name: str, columns: int = 1) -> Iterator[Any]:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure.subplots(1, columns, sharey=columns > 1, squeeze=False)[0]
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
        figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})


def speedup(result: Mapping[str, Any], folder: Path, name: str) -> None:
    """Speedup over one sequence at a time, measured and as the guide claims it."""
    rows = result["rows"]
    labels = [row["batch"] for row in rows]
    with _saved(folder, name) as (axes,):
        for key, label, colour in (
            ("speedup", "generation", SERIES[0]),
            ("job_speedup", "whole job", SERIES[2]),
        ):
            median, least, most = zip(*(row[key] for row in rows), strict=True)
            axes.plot(labels, median, marker="o", color=colour, label=label)
            axes.fill_between(labels, least, most, color=colour, alpha=0.2, linewidth=0)
        claimed = {batch: GUIDE[batch][1] for batch in labels if batch in GUIDE}
        axes.plot(
            list(claimed), list(claimed.values()), "x--", color=SERIES[1], label="the guide's claim"
        )
        axes.set(xlabel="sequences in flight", ylabel="times the speed of 1", ylim=(0, None))
        axes.legend()


def timeline(result: Mapping[str, Any], folder: Path, name: str) -> None:
    """Records done over time in each stage: an instant judge, and one that takes its time."""
    shown = result["timelines"]
    with _saved(folder, name, columns=len(shown)) as panels:
        for axes, (title, times) in zip(panels, shown.items(), strict=True):
            for (stage, moments), colour in zip(times.items(), SERIES, strict=False):
                axes.step(
                    [0.0, *sorted(moments)],
                    range(len(moments) + 1),
                    where="post",
                    color=colour,
                    label=stage,
                )
            axes.set(title=title, xlabel="seconds", xlim=(0, None), ylim=(0, None))
        panels[0].set_ylabel("records done")
        panels[0].legend()
