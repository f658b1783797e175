"""Large symmetric problems by a few products with their matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import ndarray

DIRECT = 400
"""Size up to which all eigenvalues cost less than a search for some of them."""
SPARE = 10
"""Vectors searched for beyond those wanted: the gap to the first one left out sets the speed."""
GROWTH = 12
"""Times a search adds directions before it starts anew from the best it has."""
RESTARTS = 30
BLOCK = 256
"""Rows multiplied at a time, while they are in the processor's cache."""
SMALL = 10**6
"""Multiplications of a product up to which OpenBLAS takes rows from where they are, in half the
time where columns are few; it copies them first for a larger one."""
FEWEST = 20
"""Rows of such a product, at least: the fewer, the more often what comes of them is added up."""
Apply = Callable[[ndarray], ndarray]
ApplyTo = Callable[[ndarray, ndarray], ndarray]
"""A product of its own for each column, told which columns it is given, int `[any]`."""


def leading(matrix: ndarray, count: int) -> tuple[ndarray, ndarray]:
    """Return the `count` largest eigenvalues, ascending, and their vectors `[n, count]`."""
    from scipy.linalg import eigh

    n = len(matrix)
    values, vectors = eigh(matrix, subset_by_index=[n - count, n - 1], check_finite=False)
    return values, vectors


def leading_of_large(
    matrix: ndarray, count: int, tolerance: float = 1e-10
) -> tuple[ndarray, ndarray]:
    """Return the `count` largest eigenvalues, ascending, and their vectors `[n, count]`.

    The matrix `[n, n]` is symmetric, without eigenvalues below zero.
    """
    n = len(matrix)
    if n <= DIRECT:
        return leading(matrix, count)
    start = np.random.default_rng(0).standard_normal((n, count + SPARE)).T[None]
    basis = _orthonormal(start)

    def apply(blocks: ndarray) -> ndarray:
        return thin_product(matrix, np.ascontiguousarray(blocks[0].T)).T[None]

    values, vectors = leading_of_many(apply, basis, apply(basis), count, tolerance)
    return values[0], vectors[0].T


def leading_of_many(
    apply: Apply, start: ndarray, images: ndarray, count: int, tolerance: float
) -> tuple[ndarray, ndarray]:
    """Return the `count` largest eigenvalues of each of m matrices, and their vectors.

    `[m, count]`, ascending, and `[m, count, n]`. `apply` is the product of each with a block of its
    own, `[m, any, n]`; `start`, orthonormal `[m, more than count, n]`, has the precision of all;
    `images` is its product. Block Davidson: the basis grows by the residuals of the vectors wanted
    (Saad 2011, Numerical Methods for Large Eigenvalue Problems, section 8.4), until those are below
    the tolerance times the smallest eigenvalue wanted, or rounding allows no less.
    """
    floor = 500 * float(np.finfo(start.dtype).eps)
    if start.dtype == np.float32:
        floor = 32 * float(np.finfo(np.float32).eps)
    m, width, n = start.shape
    room = np.empty((2, m, width + GROWTH * count, n), start.dtype)
    room[:, :, :width] = start, images
    for _ in range(RESTARTS):
        for _ in range(GROWTH):
            basis, images = room[:, :, :width]
            values, inner = np.linalg.eigh(basis @ _transposed(images))
            found, wanted = values[:, -count:], _transposed(inner[:, :, -count:])
            vectors = wanted @ basis
            residual = wanted @ images - vectors * found[:, :, None]
            norms = np.linalg.norm(residual, axis=2)
            enough = np.maximum(tolerance * found[:, :1], floor * found[:, -1:])
            far = int((norms > enough).sum(axis=1).max())
            if not far:
                return found, vectors
            # As many of each as are far in the worst.
            farthest = np.argsort(norms, axis=1)[:, -far:, None]
            residual = np.take_along_axis(residual, farthest, axis=1)
            # Twice: where nothing new is left, the first pass leaves rounding, not orthogonal.
            for _ in range(2):
                residual = residual - residual @ _transposed(basis) @ basis
                residual = _orthonormal(residual)
            room[0, :, width : width + far] = residual
            room[1, :, width : width + far] = apply(residual)
            width += far
        basis, images = room[:, :, :width]
        inner = np.linalg.eigh(basis @ _transposed(images))[1]
        best = _transposed(inner[:, :, -start.shape[1] :])
        width = start.shape[1]
        room[:, :, :width] = best @ basis, best @ images
    return found, vectors


def _transposed(stack: ndarray) -> ndarray:
    return np.swapaxes(stack, 1, 2)


def _orthonormal(stack: ndarray) -> ndarray:
    """Return orthonormal rows that span those of each of a stack."""
    return np.ascontiguousarray(_transposed(np.linalg.qr(_transposed(stack))[0]))


def thin_product(matrix: ndarray, columns: ndarray) -> ndarray:
    """Return the product of `[n, dim]` with few columns, `[dim, k]`."""
    block = rows_at_once(columns)
    starts = range(0, len(matrix), block)
    return np.concatenate([matrix[start : start + block] @ columns for start in starts])


def rows_at_once(columns: ndarray) -> int:
    """Return of how many rows, `[any, dim]`, a product with columns `[dim, k]` takes least time."""
    rows = SMALL // columns.size
    return rows if rows >= FEWEST else BLOCK


def conjugate_gradients(
    apply: ApplyTo, right: ndarray, tolerance: ndarray | float, limit: int = 200
) -> tuple[ndarray, int]:
    """Solve `apply(x, columns) = right` for each column of `[n, k]`; return x and the steps taken.

    `apply` is symmetric and positive definite. A column is done when the norm of its residual is
    below its tolerance (`[k]`) times the first one's.
    """
    tiny = np.finfo(right.dtype).tiny
    found, live = np.zeros_like(right), np.arange(right.shape[1])
    residual, along = right, right
    size = np.einsum("ij,ij->j", right, right)
    enough = np.asarray(tolerance) ** 2 * size
    steps = 0
    while True:
        going = size > enough[live]
        if steps == limit or not going.any():
            return found, steps
        if not going.all():
            live, size = live[going], size[going]
            # Not by an index, which would turn the order in memory.
            residual, along = (np.compress(going, each, axis=1) for each in (residual, along))
        steps += 1
        image = apply(along, live)
        length = size / np.maximum(np.einsum("ij,ij->j", along, image), tiny)
        found[:, live] += length * along
        residual = residual - length * image
        before, size = size, np.einsum("ij,ij->j", residual, residual)
        along = residual + size / np.maximum(before, tiny) * along
