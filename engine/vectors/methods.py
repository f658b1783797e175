"""The methods that find a trait's direction at one layer."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from ..errors import UsageError
from .krylov import leading
from .rows import Direction, Sides, contrast

PROBE_C = 1.0
PROBE_TOLERANCE = 1e-6
"""Relative; rounding in the Gram matrix allows no less where one dimension is 30,000 times the
others."""
PROBE_STEPS = 50


@dataclass(frozen=True, slots=True)
class Method:
    """A method, with the words that metadata and docs carry."""

    objective: str
    units: str
    source: str
    fit: Callable[[Sides], Direction]


def ledoit_wolf(gram: ndarray, dim: int) -> float:
    """Return the shrinkage of a covariance towards its mean variance.

    From the Gram matrix `[n, n]` of centred rows (Ledoit & Wolf 2004, J. Multivariate Analysis 88,
    365-411, lemma 3.2 and following).
    """
    square, fourth = float((gram**2).sum()), float((np.diag(gram) ** 2).mean())
    return shrinkage_of(len(gram), dim, float(np.trace(gram)), square, fourth)


def shrinkage_of(n: int, dim: int, trace: float, square: float, fourth: float) -> float:
    """Return the same from sums.

    Of X'X of n centred rows the trace and the sum of squares; the mean fourth power of their norms.
    """
    second = square / n**2
    spread = second - (trace / n) ** 2 / dim
    noise = (fourth - second) / n
    if spread <= 0:
        return 1.0
    return float(min(noise, spread) / spread)


def _mean_diff(sides: Sides) -> Direction:
    return Direction(sides.gap)


class _Fit(NamedTuple):
    """A point of Newton's method, or a step from one."""

    weights: ndarray
    latent: ndarray
    """The Gram matrix times the weights."""
    intercept: float

    def plus(self, step: _Fit, size: float) -> _Fit:
        return _Fit(
            self.weights + size * step.weights,
            self.latent + size * step.latent,
            self.intercept + size * step.intercept,
        )

    def loss(self, sign: ndarray) -> float:
        misfit = np.logaddexp(0, -sign * (self.latent + self.intercept)).sum()
        return float(self.weights @ self.latent / 2 + PROBE_C * misfit)


def _probe(sides: Sides) -> Direction:
    """Minimise a'Ka/2 + C sum log(1 + exp(-s (Ka + b))), s = +1 for pos and -1 for neg.

    Newton's method with step halving. At the optimum a = C (y - p), and stopping asks for that.
    """
    from scipy.special import expit

    sign = np.where(sides.labels, 1.0, -1.0)
    zeros = np.zeros(len(sign))
    point = _Fit(zeros, zeros, 0.0)
    steps = 0
    while True:
        residual = PROBE_C * sign * expit(-sign * (point.latent + point.intercept))
        gap = np.abs(point.weights - residual).max()
        converged = bool(gap <= PROBE_TOLERANCE * np.abs(residual).max())
        if converged or steps == PROBE_STEPS:
            break
        steps += 1
        step = _newton_step(sides.rows.gram, point, residual)
        best = point.loss(sign)
        for size in 0.5 ** np.arange(30):
            trial = point.plus(step, size)
            if trial.loss(sign) <= best * (1 + 1e-12):
                break
        point = trial
    facts = {"C": PROBE_C, "newton_steps": steps, "converged": converged}
    return Direction(point.weights, point.intercept, facts)


def _newton_step(gram: ndarray, point: _Fit, residual: ndarray) -> _Fit:
    """Return the full step (Rasmussen & Williams 2006, algorithm 3.1, with a free intercept).

    The matrix to solve, I + W^(1/2) K W^(1/2), is well conditioned however separable the rows are.
    """
    from scipy.linalg import cho_factor, cho_solve
    from scipy.special import expit

    odds = point.latent + point.intercept
    variance = np.maximum(expit(odds) * expit(-odds), 1e-300)
    root = np.sqrt(PROBE_C * variance)
    matrix = root[:, None] * gram * root
    diagonal = np.arange(len(gram))
    matrix[diagonal, diagonal] += 1
    right = np.stack([root * odds + residual / root, root], axis=1)
    factor = cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
    solved = cho_solve(factor, right, check_finite=False)
    along, ones = (root[:, None] * solved).T
    target = along.sum() / ones.sum()
    weights = along - target * ones - point.weights
    return _Fit(weights, gram @ weights, target - point.intercept)


