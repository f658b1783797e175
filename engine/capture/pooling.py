"""Pools: one vector per row and layer, formed in float32 on the device while the forward runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from .decoder import hidden_of

EMBEDDINGS = -1
"""Layer index of the embedding output: the residual stream as it enters block 0."""


class Enough(Exception):  # noqa: N818  a signal, not an error
    """Raised by a hook to end the forward: later blocks, final norm and LM head do not run."""


def pool_weights(
    pools: Sequence[str], spans: Sequence[Mapping[str, tuple[int, int]]], width: int
) -> torch.Tensor:
    """Weights `[rows, pools, width]`, float32, that turn token states into pools; each pool's
    weights sum to 1.

    `spans` gives each row's (first, end) by what a pool is of (`Response.spans`); rows start at
    column 0. A row without response tokens has response pools of weight 0.
    """
    weights = torch.zeros(len(spans), len(pools), width)
    for row, parts in enumerate(spans):
        for slot, pool in enumerate(pools):
            part, how = pool.split("_")
            first, end = parts[part]
            if first == end:
                continue
            if how == "mean":
                weights[row, slot, first:end] = 1.0 / (end - first)
            else:
                weights[row, slot, end - 1] = 1.0
    return weights


def padded_ids(token_ids: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    """int64 `[rows, width]`: each row cut to `width` and padded on the right with its own last
    token.

    A row's own token, because its states are as finite as the row's; what padding holds is weighted
    with zero.
    """
    ids: np.ndarray = np.empty((len(token_ids), width), dtype=np.int64)
    for row, tokens in enumerate(token_ids):
        count = min(len(tokens), width)
        ids[row, :count] = tokens[:count]
        ids[row, count:] = tokens[count - 1]
    return torch.from_numpy(ids)


class LayerHooks:
    """Hooks on the captured layers of `blocks`; inside the `with`, a forward calls `take(slot,
    hidden)` for each.

    `layers` is ascending, EMBEDDINGS first if at all; slot is the position in it and hidden `[rows,
    width, dim]` as the model computes it. After the last layer the forward ends by raising Enough.
    The hooks go when the block ends, however it ends.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        layers: Sequence[int],
        take: Callable[[int, torch.Tensor], None],
    ) -> None:
        self._blocks = blocks
        self._layers = layers
        self._take = take
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        last = len(self._layers) - 1
        for slot, layer in enumerate(self._layers):
            if layer == EMBEDDINGS:
                handle = self._blocks[0].register_forward_pre_hook(
                    self._entering(slot, slot == last), with_kwargs=True
                )
            else:
                handle = self._blocks[layer].register_forward_hook(
                    self._leaving(slot, slot == last)
                )
            self._handles.append(handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _entering(self, slot: int, last: bool) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._take(slot, args[0] if args else kwargs["hidden_states"])
            if last:
                raise Enough

        return hook

    def _leaving(self, slot: int, last: bool) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            self._take(slot, hidden_of(output))
            if last:
                raise Enough

        return hook


class Pooler:
    """Forms pools as layers go by: `take` is what LayerHooks calls.

    `pooled` is `[rows, pools, layers, dim]`, float32, on `device`; layers whose blocks are on other
    devices stay there, see `elsewhere`. The token states themselves are never kept.
    """

    def __init__(
        self, weights: torch.Tensor, n_layers: int, dim: int, device: torch.device
    ) -> None:
        rows, pools, _ = weights.shape
        self.pooled = torch.empty(rows, pools, n_layers, dim, dtype=torch.float32, device=device)
        self._weights = weights.pin_memory() if device.type == "cuda" else weights
        self._weights_on: dict[torch.device, torch.Tensor] = {}
        self._elsewhere: dict[torch.device, list[tuple[int, torch.Tensor]]] = {}

    def take(self, slot: int, hidden: torch.Tensor) -> None:
        device = hidden.device
        if device not in self._weights_on:
            self._weights_on[device] = self._weights.to(device, non_blocking=True)
        # A batched product rather than sums over slices: one kernel a layer, and the same order of
        # additions each time.
        formed = torch.bmm(self._weights_on[device], hidden.float())
        if device == self.pooled.device:
            self.pooled[:, :, slot].copy_(formed, non_blocking=True)
        else:
            self._elsewhere.setdefault(device, []).append((slot, formed))

    def elsewhere(self) -> list[tuple[list[int], torch.Tensor]]:
        """Return, of each other device, the slots of its layers and `[rows, pools, slots, dim]`."""
        return [
            ([slot for slot, _ in formed], torch.stack([pools for _, pools in formed], dim=2))
            for formed in self._elsewhere.values()
        ]
