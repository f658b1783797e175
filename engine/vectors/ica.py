"""FastICA on stacks of sets of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy import ndarray

COMPONENTS = 10
STEPS = 200
TOLERANCE = 1e-4


def sources_of(
    principal: Sequence[ndarray],
    values: Sequence[ndarray],
    counts: ndarray,
    dtype: np.dtype[Any] | type = np.float64,
) -> tuple[list[ndarray], ndarray]:
    """Return the independent components `[n, k]` of m sets, and whether each settled, bool `[m]`.

    Sources have unit variance. Principal components are `[n, any]` of unit norm, ascending by
    `values`; rows beyond a set's own `counts` are 0. Those without variance of their own are left
    out. The iteration is in `dtype`.
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
    for _ in range(STEPS):
        before = unmixing[live]
        squashed = np.tanh(before @ white)
        slope = 1 - np.einsum("mij,mij->mi", squashed, squashed)[:, :, None] / n
        step = squashed @ np.swapaxes(white, 1, 2) / n - slope * before
        unmixing[live] = _decorrelated(step)
        turned = np.einsum("mij,mij->mi", unmixing[live], before)
        done = np.abs(np.abs(turned) - 1).max(axis=1) < TOLERANCE
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
