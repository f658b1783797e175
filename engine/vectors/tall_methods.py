"""The methods where rows are many: the same directions as `methods.py` finds, in the width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from .krylov import Apply, conjugate_gradients, leading
from .logistic import fit_logistic, solver
from .methods import PROBE_C, shrinkage_of
from .rows import LayerRows
from .tall import Folds, Subset, TallRows, TallSides

FIT_PRECISION = 1e-10
"""Of stored vectors, relative."""
FOLD_PRECISION = 1e-4
"""Of fits that are only measured: far below what the AUROC's interval can tell."""
PROBE_PRECISION = 1e-5
"""Of probes that are only measured, at best: their search starts from labels that the measured
fold has a part in, which must not show."""
SHUFFLED_PRECISION = 1e-3
"""Of probes of shuffled labels, of which the mean of five is shown."""
REFINEMENTS = 10
Wanted = tuple[Folds, ndarray]
"""A fit: the folds it leaves out, and labels bool `[n]`."""
Near = tuple[ndarray, Apply]
"""A probe, float64 `[hidden_dim + 1]`, and the inverse of its Hessian."""


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """k directions."""

    vectors: ndarray
    """float64 `[hidden_dim, k]`."""
    facts: Sequence[dict[str, Any]]
    intercepts: Sequence[float | None]
    """Of probes, for rows centred on the mean of all."""


def _plain(vectors: ndarray, facts: Sequence[dict[str, Any]]) -> Directions:
    return Directions(vectors, facts, [None] * len(facts))


def _mean_diff(sides: TallSides) -> Directions:
    return _plain(sides.gaps, [{} for _ in sides.n_pos])


def _shrinkages(sides: TallSides) -> tuple[ndarray, ndarray]:
    """Return Ledoit and Wolf's shrinkage within sides, and it times the mean variance, `[k]`."""
    subset, gaps = sides.subset, sides.gaps
    scatter, kept, dim = subset.scatter, subset.kept, len(gaps)
    between = sides.n_pos * sides.n_neg / subset.n
    length = np.einsum("ij,ij->j", gaps, gaps)
    along = np.einsum("ij,ij->j", gaps, scatter @ gaps)
    square = np.vdot(scatter, scatter) - 2 * between * along + (between * length) ** 2
    trace = np.maximum(np.trace(scatter) - between * length, 0)
    fourth = np.zeros(len(between))
    for side, mean in zip((sides.pos, sides.neg), sides.means, strict=True):
        apart = subset.rows.lengths[:, None] - 2 * (subset.rows.centred @ mean) + (mean**2).sum(0)
        fourth += np.where(side, apart**2, 0)[kept].sum(axis=0) / subset.n
    each = zip(trace, square, fourth, strict=True)
    shrinkages = np.array([shrinkage_of(subset.n, dim, *sums) for sums in each])
    return shrinkages, shrinkages * trace / dim


def _ica(sides: TallSides) -> Directions:
    """Return the column of the mixing matrix whose source separates the sides best."""
    sources, mixing, settled = sides.subset.sources
    k = sources.shape[1]
    chosen = []
    for pos, neg in zip(sides.pos.T, sides.neg.T, strict=True):
        ours, theirs = sources[pos], sources[neg]
        spread = np.sqrt(ours.var(axis=0) + theirs.var(axis=0)) + 1e-12
        chosen.append(int(np.abs((ours.mean(axis=0) - theirs.mean(axis=0)) / spread).argmax()))
    facts = [{"components": k, "component": each, "converged": settled} for each in chosen]
    return _plain(sides.towards_pos(mixing[:, chosen]), facts)


def _pca(sides: TallSides) -> Directions:
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


ALONE: dict[str, Callable[[TallSides], Directions]] = {
    "mean_diff": _mean_diff,
    "ica": _ica,
    "pca": _pca,
}
"""Methods that look at one set of rows at a time."""


