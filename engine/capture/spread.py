"""A model whose blocks lie on several devices: what keeps all of them busy at once.

Work on a GPU is only queued by the host, so while one card runs the last blocks of a batch, the
first may run the next batch's first blocks, if nothing makes it wait. A copy between two cards
does: it holds up the queues of both. So each device is given once a forward what all blocks share,
pools stay where their block is until they go to the host, and there are as many batches under way
as devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from .batching import Batch
from .pooling import Pooler


def devices_of(blocks: Sequence[nn.Module]) -> list[torch.device]:
    """Return the device of each block: that of its first weight."""
    return [next(block.parameters()).device for block in blocks]


def events_of(devices: Sequence[torch.device]) -> list[torch.cuda.Event]:
    """Return an event of each GPU among `devices`, which is met when its work so far is done."""
    events = []
    for device in dict.fromkeys(devices):
        if device.type == "cuda":
            events.append(torch.cuda.Event())
            # Of its own device: the current one is the first GPU, whose stream knows nothing of
            # what runs on another.
            events[-1].record(torch.cuda.current_stream(device))
    return events


class SharedOnce:
    """Inside the `with`, one forward: what its blocks are given alike is copied once a device.

    That is their keyword arguments: rotary tables, positions, masks. Left alone, each block copies
    its own. Blocks on one device are left alone.
    """

    def __init__(self, blocks: Sequence[nn.Module], devices: Sequence[torch.device]) -> None:
        self._places = list(zip(blocks, devices, strict=True))
        self._handles: list[Any] = []
        self._copies: dict[tuple[int, torch.device], tuple[Any, Any]] = {}
        """By the original's identity, with the original, so that it stays the only one of it."""

    def __enter__(self) -> Self:
        if len({device for _, device in self._places}) > 1:
            for block, device in self._places:
                hook = partial(self._before, device)
                self._handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
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
        self._copies.clear()

    def _before(
        self, device: torch.device, _block: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        moved = {
            name: value if name == "hidden_states" else self._on(value, device)
            for name, value in kwargs.items()
        }
        return args, moved

    def _on(self, value: Any, device: torch.device) -> Any:
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return tuple(self._on(part, device) for part in value)
        if not isinstance(value, torch.Tensor) or value.device == device:
            return value
        key = (id(value), device)
        if key not in self._copies:
            self._copies[key] = (value, value.to(device, non_blocking=True))
        return self._copies[key][1]


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A batch whose pools are on their way."""

    batch: Batch
    pooled: torch.Tensor
    """float32 `[rows, pools, layers, dim]` in host memory, whole once `wait` has returned."""
    arrived: torch.cuda.Event | None
    elsewhere: tuple[tuple[list[int], torch.Tensor, torch.cuda.Event], ...] = ()
    """Slots whose blocks are on other devices than the first: their pools, and their copy's end."""

    @classmethod
    def start(cls, batch: Batch, pooler: Pooler) -> Self:
        """Start the copies of what a launched forward leaves in its pooler."""
        if pooler.pooled.device.type != "cuda":
            return cls(batch, pooler.pooled, None)
        others = tuple((slots, *_to_host(part)) for slots, part in pooler.elsewhere())
        return cls(batch, *_to_host(pooler.pooled), others)

    def wait(self) -> tuple[Batch, np.ndarray]:
        """Return the batch and its pools, once they are there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        for slots, pooled, arrived in self.elsewhere:
            arrived.synchronize()
            self.pooled[:, :, slots] = pooled
        return self.batch, self.pooled.numpy()


def _to_host(pooled: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
    """Start the copy of a GPU's tensor; return where it goes, and the event of its end."""
    host = torch.empty_like(pooled, device="cpu", pin_memory=True)
    host.copy_(pooled, non_blocking=True)
    [arrived] = events_of([pooled.device])
    return host, arrived
