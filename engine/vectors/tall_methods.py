"""The methods where rows are many: the same directions as `methods.py` finds, in the width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from .krylov import leading
from .logistic import C, around_probe, fit_logistic
from .methods import shrinkage_of
from .rows import LayerRows
from .tall import FIT_PRECISION, Folds, Scatters, TallRows, TallSides

PROBE_PRECISION = 1e-5
"""Of probes that are only measured, at best: their search starts from labels that the measured
fold has a part in, which must not show."""
SHUFFLED_PRECISION = 1e-3
"""Of probes of shuffled labels, of which the mean of five is shown."""
REFINEMENTS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """k directions."""

    vectors: ndarray
    """float64 `[hidden_dim, k]`."""
    facts: Sequence[dict[str, Any]]
    intercepts: Sequence[float | None]
    """Of probes, for rows centred on the mean of all."""


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """What is known before a search."""

    sides: TallSides
    precision: float
    """Relative, of what is found by iteration."""
    near: ndarray | None = None
    """The probe of all rows, which those of some resemble: float64 `[hidden_dim + 1]`."""


def _plain(vectors: ndarray, facts: Sequence[dict[str, Any]]) -> Directions:
    return Directions(vectors, facts, [None] * len(facts))


def _mean_diff(search: Search) -> Directions:
    return _plain(search.sides.gaps, [{} for _ in search.sides.of])


def _ica(search: Search) -> Directions:
    """Return the column of the mixing matrix whose source separates the sides best."""
    sides = search.sides
    sources, mixing, settled = sides.sets.sources
    columns, facts = [], []
    for of, pos, neg in zip(sides.of, sides.pos.T, sides.neg.T, strict=True):
        ours, theirs = sources[of][pos], sources[of][neg]
        spread = np.sqrt(ours.var(axis=0) + theirs.var(axis=0)) + 1e-12
        chosen = int(np.abs((ours.mean(axis=0) - theirs.mean(axis=0)) / spread).argmax())
        columns.append(mixing[of][:, chosen])
        k, ok = sources[of].shape[1], bool(settled[of])
        facts.append({"components": k, "component": chosen, "converged": ok})
    return _plain(sides.towards_pos(np.stack(columns, axis=1)), facts)


def _pca(search: Search) -> Directions:
    sides = search.sides
    vectors, facts = [], []
    for column, gap in enumerate(sides.gaps.T):
        differences = np.array(list(sides.paired(column)))
        facts.append({"pairs": len(differences)})
        vectors.append(_first(differences if len(differences) else gap[None]))
    return _plain(sides.unit(np.array(vectors).T), facts)


def _first(rows: ndarray) -> ndarray:
    """Return the first principal direction, uncentred, of `[k, hidden_dim]`."""
    if len(rows) > rows.shape[1]:
        return np.asarray(leading(rows.T @ rows, 1)[1][:, 0])
    return np.asarray(leading(rows @ rows.T, 1)[1][:, 0] @ rows)


def _gradient(search: Search) -> Directions:
    """Return S^-1 d, as `methods.py` has it, without Woodbury.

    With T the scatter about the common mean, the scatter within the sides is T - c d d', whose term
    in d alone changes the length of S^-1 d and not its direction. So T stands in for it.
    """
    sides = search.sides
    shrinkages, ridges = _shrinkages(sides)
    found = sides.gaps.copy()
    usable = np.flatnonzero((shrinkages > 0) & (shrinkages < 1) & (ridges > 0))
    if len(usable):
        add = ridges[usable] / (1 - shrinkages[usable])
        found[:, usable] = solve_scatters(search, usable, add)
    return _plain(sides.unit(found), [{"shrinkage": float(each)} for each in shrinkages])


def _shrinkages(sides: TallSides) -> tuple[ndarray, ndarray]:
    """Return Ledoit and Wolf's shrinkage within sides, and it times the mean variance, `[k]`."""
    sets, of, gaps = sides.sets, sides.of, sides.gaps
    rows, dim, counts = sets.rows, len(gaps), sets.counts[of]
    between = sides.n_pos * sides.n_neg / counts
    length = np.einsum("ij,ij->j", gaps, gaps)
    along = np.einsum("ij,ji->j", gaps, sets.times(gaps.T, of))
    square = sets.squares[of] - 2 * between * along + (between * length) ** 2
    trace = np.maximum(sets.traces[of] - between * length, 0)
    fourth = np.zeros(len(of))
    for side, mean in zip((sides.pos, sides.neg), sides.means, strict=True):
        apart = rows.lengths[:, None] - 2 * (rows.centred @ mean) + (mean**2).sum(axis=0)
        fourth += np.square(apart, where=side, out=np.zeros_like(apart)).sum(axis=0) / counts
    shrinkages = shrinkage_of(counts, dim, trace, square, fourth)
    return shrinkages, shrinkages * trace / dim


