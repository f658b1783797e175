"""Which method and layer to steer with, where none is named: not those that read best.

To tell two sets of texts apart, a late layer is as good as any: the widest gap is often near the
end, where little of the model is left to act on what is added. The difference of the means is what
a sum moves one side by to reach the other; a vector that weighs directions by how well they tell
(a probe, a gradient) points elsewhere. So: mean_diff, at the layer nearest the middle of those that
read the trait as well as the method's best.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    import polars as pl

    from ..vectors import Evaluation

METHOD = "mean_diff"


def default_method(evaluation: Evaluation) -> str:
    """Return the difference of means, where it was fitted; else the recommended method.

    Raise UsageError where nothing could be held out.
    """
    best = evaluation.recommendation
    if best is None:
        raise UsageError(
            f"{evaluation.trait}: no vector can be chosen, since nothing could be held out; name "
            "`methods` and `layers`"
        )
    return METHOD if len(_held_out(evaluation, METHOD)) else best.method


def default_layer(evaluation: Evaluation, method: str) -> int:
    """Return the layer nearest the middle of those that read as well as the method's best.

    They are those whose 95 % interval of the held-out AUROC reaches the best one's figure; the
    middle is that of all layers that were fitted. Raise UsageError where nothing was held out.
    """
    found = _held_out(evaluation, method)
    if not len(found):
        raise UsageError(
            f"{evaluation.trait}: no layer of {method} can be chosen, since none was evaluated on "
            "held-out rows; name `layers`"
        )
    middle = (found["layer"].min() + found["layer"].max()) / 2
    reach = found["high"].fill_null(found["value"])
    good = found.filter(reach >= found["value"].max())["layer"].to_list()
    return int(min(sorted(good), key=lambda layer: abs(layer - middle)))


def _held_out(evaluation: Evaluation, method: str) -> pl.DataFrame:
    """Return a method's held-out AUROC by block, of the split that chooses."""
    best, table = evaluation.recommendation, evaluation.table
    split = best.split if best else ""
    found = table.filter(measure="auroc", split=split, method=method).drop_nulls("value")
    return found.filter(found["layer"] >= 0)