def _ica(sides: Sides) -> Direction:
    """Return the activation's change per standard deviation of the source that separates best.

    It is a column of the mixing matrix, X's / n, signed by where the sides are along it. The
    source's own gap can have the other sign: columns of the mixing matrix are not orthogonal where
    a few dimensions dominate.
    """
    sources, converged = sides.rows.sources
    n, k = sources.shape
    pos, neg = sources[sides.labels], sources[~sides.labels]
    spread = np.sqrt(pos.var(axis=0) + neg.var(axis=0)) + 1e-12
    chosen = int(np.abs(sides.gap @ sources / spread).argmax())
    facts = {"components": k, "component": chosen, "converged": converged}
    return Direction(sides.towards_pos(sources[:, chosen] / n), facts=facts)


def _gradient(sides: Sides) -> Direction:
    """Return the stationary point S^-1 d: d the gap of the means, S the shrunk covariance.

    With R the residuals of the rows from their side's mean, m the residuals' mean variance and l
    the shrinkage, S = (1 - l) R'R / n + l m I. By Woodbury S^-1 d is
    d - R' (rho I + R R')^-1 R d, rho = n l m / (1 - l), up to a factor that unit norm drops.
    """
    from scipy.linalg import solve

    rows, weights = sides.rows, sides.gap
    means = np.zeros((rows.n, rows.n))
    for side in (sides.labels, ~sides.labels):
        means[np.ix_(side, side)] = 1 / side.sum()
    half = rows.gram - means @ rows.gram
    within = half - half @ means
    shrinkage = ledoit_wolf(within, rows.dim)
    ridge = shrinkage * np.trace(within) / rows.dim
    if 0 < shrinkage < 1 and ridge > 0:
        matrix = within + np.eye(rows.n) * ridge / (1 - shrinkage)
        inner = solve(matrix, half @ weights, assume_a="pos", overwrite_a=True, check_finite=False)
        weights = weights - (inner - means @ inner)
    return Direction(sides.unit(weights), facts={"shrinkage": shrinkage})


def _pca(sides: Sides) -> Direction:
    """Count rows once per cell; where no cell has both sides, take the gap of the means."""
    labels, cells = sides.labels, sides.cells
    paired = np.intersect1d(cells[labels], cells[~labels])
    pairs = np.array([contrast(labels, cells == cell) for cell in paired] or [sides.gap])
    _, vectors = leading(pairs @ sides.rows.gram @ pairs.T, 1)
    return Direction(sides.unit(vectors[:, 0] @ pairs), facts={"pairs": len(paired)})


METHODS: dict[str, Method] = {
    "mean_diff": Method(
        objective="mean of pos minus mean of neg",
        units="activation units: its norm is the distance of the two means",
        source="Marks & Tegmark 2023, arXiv:2310.06824",
        fit=_mean_diff,
    ),
    "probe": Method(
        objective="L2-regularised logistic regression: minimise |w|^2/2 + C sum "
        "log(1 + exp(-s (w.x + bias))), C = 1",
        units="log-odds per activation unit; bias in log-odds",
        source="Alain & Bengio 2016, arXiv:1610.01644; the optimum scikit-learn's "
        "LogisticRegression(C=1) tends to",
        fit=_probe,
    ),
    "ica": Method(
        objective="of up to 10 independent components (FastICA, seeded), the one whose source "
        "separates best, signed towards pos",
        units="activation units per standard deviation of the source",
        source="Hyvarinen & Oja 2000, Neural Networks 13",
        fit=_ica,
    ),
    "gradient": Method(
        objective="maximise (w.d)^2 / w'Sw, d the gap of the means, S the within-side covariance, "
        "Ledoit-Wolf shrunk",
        units="unit norm",
        source="Fisher 1936, Annals of Eugenics 7; Ledoit & Wolf 2004, J. Multivariate Analysis 88",
        fit=_gradient,
    ),
    "pca": Method(
        objective="first principal component, uncentred, of pos minus neg, paired by instruction "
        "pair and question",
        units="unit norm",
        source="Zou et al. 2023, arXiv:2310.01405",
        fit=_pca,
    ),
}
DEFAULT_METHODS = ("mean_diff", "probe", "ica", "gradient")


def check_methods(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names, each once. Raise UsageError, with the nearest known, for an unknown one."""
    known = f"choose from {', '.join(METHODS)}"
    if not names:
        raise UsageError(f"`methods` names none; {known}")
    for name in names:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.4)
            hint = "".join(f"did you mean {each}? " for each in near)
            raise UsageError(f"`methods` {name!r} is unknown; {hint}{known}")
    return tuple(dict.fromkeys(names))
