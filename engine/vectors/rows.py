"""The rows of a layer, and the walk over layers."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import TypeVar

import numpy as np
from numpy import ndarray

from ..errors import UsageError
from ..models import free_host_memory
from ..outputs import Activations
from .design import Design

FIT_TALL, FOLDS_TALL = 0.7, 0.36
"""Rows a hidden dimension above which sums over rows cost less than the Gram matrix, for one fit
and for those of all folds: measured, see docs/decisions/012-rows-or-width.md."""
side_by_side: int | None = None
"""Layers that this process works on side by side, at most; None: one a core."""
TOGETHER = 1 << 18
"""Entries of the Gram matrices of layers that are fitted together: of small ones calls cost more
than arithmetic."""
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LayerRows:
    """All rows at one layer."""

    layer: int
    centred: ndarray
    """float64 `[n, hidden_dim]`."""
    mean: ndarray
    """float64 `[hidden_dim]`."""
    tall: bool
    """Whether the rows are too many for their Gram matrix."""

    @cached_property
    def first(self) -> ndarray:
        return first_equal(self.centred)

    @cached_property
    def gram(self) -> ndarray:
        """float64 `[n, n]`, of the centred rows."""
        return np.asarray(self.centred @ self.centred.T)

    @cached_property
    def design(self) -> Design:
        """The rows as a probe of many of them sees them."""
        return Design(self.centred)


def first_equal(rows: ndarray) -> ndarray:
    """Return of each row the first one that equals it, int `[n]`.

    Products with equal rows differ in the last bit by where a row stands, which would break ties.
    """
    places: dict[bytes, int] = {}
    digests = (blake2b(row + 0.0, digest_size=16).digest() for row in rows)  # no zero has a sign
    return np.array([places.setdefault(each, at) for at, each in enumerate(digests)], int)


OnLayer = Callable[[int, int], None]
"""Told how many layers are done, and of how many."""


def unheard(_done: int, _total: int) -> None:
    """Tell nobody."""


def map_layers(
    function: Callable[[Sequence[LayerRows]], Sequence[T]],
    activations: Activations,
    layers: Sequence[int],
    border: float,
    on_layer: OnLayer = unheard,
) -> list[T]:
    """Return what `function` returns for each layer, in order.

    It is given one layer at a time, or some where rows are few; one call a core, or as many as
    memory holds. Rows are tall above `border` times the hidden dimensions. Linear algebra is held
    to one thread each: many small problems side by side beat one at a time on all cores.
    KeyboardInterrupt, or an error at a layer, ends those under way, which can take minutes each.
    """
    # Loaded here, since the limit below only reaches libraries that are loaded already.
    import scipy.linalg  # noqa: F401 - see above
    from threadpoolctl import threadpool_limits

    under_way: set[int] = set()
    begun, ended = threading.Event(), threading.Event()
    n, _, dim = activations.values.shape
    tall = n > border * dim

    def some(block: Sequence[int]) -> Sequence[T]:
        begun.wait()
        under_way.add(threading.get_ident())
        try:
            if ended.is_set():  # it set out too late to be interrupted
                raise KeyboardInterrupt
            return function([_rows_at(activations, layer, tall) for layer in block])
        finally:
            under_way.discard(threading.get_ident())

    found: list[T] = []
    on_layer(0, len(layers))
    workers = _workers(n, dim, tall)
    blocks = [[layer] for layer in layers] if tall else _blocks(n, layers, workers)
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        try:
            futures = [pool.submit(some, block) for block in blocks]
            # Not before: a pool that is interrupted while it starts a thread does not know of it.
            begun.set()
            for future in futures:
                while not wait([future], timeout=1).done:
                    pass  # a signal that comes just before a wait does not end it
                for each in future.result():
                    found.append(each)
                    on_layer(len(found), len(layers))
        except BaseException:
            ended.set()
            begun.set()
            for thread in tuple(under_way):
                _interrupt(thread)
            raise
    return found


def _rows_at(activations: Activations, layer: int, tall: bool) -> LayerRows:
    centred = activations.rows_at(layer)
    mean = centred.mean(axis=0)
    if not np.isfinite(mean).all():
        raise UsageError(f"the activations at layer {layer} hold NaN or infinity")
    centred -= mean
    return LayerRows(layer, centred, mean, tall)


def _workers(n: int, dim: int, tall: bool) -> int:
    """Return how many layers are worked on side by side: one a core, where memory holds so many.

    What one takes is a little more than was measured: docs/vectors.md has the peaks.
    """
    square = 11 * dim**2 if tall else 20 * n**2
    one = 16 * n * dim + 8 * square
    most = side_by_side or len(os.sched_getaffinity(0))
    return max(1, min(most, free_host_memory() // one))


def _blocks(n: int, layers: Sequence[int], workers: int) -> Sequence[Sequence[int]]:
    """Return the layers in runs that are fitted together, at least one a worker."""
    size = max(1, min(TOGETHER // n**2, -(-len(layers) // workers)))
    return [layers[start : start + size] for start in range(0, len(layers), size)]


def _interrupt(thread: int) -> None:
    """Raise KeyboardInterrupt in a thread as soon as it runs Python: the pool waits for it."""
    error = ctypes.py_object(KeyboardInterrupt)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)


def cells_of(activations: Activations) -> ndarray:
    """Return int `[n]`: one number per instruction pair and question."""
    n_questions = activations.questions.max() + 1
    return np.asarray(activations.instructions * n_questions + activations.questions)


def contrast(labels: ndarray, among: ndarray | bool = True) -> ndarray:
    """Return weights `[..., n]` of the mean of pos minus that of neg, among some rows (bool)."""
    pos, neg = labels & among, ~labels & among
    shares = (side / side.sum(axis=-1, keepdims=True) for side in (pos, neg))
    return np.asarray(next(shares) - next(shares))