def solve_scatters(search: Search, columns: ndarray, add: ndarray) -> ndarray:
    """Return (S + add I)^-1 d, `[hidden_dim, any]`, of some fits, int `[any]`, but for its length.

    d is the fit's gap and S its scatter. S / add + I is what is left of a probe's Hessian, of
    curvature 1 / add, when the intercept is eliminated. Conjugate gradients in float32 on residuals
    in float64 from the rows themselves, so that the precision is that of the latter.
    """
    sides = search.sides
    sets, of, right = sides.sets, sides.of[columns], sides.gaps[:, columns]
    rows, kept, means = sets.rows, sides.kept[:, columns], sets.means[:, of]

    def exact(vectors: ndarray) -> ndarray:
        product = rows.centred.T @ (kept * (rows.centred @ vectors))
        shift = sets.counts[of] * np.einsum("ij,ij->j", means, vectors)
        return np.asarray((product - means * shift) / add + vectors)

    usual = (sets.counts[of] / len(kept) / add).mean()
    like = rows.around(float(usual), many=len(columns) > 1)
    bend = kept / add
    found, residual = np.zeros_like(right), right
    for _ in range(REFINEMENTS):
        left = np.linalg.norm(residual, axis=0)
        if (left <= search.precision * np.linalg.norm(right, axis=0)).all():
            break
        inner = like.inwards(np.pad(residual, ((0, 1), (0, 0))))
        found = found + like.solve(bend, inner, max(1e-5, search.precision / 3))[0][:-1]
        residual = right - exact(found)
    return found


def _probe(search: Search) -> Directions:
    """Return probes: those with the labels of the first fit start from that of all rows."""
    sides, near = search.sides, search.near
    design = sides.sets.rows.design
    signs = np.where(sides.kept, np.where(sides.labels, 1.0, -1.0), 0.0)
    real = (sides.labels == sides.labels[:, :1]).all(axis=0)
    weights = np.zeros((design.dim + 1, len(real)))
    facts: list[dict[str, Any]] = [{} for _ in real]
    # Apart from fits of other labels, whose Hessians are not like theirs.
    for mine in filter(len, (np.flatnonzero(real), np.flatnonzero(~real))):
        many, precision = len(mine) > 1, SHUFFLED_PRECISION
        if real[mine[0]]:
            precision = min(search.precision, PROBE_PRECISION)
        if real[mine[0]] and near is not None:
            weights[:, mine] = near[:, None]
            like = around_probe(design, near, many)
        else:
            like = sides.sets.rows.around(C / 4, many)
        found = fit_logistic(design, signs[:, mine], like, weights[:, mine], precision)
        weights[:, mine] = found.weights
        for at, n, ok in zip(mine, found.steps, found.converged, strict=True):
            facts[at] = {"C": C, "newton_steps": int(n), "converged": bool(ok)}
    return Directions(weights[:-1], facts, [float(each) for each in weights[-1]])


TALL_METHODS: dict[str, Callable[[Search], Directions]] = {
    "mean_diff": _mean_diff,
    "probe": _probe,
    "ica": _ica,
    "gradient": _gradient,
    "pca": _pca,
}


def fit_tall(
    at: LayerRows, labels: ndarray, cells: ndarray, methods: Sequence[str]
) -> dict[str, Directions]:
    """Return each method's direction, fitted to all rows, by labels bool `[n]`."""
    everything: list[Folds] = [()]
    sets = Scatters(TallRows(at), everything)
    sides = TallSides(sets, np.zeros(1, int), labels[:, None], cells)
    search = Search(sides, FIT_PRECISION)
    return {name: TALL_METHODS[name](search) for name in methods}
