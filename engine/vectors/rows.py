"""The rows of one layer, and what fits make of them where they are few.

Every fitted direction is a sum of rows, w = sum_i a_i x_i, whose weights a add up to zero. So a
method needs only the rows' Gram matrix K = X X' (`[n, n]`), whatever the hidden dimension: K is
computed once a layer and shared by all methods and by all held-out folds, whose Gram matrices are
blocks of it. A held-out row's projection is K a as well. Where rows are many, K is too large: see
tall.py.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy import ndarray

from ..outputs import Activations
from .krylov import leading
from .logistic import Design

TALL = 0.5
"""Rows a hidden dimension above which sums over rows cost less than the Gram matrix: measured, see
docs/decisions/012-rows-or-width.md."""
ICA_COMPONENTS = 10
ICA_STEPS = 200
ICA_TOLERANCE = 1e-4
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LayerRows:
    """All rows at one layer."""

    layer: int
    centred: ndarray
    """float64 `[n, hidden_dim]`."""
    mean: ndarray
    """float64 `[hidden_dim]`."""

    @property
    def tall(self) -> bool:
        """Whether the rows are too many for their Gram matrix."""
        n, dim = self.centred.shape
        return bool(n > TALL * dim)

    @cached_property
    def gram(self) -> ndarray:
        """float64 `[n, n]`, of the centred rows."""
        return np.asarray(self.centred @ self.centred.T)

    @cached_property
    def design(self) -> Design:
        """The rows as a probe of many of them sees them."""
        return Design(self.centred)

    def among(self, kept: ndarray) -> Rows:
        """Return the rows of a mask `[n]`."""
        return Rows(self.gram[np.ix_(kept, kept)], self.centred.shape[1])


OnLayer = Callable[[int, int], None]
"""Told how many layers are done, and of how many."""


def unheard(_done: int, _total: int) -> None:
    """Tell nobody."""


def map_layers(
    function: Callable[[LayerRows], T],
    activations: Activations,
    layers: Sequence[int],
    on_layer: OnLayer = unheard,
) -> list[T]:
    """Return `function(rows)` for every layer, in order, one layer a core.

    Linear algebra is held to one thread each: many small problems side by side beat one at a time
    on all cores. KeyboardInterrupt ends the layers under way, which can take minutes each.
    """
    # Loaded here, since the limit below only reaches libraries that are loaded already.
    import scipy.linalg  # noqa: F401 - see above
    from threadpoolctl import threadpool_limits

    under_way: set[int] = set()

    def one(layer: int) -> T:
        under_way.add(threading.get_ident())
        try:
            centred = activations.rows_at(layer)
            mean = centred.mean(axis=0)
            centred -= mean
            return function(LayerRows(layer, centred, mean))
        finally:
            under_way.discard(threading.get_ident())

    found: list[T] = []
    on_layer(0, len(layers))
    workers = len(os.sched_getaffinity(0))
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        try:
            for each in pool.map(one, layers):
                found.append(each)
                on_layer(len(found), len(layers))
        except KeyboardInterrupt:
            for thread in tuple(under_way):
                _interrupt(thread)
            raise
    return found


def _interrupt(thread: int) -> None:
    """Raise KeyboardInterrupt in a thread as soon as it runs Python: the pool waits for it."""
    error = ctypes.py_object(KeyboardInterrupt)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)


def cells_of(activations: Activations) -> ndarray:
    """Return int `[n]`: one number per instruction pair and question."""
    n_questions = activations.questions.max() + 1
    return np.asarray(activations.instructions * n_questions + activations.questions)


class Rows:
    """The Gram matrix of some rows, centred on their mean, whatever their labels."""

    def __init__(self, gram: ndarray, dim: int) -> None:
        means = gram.mean(axis=0)
        self.gram = gram - means - means[:, None] + means.mean()
        self.n = len(gram)
        self.dim = dim
        """Hidden dimension of the rows."""

    @cached_property
    def sources(self) -> tuple[ndarray, bool]:
        """Their independent components `[n, k]`, unit variance, and whether those settled."""
        return independent_components([self])[0]


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """What a method is fitted to."""

    rows: Rows
    labels: ndarray
    """bool `[n]`: True is pos."""
    cells: ndarray
    """int `[n]`: one per instruction pair and question."""

    @property
    def gap(self) -> ndarray:
        """Weights of the mean of pos minus the mean of neg."""
        return contrast(self.labels)

    def towards_pos(self, weights: ndarray) -> ndarray:
        """Return weights signed so that the mean of pos is beyond the mean of neg."""
        if self.gap @ self.rows.gram @ weights >= 0:
            return weights
        return -weights

    def unit(self, weights: ndarray) -> ndarray:
        """Return weights of unit norm, signed towards pos."""
        norm = np.sqrt(max(weights @ self.rows.gram @ weights, 0.0))
        if norm:
            weights = weights / norm
        return self.towards_pos(weights)


def contrast(labels: ndarray, among: ndarray | bool = True) -> ndarray:
    """Return weights `[n]` of the mean of pos minus that of neg, among some rows (bool `[n]`)."""
    pos, neg = labels & among, ~labels & among
    return np.asarray(pos / pos.sum() - neg / neg.sum())


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """A direction as weights of rows."""

    weights: ndarray
    """float64 `[n]`, adding up to zero."""
    intercept: float | None = None
    """Of the probe, for rows centred as the Gram matrix is."""
    facts: dict[str, float | int | bool] = field(default_factory=dict)
    """What the fit found: shrinkage, steps, convergence."""


def independent_components(sets: Sequence[Rows]) -> list[tuple[ndarray, bool]]:
    """Return each set's components `[n, k]` of unit variance, and whether the iteration settled.

    Of at most 10 principal components, the leading eigenvectors of the Gram matrix.
    """
    found = [leading(each.gram, min(ICA_COMPONENTS, each.n - 1)) for each in sets]
    counts = np.array([each.n for each in sets])
    most = counts.max()
    principal = [np.pad(vectors, ((0, most - len(vectors)), (0, 0))) for _, vectors in found]
    sources, settled = sources_of(principal, [values for values, _ in found], counts)
    each = zip(sources, counts, settled, strict=True)
    return [(source[:n], bool(ok)) for source, n, ok in each]


def sources_of(
    principal: Sequence[ndarray],
    values: Sequence[ndarray],
    counts: ndarray,
    dtype: np.dtype[Any] | type = np.float64,
) -> tuple[list[ndarray], ndarray]:
    """Return the same of m sets of principal components, bool `[m]` for what settled.

    Components are `[n, any]` of unit norm, ascending by `values`; rows beyond a set's own `counts`
    are 0. Those without variance of their own are left out. The iteration is in `dtype`.
    """
    white = []
    for vectors, variance, n in zip(principal, values, counts, strict=True):
        k = max(1, int((variance > 1e-10 * variance[-1]).sum()))
        mine = vectors[:, -k:] * np.sqrt(n)
        # LAPACK is free to flip an eigenvector; the seeded start must not mean another one then.
        largest = np.abs(mine).argmax(axis=0)
        white.append(mine * np.sign(mine[largest, range(k)]))
    sources, settled = [np.empty(0)] * len(white), np.zeros(len(white), bool)
    for k in {each.shape[1] for each in white}:
        mine = [at for at, each in enumerate(white) if each.shape[1] == k]
        start = np.random.default_rng(0).standard_normal((k, k))
        stack = np.stack([white[at].T for at in mine]).astype(dtype)
        unmixing, settled[mine] = fast_ica(stack, start.astype(dtype), counts[mine])
        for at, matrix in zip(mine, unmixing, strict=True):
            sources[at] = white[at] @ matrix.T.astype(np.float64)
    return sources, settled


def fast_ica(white: ndarray, start: ndarray, counts: ndarray) -> tuple[ndarray, ndarray]:
    """Return the unmixing matrices `[m, k, k]` of white data `[m, k, n]`, and which settled, `[m]`.

    Symmetric FastICA with tanh from a start `[k, k]` (Hyvarinen & Oja 2000, Neural Networks 13),
    steps and tolerance as scikit-learn's, which it equals; written out here since its checks cost
    more than its arithmetic at this size. A set has `counts` rows; what is 0 beyond adds nothing.
    """
    unmixing = np.repeat(_decorrelated(start[None]), len(white), axis=0)
    settled, live = np.zeros(len(white), bool), np.arange(len(white))
    n = counts.astype(white.dtype)[:, None, None]
    for _ in range(ICA_STEPS):
        before = unmixing[live]
        squashed = np.tanh(before @ white)
        slope = 1 - np.einsum("mij,mij->mi", squashed, squashed)[:, :, None] / n
        step = squashed @ np.swapaxes(white, 1, 2) / n - slope * before
        unmixing[live] = _decorrelated(step)
        turned = np.einsum("mij,mij->mi", unmixing[live], before)
        done = np.abs(np.abs(turned) - 1).max(axis=1) < ICA_TOLERANCE
        settled[live] = done
        if done.any():
            live, white, n = live[~done], white[~done], n[~done]
        if not len(live):
            break
    return unmixing, settled


def _decorrelated(matrices: ndarray) -> ndarray:
    """Return (M M')^(-1/2) M of each of a stack."""
    values, vectors = np.linalg.eigh(matrices @ np.swapaxes(matrices, 1, 2))
    tiny = np.finfo(matrices.dtype).tiny
    scaled = vectors / np.sqrt(np.maximum(values, tiny))[:, None]
    return np.asarray(scaled @ (np.swapaxes(vectors, 1, 2) @ matrices))
