"""The numbers of a page: looked up in a trait's evaluation and metadata, each with the place it
comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError
from ..vectors.evaluation import Evaluation
from .plots import Curve


@dataclass(frozen=True, slots=True)
class Number:
    """A number on the page: its full value, how it is shown, and where it stands in the files."""

    value: float
    text: str
    source: str
    """`metadata:a/b`, `evaluation:measure/split/method/layer/other/column`,
    `transfer:trait/target/column`, `responses:sample_id/column`, `prices:model`."""
    low: Number | None = None
    high: Number | None = None


def in_full(value: float) -> str:
    """As short as it can be without losing a digit: {:g} would make a seed of 20261123 into
    2.02611e+07."""
    short = f"{value:g}"
    if isinstance(value, int):
        return str(value)
    return short if float(short) == value else repr(value)


class Figures:
    """Looks numbers up in one trait's evaluation and metadata."""

    def __init__(self, evaluation: Evaluation, metadata: Mapping[str, Any]) -> None:
        self.evaluation = evaluation
        self._metadata = metadata
        self._rows = {
            (row["measure"], row["split"], row["method"], row["layer"], row["other"]): row
            for row in evaluation.table.iter_rows(named=True)
        }

    def measured(
        self,
        measure: str,
        split: str = "",
        method: str = "",
        layer: int | None = None,
        other: str = "",
        digits: int = 2,
    ) -> Number:
        """A figure of the evaluation, with its interval where it has one."""
        row = self._rows[
            measure, split, method, layer, other
        ]  # a null is NaN, which the page calls "not measured"
        source = f"evaluation:{measure}/{split}/{method}/{'' if layer is None else layer}/{other}"

        def number(column: str) -> Number | None:
            value = row[column]
            return (
                None
                if value is None
                else Number(value, f"{value:.{digits}f}", f"{source}/{column}")
            )

        value = np.nan if row["value"] is None else float(row["value"])
        return Number(
            value, f"{value:.{digits}f}", f"{source}/value", number("low"), number("high")
        )

    def layer(self, measure: str, split: str, method: str, layer: int) -> Number:
        """A layer as a number, traced to a row that is about it."""
        return Number(layer, str(layer), f"evaluation:{measure}/{split}/{method}/{layer}//layer")

    def meta(self, *path: str | int, text: str = "") -> Number:
        """A figure of metadata.json, in full unless `text` is a format. Raises UsageError where
        there is no number."""
        value: Any = self._metadata
        source = "/".join(map(str, path))
        try:
            for key in path:
                value = value[key]
        except (KeyError, IndexError, TypeError):
            value = None
        if not isinstance(value, int | float):
            raise UsageError(
                f"metadata.json of {self.evaluation.trait} holds no number under {source}; export "
                f"it anew"
            )
        return Number(value, text.format(value) if text else in_full(value), f"metadata:{source}")

    def curve(self, measure: str, split: str, method: str) -> Curve:
        """A method's figures by layer."""
        rows = [self._rows[key] for key in self._rows if key[:3] == (measure, split, method)]
        columns = (
            np.array([row[name] for row in rows], float) for name in ("value", "low", "high")
        )
        return Curve([row["layer"] for row in rows], *columns)

    def methods(self) -> list[str]:
        return list(dict.fromkeys(key[2] for key in self._rows if key[0] == "cosine"))

    def layers(self) -> list[int]:
        return list(
            dict.fromkeys(key[3] for key in self._rows if key[0] == "cosine" and key[3] is not None)
        )

    def splits(self) -> list[str]:
        """What was held out, the split that chose first."""
        return list(dict.fromkeys(key[1] for key in self._rows if key[0] == "auroc"))

    def counts(self, kind: str) -> list[str]:
        """The names under which metadata.json counts a side's responses or verdicts."""
        counted = self._metadata["counts"].get("pos")
        found = counted.get(kind) if isinstance(counted, dict) else None
        if not isinstance(found, dict):
            raise UsageError(
                f"metadata.json of {self.evaluation.trait} holds no counts/pos/{kind}; export it "
                f"anew"
            )
        return list(found)
