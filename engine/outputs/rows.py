"""pos.csv and neg.csv: the kept responses with their scores, in the documented columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..files import atomic_file, csv_line
from ..records import POLARITIES, Polarity
from ..storage import TraitState
from .metadata import CSV_COLUMNS


def write_csvs(state: TraitState, kept: np.ndarray) -> tuple[list[Path], dict[Polarity, int]]:
    """Write pos.csv and neg.csv; return their paths and how many rows each has."""
    files, counts = [], {}
    for polarity in POLARITIES:
        side = kept[state.side(polarity)[kept]]
        path = state.folder.responses_csv(polarity)
        with atomic_file(path) as file:
            _write_csv(file, state, side)
        files.append(path)
        counts[polarity] = len(side)
    return files, counts


def _write_csv(file: BinaryIO, state: TraitState, positions: np.ndarray) -> None:
    """Write UTF-8 with LF and minimal quoting; a side with nothing kept is a header."""
    texts = list(CSV_COLUMNS[:-1])
    judged = [state.verdicts.score[positions]]
    limits = [*state.choice.thresholds.values(), state.choice.coherence or 0.0]
    header = list(CSV_COLUMNS)
    if state.coherence is not None:
        judged.append(state.coherence.score[positions])
        header.append("coherence")
    thoughts = ["thought"] if state.record.thinks else []
    header += thoughts
    file.write((",".join(header) + "\n").encode())
    scores = iter(np.stack(judged, axis=1).tolist())
    for table in state.tables("responses", positions, [*texts, *thoughts]):
        columns = [table[name].to_pylist() for name in [*texts, *thoughts]]
        for cells in zip(*columns, strict=True):
            said = [format_score(score, limits) for score in next(scores)]
            line = [*cells[: len(texts)], *said, *cells[len(texts) :]]
            file.write(csv_line(line).encode())


def format_score(score: float, limits: Sequence[float] = ()) -> str:
    """Return at most two decimals, no trailing zeros; all of them where two would pass a limit that
    the score does not."""
    text = f"{score:.2f}".rstrip("0").rstrip(".")
    kept = all((float(text) >= limit) == (score >= limit) for limit in limits)
    return text if kept else str(score)
