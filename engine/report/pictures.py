"""Which pictures a page shows, drawn from its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..records import POLARITIES
from ..vectors.methods import METHODS
from . import plots
from .numbers import Figures
from .plots import Picture

if TYPE_CHECKING:
    import polars as pl

NAMES = ("scores", "auroc", "projections", "cosines", "neighbours", "transfer")
"""Of all pictures that any page can have."""


def cosine_layer(figures: Figures) -> int:
    """Where methods are compared: the recommended layer, else the middle one."""
    found = figures.evaluation.recommendation
    return found.layer if found else figures.layers()[len(figures.layers()) // 2]


def trait_pictures(
    figures: Figures, metadata: Mapping[str, Any], responses: pl.DataFrame
) -> list[Picture]:
    """Scores, AUROC and projections where rows were held out, and how methods and layers agree."""
    import polars as pl

    methods, layers, splits = figures.methods(), figures.layers(), figures.splits()
    scored: dict[str, np.ndarray] = {
        side: responses.filter((pl.col("polarity") == side) & pl.col("score").is_not_null())[
            "score"
        ].to_numpy()
        for side in POLARITIES
    }
    pictures = [plots.score_histogram(scored, float(metadata["threshold"]))]
    found = figures.evaluation.recommendation
    # Random vectors are drawn as the band of many, not as one of them.
    fitted = [method for method in methods if METHODS[method].fit is not None]
    if splits and fitted:
        curves = {
            split: {method: figures.curve("auroc", split, method) for method in fitted}
            for split in splits
        }
        random = {split: figures.curve("random_auroc", split, "random") for split in splits}
        pictures.append(plots.auroc_by_layer(curves, random, found.layer if found else None))
    if found:
        held_out = figures.evaluation.table.filter(pl.col("measure") == "held_out_score")[
            "value"
        ].to_numpy()
        n_pos = metadata["n_examples_pos"]
        sides = {"pos": held_out[:n_pos], "neg": held_out[n_pos:]}
        pictures.append(plots.projection_histogram(sides, f"{found.method} at layer {found.layer}"))
    layer = cosine_layer(figures)
    cosines = np.array(
        [[figures.measured("cosine", "", a, layer, b).value for b in methods] for a in methods]
    )
    listed = [
        f"{a} and {b} {cosines[i, j]:.2f}"
        for i, a in enumerate(methods)
        for j, b in enumerate(methods)
        if i < j
    ]
    alt = f"Cosine between the methods' vectors at layer {layer}: {', '.join(listed) or 'one method only'}."
    title = f"Methods at layer {layer}"
    pictures.append(plots.heat_map("cosines", title, alt, cosines, methods, methods, span=(-1, 1)))
    if len(layers) > 1:
        pictures.append(
            plots.neighbour_cosines({m: figures.curve("cosine_next_layer", "", m) for m in methods})
        )
    return pictures


def transfer_picture(table: pl.DataFrame) -> Picture:
    """Each trait's vector on each trait's rows; pairs that were not measured stay blank."""
    names = list(dict.fromkeys(table["trait"]))
    values = {(row["trait"], row["target"]): row["value"] for row in table.iter_rows(named=True)}
    matrix = np.array([[values[a, b] for b in names] for a in names], float)
    told = [
        ["not measured" if np.isnan(value) else f"{value:.2f}" for value in row] for row in matrix
    ]
    listed = [f"{a} on {b} {told[i][j]}" for i, a in enumerate(names) for j, b in enumerate(names)]
    alt = "AUROC of each trait's vector on each trait's responses: " + ", ".join(listed) + "."
    return plots.heat_map(
        "transfer",
        "Transfer between traits",
        alt,
        matrix,
        names,
        names,
        span=(0, 1),
        labels=("responses of", "vector of"),
    )
