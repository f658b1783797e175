"""A batch under way: its forward is launched, its pools are on their way to host memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from .batching import Batch
from .pooling import Pooler
from .spread import events_of


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
