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
    start = np.random.default_rng(0).standard_normal((1, n, count + SPARE))
    values, vectors = leading_of_many(lambda block: matrix @ block, start, count, tolerance)
    return values[0], vectors[0]


def leading_of_many(
    apply: Apply, start: ndarray, count: int, tolerance: float
) -> tuple[ndarray, ndarray]:
    """Return the `count` largest eigenvalues of each of m matrices, and their vectors.

    `[m, count]`, ascending, and `[m, n, count]`. `apply` is the product of each with a block of its
    own, `[m, n, any]`; `start`, `[m, n, more than count]`, has the precision of all. Block
    Davidson: the basis grows by the residuals of the vectors wanted (Saad 2011, Numerical Methods
    for Large Eigenvalue Problems, section 8.4), until those are below the tolerance times the
    smallest eigenvalue wanted, or rounding allows no less.
    """
    floor = 500 * float(np.finfo(start.dtype).eps)
    if start.dtype == np.float32:
        floor = 32 * float(np.finfo(np.float32).eps)
    basis = np.linalg.qr(start)[0]
    images = apply(basis)
    for _ in range(RESTARTS):
        for _ in range(GROWTH):
            values, inner = np.linalg.eigh(_transposed(basis) @ images)
            found, wanted = values[:, -count:], inner[:, :, -count:]
            vectors = basis @ wanted
            residual = images @ wanted - vectors * found[:, None]
            far = np.linalg.norm(residual, axis=1).max(axis=1)
            if (far <= np.maximum(tolerance * found[:, 0], floor * found[:, -1])).all():
                return found, vectors
            # Twice: where nothing new is left, the first pass leaves rounding, not orthogonal.
            for _ in range(2):
                residual = residual - basis @ (_transposed(basis) @ residual)
                residual = np.linalg.qr(residual)[0]
            basis = np.concatenate([basis, residual], axis=2)
            images = np.concatenate([images, apply(residual)], axis=2)
        best = np.linalg.eigh(_transposed(basis) @ images)[1][:, :, -start.shape[2] :]
        basis, images = basis @ best, images @ best
    return found, vectors


def _transposed(stack: ndarray) -> ndarray:
    return np.swapaxes(stack, 1, 2)


def conjugate_gradients(
    apply: ApplyTo,
    precondition: ApplyTo,
    right: ndarray,
    tolerance: ndarray | float,
    limit: int = 200,
) -> tuple[ndarray, int]:
    """Solve `apply(x, columns) = right` for each column of `[n, k]`; return x and the steps taken.

    `apply` is symmetric and positive definite, `precondition` near its inverse. A column is done
    when its residual, measured by the latter, is below its tolerance (`[k]`) times the first one's.
    """
    tiny = np.finfo(right.dtype).tiny
    found, live = np.zeros_like(right), np.arange(right.shape[1])
    residual = right
    towards = precondition(residual, live)
    along, size = towards, np.einsum("ij,ij->j", residual, towards)
    enough = np.asarray(tolerance) ** 2 * size
    steps = 0
    while True:
        going = size > enough[live]
        if steps == limit or not going.any():
            return found, steps
        if not going.all():
            live, size = live[going], size[going]
            residual, along = residual[:, going], along[:, going]
        steps += 1
        image = apply(along, live)
        length = size / np.maximum(np.einsum("ij,ij->j", along, image), tiny)
        found[:, live] += length * along
        residual = residual - length * image
        towards = precondition(residual, live)
        before, size = size, np.einsum("ij,ij->j", residual, towards)
        along = towards + size / np.maximum(before, tiny) * along
