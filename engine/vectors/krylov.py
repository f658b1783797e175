"""Large symmetric problems by a few products with their matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import ndarray

DIRECT = 400
"""Size up to which all eigenvalues cost less than a search for some of them."""
SPARE = 10
"""Vectors searched for beyond those wanted: the gap to the first one left out sets the speed."""
DEPTH = 10
"""Products between restarts."""
RESTARTS = 30
Apply = Callable[[ndarray], ndarray]


def leading(matrix: ndarray, count: int) -> tuple[ndarray, ndarray]:
    """Return the `count` largest eigenvalues, ascending, and their vectors `[n, count]`."""
    from scipy.linalg import eigh

    n = len(matrix)
    values, vectors = eigh(matrix, subset_by_index=[n - count, n - 1], check_finite=False)
    return values, vectors


def leading_of_large(
    matrix: ndarray, count: int, tolerance: float = 1e-10, start: ndarray | None = None
) -> tuple[ndarray, ndarray]:
    """Return the `count` largest eigenvalues, ascending, and their vectors `[n, count]`.

    The matrix `[n, n]` is symmetric, without eigenvalues below zero. Block Lanczos with full
    orthogonalisation (Golub & Van Loan 2013, section 10.3.6) for a large one, until the residuals
    are below the tolerance times the smallest eigenvalue wanted, or rounding allows no less.
    `start`, `[n, any]`, may hold vectors near those wanted; a seeded start is used without it.
    """
    n = len(matrix)
    if n <= DIRECT:
        return leading(matrix, count)
    block = np.random.default_rng(0).standard_normal((n, count + SPARE))
    if start is not None:
        block[:, : start.shape[1]] = start
    block = np.linalg.qr(block)[0]
    for _ in range(RESTARTS):
        basis, images = _grown(matrix, block)
        values, inner = np.linalg.eigh(basis.T @ images)
        block = basis @ inner[:, -block.shape[1] :]
        values, wanted = values[-count:], inner[:, -count:]
        residual = np.linalg.norm(images @ wanted - block[:, -count:] * values, axis=0).max()
        if residual <= max(tolerance * values[0], 1e-13 * values[-1]):
            break
    return values, block[:, -count:]


def _grown(matrix: ndarray, block: ndarray) -> tuple[ndarray, ndarray]:
    """Return an orthonormal basis of the block and DEPTH - 1 products of it, and its image."""
    n, width = block.shape
    basis, images = np.empty((n, width * DEPTH)), np.empty((n, width * DEPTH))
    for step in range(DEPTH):
        filled = step * width
        basis[:, filled : filled + width] = block
        image = matrix @ block
        images[:, filled : filled + width] = image
        held, block = basis[:, : filled + width], image
        # Twice: where nothing new is left, the first pass leaves rounding that is not orthogonal.
        for _ in range(2):
            block = np.linalg.qr(block - held @ (held.T @ block))[0]
    return basis, images


def conjugate_gradients(
    apply: Apply, precondition: Apply, right: ndarray, tolerance: ndarray | float, limit: int = 200
) -> tuple[ndarray, int]:
    """Solve `apply(x) = right` for each column of `[n, k]`; return x and the steps taken.

    `apply` is a symmetric positive definite product of its own for each column. Until every
    residual, measured by the preconditioner, is below its tolerance (`[k]`) times the first one's.
    """
    tiny = np.finfo(right.dtype).tiny
    found, residual = np.zeros_like(right), right
    towards = precondition(residual)
    along, size = towards, np.einsum("ij,ij->j", residual, towards)
    enough = np.asarray(tolerance) ** 2 * size
    steps = 0
    while steps < limit and not (size <= enough).all():
        steps += 1
        image = apply(along)
        length = size / np.maximum(np.einsum("ij,ij->j", along, image), tiny)
        found, residual = found + length * along, residual - length * image
        towards = precondition(residual)
        before, size = size, np.einsum("ij,ij->j", residual, towards)
        along = towards + size / np.maximum(before, tiny) * along
    return found, steps
