"""Arrays that a worker process hands to its parent in memory that both see: never pickled.

The parent makes the memory, so that it lives exactly as long as somebody looks at it, however the
worker ends. It has no name and is none of /dev/shm, which a container keeps small: the worker opens
it among the parent's files in /proc.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from ..records import Activation


@dataclass(frozen=True, slots=True)
class Result:
    """An activation whose pools lie in a tray."""

    trait: str
    sample_id: str
    error: str


class Tray:
    """The parent's side: room for the pools of so many rows, float32 `[pools, layers, dim]` each.

    A context manager: at its end the memory is left to those who hold views of it.
    """

    def __init__(self, rows: int, pools: Sequence[str], layers: int, dim: int) -> None:
        self._pools = tuple(pools)
        self._shape = (rows, len(self._pools), layers, dim)
        self._file = os.memfd_create("traitmill-capture")
        os.ftruncate(self._file, max(1, 4 * int(np.prod(self._shape))))
        self.place = Place(f"/proc/{os.getpid()}/fd/{self._file}", self._pools, self._shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def take(self, results: Sequence[Result]) -> list[Activation]:
        """Return activations whose pools are views of the memory, one a row in its order."""
        seen = mmap.mmap(self._file, max(1, 4 * int(np.prod(self._shape))))
        values = np.frombuffer(seen, np.float32, int(np.prod(self._shape))).reshape(self._shape)
        return [
            Activation(
                result.trait,
                result.sample_id,
                {} if result.error else dict(zip(self._pools, values[row], strict=True)),
                result.error,
            )
            for row, result in enumerate(results)
        ]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker puts what its parent has room for."""

    path: str
    pools: tuple[str, ...]
    shape: tuple[int, ...]
    """[rows, pools, layers, dim]."""

    def put(self, found: Sequence[Activation]) -> list[Result]:
        """Write the pools of as many rows as there is room for; return what else is to be said."""
        file = os.open(self.path, os.O_RDWR)
        try:
            with mmap.mmap(file, max(1, 4 * int(np.prod(self.shape)))) as memory:
                values = np.frombuffer(memory, np.float32, int(np.prod(self.shape)))
                rows = values.reshape(self.shape)
                for row, activation in enumerate(found):
                    for pool, name in enumerate(self.pools):
                        if not activation.error:
                            rows[row, pool] = activation.pools[name]
                del rows, values  # a mapping that is looked at cannot be closed
        finally:
            os.close(file)
        return [Result(each.trait, each.sample_id, each.error) for each in found]
