"""Independent components of rows, from their Gram matrix."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

COMPONENTS = 10
STEPS = 200
TOLERANCE = 1e-4


def independent_components(gram: ndarray) -> tuple[ndarray, bool]:
    """Return components `[n, k]` of unit variance, and whether the iteration settled.

    Of at most 10 principal components, the leading eigenvectors of the Gram matrix `[n, n]`.
    """
    values, vectors = leading(gram, min(COMPONENTS, len(gram) - 1))
    k = max(1, int((values > 1e-10 * values[-1]).sum()))
    white = vectors[:, -k:] * np.sqrt(len(gram))
    # LAPACK is free to flip an eigenvector; the seeded start must not mean another one then.
    white *= np.sign(white[np.abs(white).argmax(axis=0), range(k)])
    return fast_ica(white, np.random.default_rng(0).standard_normal((k, k)))


def leading(matrix: ndarray, count: int) -> tuple[ndarray, ndarray]:
    """Return the `count` largest eigenvalues, ascending, and their vectors `[n, count]`."""
    from scipy.linalg import eigh

    n = len(matrix)
    values, vectors = eigh(matrix, subset_by_index=[n - count, n - 1], check_finite=False)
    return values, vectors


def fast_ica(white: ndarray, start: ndarray) -> tuple[ndarray, bool]:
    """Return independent components of white data, both `[n, k]`, and whether they settled.

    Symmetric FastICA with tanh from a start `[k, k]` (Hyvarinen & Oja 2000, Neural Networks 13),
    steps and tolerance as scikit-learn's, which it equals; written out here since its checks cost
    more than its arithmetic at this size.
    """
    z, unmixing = white.T, _decorrelated(start)
    settled = False
    for _ in range(STEPS):
        squashed = np.tanh(unmixing @ z)
        slope = 1 - np.einsum("ij,ij->i", squashed, squashed) / len(white)
        new = _decorrelated(squashed @ white / len(white) - slope[:, None] * unmixing)
        overlap = np.einsum("ij,ij->i", new, unmixing)
        unmixing = new
        settled = bool(np.abs(np.abs(overlap) - 1).max() < TOLERANCE)
        if settled:
            break
    return white @ unmixing.T, settled


def _decorrelated(matrix: ndarray) -> ndarray:
    """Return (M M')^(-1/2) M."""
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    scaled = vectors / np.sqrt(np.maximum(values, 1e-300))
    return np.asarray(scaled @ (vectors.T @ matrix))
