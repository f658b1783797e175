"""Stored activations as a tensor file, never whole in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..files import TEMP_SUFFIX, atomic_file, naming_full_disk
from ..storage import TraitState


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
