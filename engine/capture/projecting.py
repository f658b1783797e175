"""Every token's projections on some directions, formed on the device while the forward runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from . import decoder
from .batching import Batch, run_batches
from .model import CaptureModel
from .pooling import padded_ids


def project_tokens(
    model: CaptureModel, rows: Sequence[Sequence[int]], directions: Mapping[int, np.ndarray]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the position of each row and the projections of its tokens, float32 `[tokens, k]`.

    `rows` are token ids. `directions` has `[k_layer, hidden_dim]` by layer, each of which `model`
    captures; the k columns are in the order of the mapping. No state leaves the device. Raise
    ResourceError where one row alone does not fit.
    """
    columns, width = {}, 0
    for layer, vectors in directions.items():
        columns[layer] = slice(width, width + len(vectors))
        width += len(vectors)
    weights = {layer: torch.from_numpy(v.T.astype(np.float32)) for layer, v in directions.items()}

    def run(batch: Batch) -> np.ndarray:
        chosen = [tuple(rows[index]) for index in batch.indices]
        shape = (len(chosen), batch.width, width)
        projected = torch.empty(shape, dtype=torch.float32, device=model.input_device)

        def take(slot: int, hidden: torch.Tensor) -> None:
            layer = model.layers[slot]
            if layer in columns:
                there = weights[layer] = weights[layer].to(hidden.device)
                projected[..., columns[layer]].copy_(hidden.float() @ there)

        model.forward(padded_ids(chosen, batch.width), model.layers, take)
        found: np.ndarray = projected.cpu().numpy()
        return found

    lengths = [len(row) for row in rows]
    for batch, projected in run_batches(
        lengths, model.budget, run, decoder.is_out_of_memory, together=model.together
    ):
        for place, index in enumerate(batch.indices):
            yield index, projected[place, : lengths[index]]
