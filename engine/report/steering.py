"""What a page says of steering: the claim, its curves, its figures and answers side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..outputs import Metadata
from ..steering import read_study
from ..storage import TraitFolder
from .picture import MUTED, SERIES, Picture, as_picture, fill_band, panels

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes

_PANELS = {
    "trait_score": "trait score",
    "coherence": "coherence",
    "own_logprob": "log-probability of\nunsteered answers",
}
_LINES = {"unsteered": ("unsteered", ":"), "prompt": ("pos instruction", "--")}


class Steered:
    """What steering with a trait's vectors came to, as a page shows it."""

    def __init__(self, table: pl.DataFrame, facts: dict[str, Any]) -> None:
        self.claim, self.facts = facts["claim"], facts
        self._table = table
        at = {"method": self.claim["method"], "layer": self.claim["layer"]}
        self._own = table.filter(kind="steered", **at)
        self._random = table.filter(kind="random", layer=self.claim["layer"])
        self._ablated = table.filter(
            table["method"].is_in([self.claim["method"], "random"]),
            kind="ablated",
            layer=self.claim["layer"],
        )

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Each condition with its figures by measure; baselines first."""
        found = []
        baselines = self._table.filter(self._table["kind"].is_in(["unsteered", "prompt"]))
        keys = ["kind", "coefficient", "method"]
        for table in (baselines, self._ablated, self._own, self._random):
            for key, group in table.group_by(keys, maintain_order=True):
                figures = {row["measure"]: row for row in group.to_dicts()}
                found.append({**dict(zip(keys, key, strict=True)), "figures": figures})
        return found

    @property
    def others(self) -> list[str]:
        """Other methods and layers that were tried, as `probe at layer 3`."""
        table = self._table.filter(kind="steered")
        pairs = table.select("method", "layer").unique(maintain_order=True).rows()
        own = (self.claim["method"], self.claim["layer"])
        return [f"{method} at layer {layer}" for method, layer in pairs if (method, layer) != own]

    @property
    def picture(self) -> Picture:
        """The curves by coefficient: score, coherence and side effect."""
        rows = self._own.filter(measure="trait_score").sort("coefficient")
        points = ", ".join(
            f"{c:g}: {v:.1f}" for c, v in rows.select("coefficient", "value").drop_nulls().rows()
        )
        alt = f"Mean trait score by coefficient with 95 % intervals; {points}."
        with panels(5.2, len(_PANELS), share_y=False) as (figure, axes):
            for (axis,), (measure, label) in zip(axes, _PANELS.items(), strict=True):
                self._panel(axis, measure)
                axis.set_ylabel(label)
            axes[-1][0].set_xlabel("coefficient, in units of the layer's mean residual norm")
            return as_picture(figure, "steering", alt, legend_of=0)

    def _panel(self, axes: Axes, measure: str) -> None:
        for table, colour, label in (
            (self._random, MUTED, "random vectors"),
            (self._own, SERIES[0], f"{self.claim['method']} at layer {self.claim['layer']}"),
        ):
            rows = table.filter(measure=measure).drop_nulls().sort("coefficient")
            if len(rows):
                x = rows["coefficient"].to_numpy()
                band = (rows["low"].to_numpy(), rows["high"].to_numpy())
                fill_band(axes, x, *band, colour, hatched=colour == MUTED)
                if len(x) == 1:  # a band of one place has no width
                    axes.vlines(x, *band, colour)
                axes.plot(x, rows["value"].to_numpy(), "o-", color=colour, label=label)
        axes.update_datalim([(0, 0)], updatey=False)  # where nothing is added
        axes.autoscale_view()
        for kind, (label, style) in _LINES.items():
            rows = self._table.filter(kind=kind, measure=measure).drop_nulls()
            if len(rows):
                how: dict[str, Any] = {
                    "color": SERIES[1],
                    "linestyle": style,
                    "linewidth": 1,
                    "label": label,
                }
                axes.axhline(rows["value"].item(), **how)
        if measure == "coherence":
            axes.axhline(self.facts["coherence_least"], color=MUTED, linewidth=1)
        if self.claim["coefficient"] is not None:
            axes.axvline(self.claim["coefficient"], color=MUTED, linestyle="--", linewidth=1)


def steered(folder: TraitFolder, metadata: Metadata, pool: str) -> Steered | None:
    """Return what steering with a trait's vectors of a pool came to; None where there is none.

    Vectors of other activations than `metadata` describes are others. Raise UsageError for a file
    that was changed.
    """
    if not folder.steering_table.is_file():
        return None
    table, facts = read_study(folder)
    if facts["activations_sha256"] != metadata.tensor_sha256(pool):
        return None
    return Steered(table, facts)
