"""The methods that find a trait's direction at one layer."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from ..errors import UsageError
from .ica import leading
from .probe import fit_probe
from .rows import Direction, Sides, contrast


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
    n = len(gram)
    second = (gram**2).sum() / n**2
    spread = second - (np.trace(gram) / n) ** 2 / dim
    noise = ((np.diag(gram) ** 2).mean() - second) / n
    if spread <= 0:
        return 1.0
    return float(min(noise, spread) / spread)


def _mean_diff(sides: Sides) -> Direction:
    return Direction(sides.gap)


def _ica(sides: Sides) -> Direction:
    """Return the activation's change per standard deviation of the source that separates best.

    It is a column of the mixing matrix, X's / n, signed by where the sides are along it. The
    source's own gap can have the other sign: columns of the mixing matrix are not orthogonal where
    a few dimensions dominate.
    """
    sources, converged = sides.rows.sources
    n, k = sources.shape
    variance = sources[sides.labels].var(axis=0) + sources[~sides.labels].var(axis=0)
    separation = np.abs(sides.gap @ sources) / (np.sqrt(variance) + 1e-12)
    chosen = int(separation.argmax())
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
        fit=fit_probe,
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