class Fits:
    """Several fits to rows of one layer: those that need passes over them share these."""

    def __init__(
        self, rows: TallRows, cells: ndarray, wanted: Sequence[Wanted], near: Near | None = None
    ) -> None:
        self.rows, self.cells, self.wanted = rows, cells, wanted
        self.near = near
        """The probe of all rows, which those of some resemble."""
        folds = [np.isin(rows.folds, without) for without, _ in wanted]
        self.kept = ~np.stack(folds, axis=1)
        self.labels = np.stack([labels for _, labels in wanted], axis=1)
        """Both bool `[n, k]`."""

    def directions(self, methods: Sequence[str]) -> dict[str, Directions]:
        """Return each method's k directions, in the order of `wanted`."""
        parts: dict[str, list[Directions]] = {name: [] for name in methods}
        places: list[int] = []
        for without in dict.fromkeys(each for each, _ in self.wanted):
            mine = [at for at, (each, _) in enumerate(self.wanted) if each == without]
            sides = TallSides(Subset(self.rows, without), self.labels[:, mine], self.cells)
            places += mine
            for name in methods:
                if name != "probe":
                    parts[name].append((ALONE | {"gradient": _shrunk})[name](sides))
        found = {}
        for name in methods:
            if name == "probe":
                found[name] = self._probes()
            else:
                found[name] = _joined(parts[name], np.argsort(places))
            if name == "gradient":
                found[name] = self._gradients(found[name])
        return found

    def _gradients(self, shrunk: Directions) -> Directions:
        """Return S^-1 d, as `methods.py` has it, without Woodbury.

        With T the scatter about the common mean, the scatter within the sides is T - c d d', whose
        term in d alone changes the length of S^-1 d and not its direction. So T stands in for it.
        """
        add = np.array([facts["add"] for facts in shrunk.facts])
        gaps, usable = shrunk.vectors, np.flatnonzero(add)
        found = gaps.copy()
        if len(usable):
            kept = self.kept[:, usable]
            found[:, usable] = solve_scatters(self.rows, kept, add[usable], gaps[:, usable])
        norms = np.linalg.norm(found, axis=0)
        found *= np.where(np.einsum("ij,ij->j", found, gaps) >= 0, 1, -1)
        facts = [{"shrinkage": each["shrinkage"]} for each in shrunk.facts]
        return _plain(found / np.where(norms > 0, norms, 1), facts)

    def _probes(self) -> Directions:
        """Return probes: those with the labels of the first fit start from that of all rows."""
        vectors = np.empty((self.rows.centred.shape[1], len(self.wanted)))
        facts: list[dict[str, Any]] = [{} for _ in self.wanted]
        intercepts: list[float | None] = [None for _ in self.wanted]
        signs = np.where(self.kept, np.where(self.labels, 1.0, -1.0), 0.0)
        near = np.array([labels is self.wanted[0][1] for _, labels in self.wanted])
        design = self.rows.design
        for chosen in (np.flatnonzero(near), np.flatnonzero(~near)):
            if not len(chosen):
                continue
            precision = min(self.rows.precision, PROBE_PRECISION)
            if not near[chosen[0]]:
                precision = SHUFFLED_PRECISION
            if self.near and near[chosen[0]]:
                start, precondition = self.near
            else:
                start, precondition = np.zeros(design.dim + 1), self.rows.flat_solver
            starts = np.repeat(start[:, None], len(chosen), axis=1)
            fitted = fit_logistic(design, signs[:, chosen], precondition, starts, precision)
            vectors[:, chosen] = fitted.weights[:-1]
            for place, at in enumerate(chosen):
                n, ok = int(fitted.steps[place]), bool(fitted.converged[place])
                facts[at] = {"C": PROBE_C, "newton_steps": n, "converged": ok}
                intercepts[at] = float(fitted.weights[-1, place])
        return Directions(vectors, facts, intercepts)


def _shrunk(sides: TallSides) -> Directions:
    """Return gaps, with the shrinkage and what it adds to the scatter (0: all or none)."""
    shrinkages, ridges = _shrinkages(sides)
    usable = (shrinkages > 0) & (shrinkages < 1) & (ridges > 0)
    add = np.where(usable, ridges / np.where(usable, 1 - shrinkages, 1), 0)
    each = zip(shrinkages, add, strict=True)
    return _plain(sides.gaps, [{"shrinkage": float(s), "add": float(a)} for s, a in each])


def _joined(parts: Sequence[Directions], order: ndarray) -> Directions:
    vectors = np.concatenate([each.vectors for each in parts], axis=1)
    facts = [facts for each in parts for facts in each.facts]
    return _plain(vectors[:, order], [facts[at] for at in order])


def solve_scatters(rows: TallRows, kept: ndarray, add: ndarray, right: ndarray) -> ndarray:
    """Return (S_k + add_k I)^-1 r_k of k sets of rows, bool `[n, k]`, and `right` `[dim, k]`.

    S_k is the scatter of the set about its mean. Conjugate gradients in float32 on residuals in
    float64, so that the precision is that of the latter.
    """
    counts = kept.sum(axis=0)
    means = rows.centred.T @ (kept / counts)
    exact = rows.centred, kept.astype(np.float64), means, counts.astype(np.float64), add
    rounded = rows.design.single, *(each.astype(np.float32) for each in exact[1:])

    def apply(along: ndarray) -> ndarray:
        x, mask, mean, count, ridge = exact if along.dtype == np.float64 else rounded
        product = x.T @ (mask * (x @ along))
        shift = count * np.einsum("ij,ij->j", mean, along)
        return np.asarray(product - mean * shift + ridge * along)

    matrix = rows.moment.copy()
    index = np.arange(len(matrix))
    matrix[index, index] += (add * len(kept) / counts).mean()
    precondition = solver(matrix)
    found, residual = np.zeros_like(right), right
    for _ in range(REFINEMENTS):
        scale = np.linalg.norm(residual, axis=0)
        if (scale <= rows.precision * np.linalg.norm(right, axis=0)).all():
            break
        scale = np.maximum(scale, 1e-300)
        single = (residual / scale).astype(np.float32)
        step, _ = conjugate_gradients(apply, precondition, single, 1e-5)
        found = found + step.astype(np.float64) * scale
        residual = right - apply(found)
    return found


def fit_tall(
    at: LayerRows, labels: ndarray, cells: ndarray, methods: Sequence[str]
) -> dict[str, Directions]:
    """Return each method's direction, fitted to all rows, by labels bool `[n]`."""
    rows = TallRows(at, np.zeros(len(labels), int), FIT_PRECISION)
    return Fits(rows, cells, [((), labels)]).directions(methods)
