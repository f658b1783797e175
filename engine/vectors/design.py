"""Rows as an iteration in their width sees them, and the coordinates that make it short."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from numpy import ndarray

from .krylov import conjugate_gradients, rows_at_once, thin_product

CHUNK = 4096
"""Rows weighted at a time."""
ROUNDING = 1e-3
"""As much of a product may be rounding in float32."""


class Design:
    """Rows `[n, dim]` with a constant column, which is not regularised."""

    def __init__(self, rows: ndarray) -> None:
        self.rows, self.dim = rows, rows.shape[1]
        self.single = np.ones((len(rows), self.dim + 1), np.float32)
        """The same in half the memory, for steps whose errors the next one mends: with the
        constant, `[n, dim + 1]`."""
        self.single[:, :-1] = rows

    def times(self, weights: ndarray) -> ndarray:
        """Return float64 `[n, k]` of `[dim + 1, k]`."""
        found = thin_product(self.rows, np.ascontiguousarray(weights[:-1]))
        return np.asarray(found + weights[-1])

    def back(self, values: ndarray) -> ndarray:
        """Return float64 `[dim + 1, k]` of `[n, k]`."""
        return np.concatenate([self.rows.T @ values, values.sum(axis=0)[None]])

    def hessian(self, curvature: ndarray) -> ndarray:
        """Return |w|^2 / 2 and a loss of curvature `[n]` derived twice, `[dim + 1, dim + 1]`.

        It is summed in the precision of the curvature.
        """
        total = np.zeros((self.dim + 1, self.dim + 1), curvature.dtype)
        for start in range(0, len(self.rows), CHUNK):
            part = slice(start, start + CHUNK)
            rows = self.single[part]
            if curvature.dtype == np.float64:
                rows = np.concatenate([self.rows[part], rows[:, -1:]], axis=1)
            rows = rows * np.sqrt(curvature[part])[:, None]
            total += rows.T @ rows
        index = np.arange(self.dim)
        total[index, index] += 1
        return total

    def flat_hessian(self, curvature: float, moment: ndarray) -> ndarray:
        """Return that of one curvature, of centred rows with a moment `[dim, dim]`."""
        total = np.zeros((self.dim + 1, self.dim + 1), moment.dtype)
        total[:-1, :-1] = curvature * moment
        index = np.arange(self.dim)
        total[index, index] += 1
        total[-1, -1] = curvature * len(self.rows)
        return total


class Around:
    """A design in the coordinates where its Hessian LL' of a curvature D0 is the identity.

    For many fits the rows are whitened: with Z = [X 1]L^-T, the Hessian of another curvature D is
    I + Z'(D - D0)Z there, and a conjugate step solves nothing by L.
    """

    def __init__(
        self, design: Design, curvature: ndarray, hessian: ndarray, many: bool = True
    ) -> None:
        """Take D0 `[n]` and its Hessian `[dim + 1, dim + 1]`, which is overwritten."""
        from scipy.linalg import cho_factor
        from scipy.linalg.blas import strsm

        factor, _ = cho_factor(hessian.T, lower=True, overwrite_a=True, check_finite=False)
        self._factor = factor.astype(np.float32, order="F", copy=False)
        self._design, self._curvature = design, curvature.astype(np.float32)[:, None]
        self._white: ndarray | None = None
        """Z, float32 `[n, dim + 1]`, where products with it are as good as those with the rows."""
        if many:
            white = strsm(1, self._factor, design.single.T, lower=1).T
            some = np.random.default_rng(0).standard_normal((design.dim + 1, 8), np.float32)
            apart = some + _pulled(white, -self._curvature, some)
            apart -= self._plain(np.zeros_like(self._curvature), some)
            if np.linalg.norm(apart) < ROUNDING * np.linalg.norm(some):
                self._white = white
        self.rounded = many and self._white is None
        """Whether rounding of the Hessian has kept many fits from that."""

    def inwards(self, gradient: ndarray) -> ndarray:
        """Return a gradient, `[dim + 1, k]`, in these coordinates: L^-1 g, in float64."""
        return np.asarray(self._solved(gradient), np.float64)

    def solve(
        self, bend: ndarray, right: ndarray, precision: ndarray | float
    ) -> tuple[ndarray, int]:
        """Return H^-1 g of Hessians of curvatures `[n, k]`, and how many conjugate steps it took.

        `right` is L^-1 g, `[dim + 1, k]`, and precision relative to its norm. Found in float32.
        """
        bend = bend.astype(np.float32)
        # Of unit size, since a gradient near the optimum is below what float32 can hold of its
        # square.
        scale = np.maximum(np.linalg.norm(right, axis=0), 1e-300)

        def apply(along: ndarray, columns: ndarray) -> ndarray:
            return self.curved(np.take(bend, columns, axis=1), along)

        unit = (right / scale).astype(np.float32, order="C")
        found, steps = conjugate_gradients(apply, unit, precision)
        return self._solved(found, transposed=True) * scale, steps

    def curved(self, bend: ndarray, along: ndarray) -> ndarray:
        """Return the product of such Hessians with float32 `[dim + 1, k]` in these coordinates."""
        if self._white is not None:
            found = along + _pulled(self._white, bend - self._curvature, along)
            own = np.einsum("ij,ij->j", found, along)
            if (own > ROUNDING * np.einsum("ij,ij->j", along, along)).all():
                return np.asarray(found)
            # Curvatures far below D0 leave little of the identity, and of that rounding is a part.
            self._white = None
        return self._plain(bend, along)

    def _plain(self, bend: ndarray, along: ndarray) -> ndarray:
        weights = self._solved(along, transposed=True)
        found = _pulled(self._design.single, bend, weights)
        found[:-1] += weights[:-1]
        return self._solved(found)

    def _solved(self, right: ndarray, transposed: bool = False) -> ndarray:
        """Return L^-1 b of `[dim + 1, k]`, or L^-T b, in float32."""
        from scipy.linalg.blas import strsm, strsv

        if right.shape[1] == 1:  # the routine for many takes ten times as long
            one = right[:, 0].astype(np.float32)
            return np.asarray(strsv(self._factor, one, lower=1, trans=transposed)[:, None])
        # As b'L^-T, since what is b in rows is b' in columns, the order of LAPACK.
        turned = right.astype(np.float32, order="C").T
        found = strsm(
            1, self._factor, turned, side=1, lower=1, trans_a=not transposed, overwrite_b=1
        )
        return np.asarray(found.T)


def _pulled(rows: ndarray, bend: ndarray, along: ndarray) -> ndarray:
    """Return X'DX v of `[n, dim]`, `[n, k]`, `[dim, k]`; rows are read once for both products."""
    total = np.zeros_like(along)
    block = rows_at_once(along)
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        total += part.T @ (bend[start : start + block] * (part @ along))
    return total


def around(
    design: Design, curvature: ndarray, many: bool, hessian: ndarray | None = None
) -> Around:
    """Return a design by its Hessian of a curvature `[n]`, for many fits or one.

    The Hessian, where it is not given, is summed in float32, and in float64 where rounding shows.
    """
    if hessian is None:
        hessian = design.hessian(curvature.astype(np.float32))
    found = None
    with suppress(np.linalg.LinAlgError):  # rounding may leave it no positive definite matrix
        found = Around(design, curvature, hessian, many)
    if found is None or found.rounded:
        found = None  # before memory is taken for the other
        found = Around(design, curvature, design.hessian(curvature), many)
    return found
