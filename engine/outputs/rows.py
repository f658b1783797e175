"""The kept rows as files: pos.csv, neg.csv and the tensors, in one order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ..files import TEMP_SUFFIX, atomic_file, csv_line, naming_full_disk
from ..models import holds_thought
from ..records import POLARITIES, Polarity
from ..storage import TraitState
from .metadata import CSV_COLUMNS


class Written(NamedTuple):
    """pos.csv and neg.csv."""

    files: list[Path]
    counts: dict[Polarity, int]
    thoughts: int
    """Responses that hold a thought which was not set apart."""


def write_csvs(state: TraitState, kept: np.ndarray) -> Written:
    """Write pos.csv and neg.csv."""
    files: list[Path] = []
    counts: dict[Polarity, int] = {}
    thoughts = 0
    for polarity in POLARITIES:
        side = kept[state.side(polarity)[kept]]
        path = state.folder.responses_csv(polarity)
        with atomic_file(path) as file:
            thoughts += _write_csv(file, state, side)
        files.append(path)
        counts[polarity] = len(side)
    return Written(files, counts, thoughts)


def _write_csv(file: BinaryIO, state: TraitState, positions: np.ndarray) -> int:
    """Write UTF-8 with LF and minimal quoting; a side with nothing kept is a header. Return how
    many responses hold a thought which was not set apart."""
    held, response = 0, CSV_COLUMNS.index("response")
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
            held += not thoughts and holds_thought(cells[response])
    return held


def format_score(score: float, limits: Sequence[float] = ()) -> str:
    """Return at most two decimals, no trailing zeros; all of them where two would pass a limit that
    the score does not."""
    text = f"{score:.2f}".rstrip("0").rstrip(".")
    kept = all((float(text) >= limit) == (score >= limit) for limit in limits)
    return text if kept else str(score)


def _blocks(state: TraitState, pool: str, positions: np.ndarray) -> Iterator[np.ndarray]:
    """Yield float32 `[rows, n_layers, dim]` in the order of `positions`."""
    for table in state.tables("activations", positions, ["layers", "dim", "values"], pool):
        n_layers, dim = len(table["layers"][0]), table["dim"][0].as_py()
        values = table["values"].combine_chunks()
        width = values.type.byte_width
        count, start = len(values) * width // 4, values.offset * width
        flat = np.frombuffer(values.buffers()[1], "<f4", count, start)
        yield flat.reshape(len(values), n_layers, dim)


def write_tensor(state: TraitState, pool: str, positions: np.ndarray) -> tuple[int, ...]:
    """Write float32 `[n_kept, n_layers, dim]` through a mapped scratch file, never in memory."""
    import torch

    facts = state.capture
    if facts is None:
        raise ValueError("a tensor needs the facts of its activation set")
    shape = (len(positions), len(facts.layers), facts.hidden_dim)
    path = state.folder.tensor(pool)
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_name(f".{path.name}.raw{TEMP_SUFFIX}")
    try:
        with naming_full_disk(scratch), scratch.open("wb") as raw:
            for block in _blocks(state, pool, positions):
                raw.write(block.data)
        values: np.ndarray = np.zeros(shape, np.float32)
        if len(positions):
            values = np.memmap(scratch, "<f4", "r+", shape=shape)
        with atomic_file(
            path
        ) as file:  # a file object: torch writes a path's stem into the archive
            torch.save(torch.from_numpy(values), file)
    finally:
        scratch.unlink(missing_ok=True)
    return shape
