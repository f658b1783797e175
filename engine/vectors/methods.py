"""The methods that find a trait's direction at one layer."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from ..errors import UsageError
from .few import Sides, Sums, probes, solve
from .krylov import leading
from .rows import contrast


@dataclass(frozen=True, slots=True)
class Method:
    """A method, with the words that metadata and docs carry."""

    objective: str
    units: str
    source: str
    fit_some: Callable[[Sides], Sums]

    def fit(self, sides: Sides) -> Sums:
        """Return the directions of a stack of fits, computed by as many as fit into the cache."""
        found = [self.fit_some(part) for part in sides.parts()]
        return Sums(
            np.concatenate([each.weights for each in found]),
            [facts for each in found for facts in each.facts],
            [intercept for each in found for intercept in each.intercepts],
        )


def ledoit_wolf(gram: ndarray, counts: ndarray, dim: int) -> ndarray:
    """Return the shrinkage of covariances towards their mean variance, `[k]`.

    From the Gram matrices `[k, p, p]` of `counts` centred rows each (Ledoit & Wolf 2004, J.
    Multivariate Analysis 88, 365-411, lemma 3.2 and following).
    """
    diagonal = np.einsum("kii->ki", gram)
    square = np.einsum("kij,kij->k", gram, gram)
    fourth = (diagonal**2).sum(axis=1) / counts
    return shrinkage_of(counts, dim, diagonal.sum(axis=1), square, fourth)


def shrinkage_of(n: ndarray, dim: int, trace: ndarray, square: ndarray, fourth: ndarray) -> ndarray:
    """Return the same from sums, all `[k]`.

    Of X'X of n centred rows the trace and the sum of squares; the mean fourth power of their norms.
    """
    second = square / n**2
    spread = second - (trace / n) ** 2 / dim
    noise = (fourth - second) / n
    found = np.ones(len(spread))
    np.divide(np.minimum(noise, spread), spread, out=found, where=spread > 0)
    return found


def _plain(weights: ndarray) -> Sums:
    return Sums(weights, [{} for _ in weights], [None] * len(weights))


def _mean_diff(sides: Sides) -> Sums:
    return _plain(sides.gap)


def _ica(sides: Sides) -> Sums:
    """Return the activation's change per standard deviation of the source that separates best.

    It is a column of the mixing matrix, X's / n, signed by where the sides are along it. The
    source's own gap can have the other sign: columns of the mixing matrix are not orthogonal where
    a few dimensions dominate.
    """
    found, of = sides.rows.sources, sides.of
    sources, n = found.values[of], sides.rows.counts[of]
    variance = 0
    for side in sides.sides:
        share = (side / side.sum(axis=1, keepdims=True))[:, None]
        apart = np.where(side[:, :, None], sources - share @ sources, 0)
        variance = variance + (share @ apart**2)[:, 0]
    gaps = np.abs((sides.gap[:, None] @ sources)[:, 0])
    chosen = (gaps / (np.sqrt(variance) + 1e-12)).argmax(axis=1)
    weights = np.take_along_axis(sources, chosen[:, None, None], axis=2)[:, :, 0]
    facts = [
        {"components": int(k), "component": int(one), "converged": bool(ok)}
        for k, one, ok in zip(found.counts[of], chosen, found.settled[of], strict=True)
    ]
    return Sums(sides.towards_pos(weights / n[:, None]), facts, [None] * len(of))


def _gradient(sides: Sides) -> Sums:
    """Return the stationary point S^-1 d: d the gap of the means, S the shrunk covariance.

    With R the residuals of the rows from their side's mean, m the residuals' mean variance and l
    the shrinkage, S = (1 - l) R'R / n + l m I. By Woodbury S^-1 d is
    d - R' (rho I + R R')^-1 R d, rho = n l m / (1 - l), up to a factor that unit norm drops.
    """
    member = np.stack(sides.sides, axis=2).astype(float)
    share = member / member.sum(axis=1, keepdims=True)
    gram, weights, shared = sides.gram, sides.gap, np.swapaxes(share, 1, 2)
    half = gram - member @ (shared @ gram)
    within = half - (half @ share) @ np.swapaxes(member, 1, 2)
    dim = sides.rows.dim
    shrinkage = ledoit_wolf(within, sides.rows.counts[sides.of], dim)
    ridge = shrinkage * np.einsum("kii->k", within) / dim
    usable = np.flatnonzero((shrinkage > 0) & (shrinkage < 1) & (ridge > 0))
    if len(usable):
        matrix, right = within[usable], half[usable] @ weights[usable][:, :, None]
        diagonal = np.arange(matrix.shape[1])
        matrix[:, diagonal, diagonal] += (ridge[usable] / (1 - shrinkage[usable]))[:, None]
        inner = solve(matrix, right)
        inner -= member[usable] @ (shared[usable] @ inner)
        weights = weights.copy()
        weights[usable] -= inner[:, :, 0]
    facts = [{"shrinkage": float(each)} for each in shrinkage]
    return Sums(sides.unit(weights), facts, [None] * len(weights))


def _pca(sides: Sides) -> Sums:
    """Count rows once per cell; where no cell has both sides, take the gap of the means."""
    weights, facts = [], []
    for of, pos, neg, gap in zip(sides.of, *sides.sides, sides.gap, strict=True):
        cells = sides.cells[of]
        paired = np.intersect1d(cells[pos], cells[neg])
        pairs = gap[None]
        if len(paired):
            pairs = contrast(pos, (cells == paired[:, None]) & (pos | neg))
        _, vectors = leading(pairs @ sides.rows.gram[of] @ pairs.T, 1)
        weights.append(vectors[:, 0] @ pairs)
        facts.append({"pairs": len(paired)})
    return Sums(sides.unit(np.array(weights)), facts, [None] * len(weights))


METHODS: dict[str, Method] = {
    "mean_diff": Method(
        objective="mean of pos minus mean of neg",
        units="activation units: its norm is the distance of the two means",
        source="Marks & Tegmark 2023, arXiv:2310.06824",
        fit_some=_mean_diff,
    ),
    "probe": Method(
        objective="L2-regularised logistic regression: minimise |w|^2/2 + C sum "
        "log(1 + exp(-s (w.x + bias))), C = 1",
        units="log-odds per activation unit; bias in log-odds",
        source="Alain & Bengio 2016, arXiv:1610.01644; the optimum scikit-learn's "
        "LogisticRegression(C=1) tends to",
        fit_some=probes,
    ),
    "ica": Method(
        objective="of up to 10 independent components (FastICA, seeded), the one whose source "
        "separates best, signed towards pos",
        units="activation units per standard deviation of the source",
        source="Hyvarinen & Oja 2000, Neural Networks 13",
        fit_some=_ica,
    ),
    "gradient": Method(
        objective="maximise (w.d)^2 / w'Sw, d the gap of the means, S the within-side covariance, "
        "Ledoit-Wolf shrunk",
        units="unit norm",
        source="Fisher 1936, Annals of Eugenics 7; Ledoit & Wolf 2004, J. Multivariate Analysis 88",
        fit_some=_gradient,
    ),
    "pca": Method(
        objective="first principal component, uncentred, of pos minus neg, paired by instruction "
        "pair and question",
        units="unit norm",
        source="Zou et al. 2023, arXiv:2310.01405",
        fit_some=_pca,
    ),
}
DEFAULT_METHODS = ("mean_diff", "probe", "ica", "gradient")


def check_methods(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names, each once.

    Raise UsageError, with the nearest known, for an unknown one.
    """
    known = f"choose from {', '.join(METHODS)}"
    if not names:
        raise UsageError(f"`methods` names none; {known}")
    for name in names:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.4)
            hint = "".join(f"did you mean {each}? " for each in near)
            raise UsageError(f"`methods` {name!r} is unknown; {hint}{known}")
    return tuple(dict.fromkeys(names))
