"""The methods that find a trait's direction at one layer, in the space of rows.

Every fitted direction is a sum of rows, w = sum_i a_i x_i, whose weights a add up to zero. So a
method needs only the rows' Gram matrix K = X X' (`[n, n]`), whatever the hidden dimension: K is
computed once a layer and shared by all methods and by all held-out folds, whose Gram matrices are
blocks of it. A held-out row's projection is K a as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..errors import UsageError

PROBE_C = 1.0
PROBE_TOLERANCE = 1e-6
"""Relative; rounding in the Gram matrix allows no less where one dimension is 30,000 times the
others."""
PROBE_STEPS = 50
ICA_COMPONENTS = 10
ICA_STEPS = 200
ICA_TOLERANCE = 1e-4
SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """A direction as weights of rows."""

    weights: np.ndarray
    """float64 `[n]`, adding up to zero."""
    intercept: float | None = None
    """Of the probe, for rows centred as the Gram matrix is."""
    facts: dict[str, float | int | bool] = field(default_factory=dict)
    """What the fit found: shrinkage, steps, convergence."""


class Rows:
    """The Gram matrix of some rows, centred on their mean, and what methods share of it."""

    def __init__(self, gram: np.ndarray, dim: int) -> None:
        means = gram.mean(axis=0)
        self.gram = gram - means - means[:, None] + means.mean()
        self.n = len(gram)
        self.dim = dim
        """Hidden dimension of the rows."""

    @cached_property
    def sources(self) -> tuple[np.ndarray, bool]:
        """Independent components of the rows, unit variance, `[n, k]`, and whether the iteration
        converged.

        Of at most 10 principal components, which are the leading eigenvectors of the Gram matrix.
        """
        from scipy.linalg import eigh

        most = min(ICA_COMPONENTS, self.n - 1)
        values, vectors = eigh(
            self.gram, subset_by_index=[self.n - most, self.n - 1], check_finite=False
        )
        k = max(1, int((values > 1e-10 * values[-1]).sum()))
        white = vectors[:, -k:] * np.sqrt(self.n)
        # LAPACK is free to flip an eigenvector; the seeded start must not mean another one then.
        white *= np.sign(white[np.abs(white).argmax(axis=0), range(k)])
        return fast_ica(white, np.random.default_rng(SEED).standard_normal((k, k)))


@dataclass(frozen=True, slots=True)
class Method:
    """A method, with the words that metadata and docs carry."""

    objective: str
    units: str
    source: str
    fit: Callable[[Rows, np.ndarray, np.ndarray], Direction] | None
    """From rows, labels (bool `[n]`) and cells (int `[n]`, one per instruction pair and question);
    None: not fitted."""


def contrast(labels: np.ndarray, among: np.ndarray | bool = True) -> np.ndarray:
    """Weights `[n]` of the mean of pos minus the mean of neg, among some rows (bool `[n]`) or all."""
    pos, neg = labels & among, ~labels & among
    return np.asarray(pos / pos.sum() - neg / neg.sum())


def fast_ica(white: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, bool]:
    """Independent components `[n, k]` of white data `[n, k]` from a start `[k, k]`, and whether
    they settled.

    Symmetric FastICA with tanh (Hyvarinen & Oja 2000, Neural Networks 13), steps and tolerance as
    scikit-learn's, which it equals; written out here since its checks cost more than its arithmetic
    at this size.
    """
    z, unmixing = white.T, _decorrelated(start)
    for _ in range(ICA_STEPS):
        squashed = np.tanh(unmixing @ z)
        slope = 1 - np.einsum("ij,ij->i", squashed, squashed) / len(white)
        new = _decorrelated(squashed @ white / len(white) - slope[:, None] * unmixing)
        change = np.abs(np.abs(np.einsum("ij,ij->i", new, unmixing)) - 1).max()
        unmixing = new
        if change < ICA_TOLERANCE:
            return white @ unmixing.T, True
    return white @ unmixing.T, False


def _decorrelated(matrix: np.ndarray) -> np.ndarray:
    """(M M')^(-1/2) M."""
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    return np.asarray((vectors / np.sqrt(np.maximum(values, 1e-300))) @ (vectors.T @ matrix))


def ledoit_wolf(gram: np.ndarray, dim: int) -> float:
    """Shrinkage of a covariance towards its mean variance, from the Gram matrix `[n, n]` of centred
    rows.

    Ledoit & Wolf 2004, J. Multivariate Analysis 88, 365-411, lemma 3.2 and following.
    """
    n = len(gram)
    second = (gram**2).sum() / n**2
    spread = second - (np.trace(gram) / n) ** 2 / dim
    noise = ((np.diag(gram) ** 2).mean() - second) / n
    return float(min(noise, spread) / spread) if spread > 0 else 1.0


def random_directions(dim: int, layer: int, count: int) -> np.ndarray:
    """Isotropic unit vectors float64 `[count, dim]`, fixed by the layer; a larger count starts with
    the smaller."""
    directions = np.random.default_rng([SEED, layer + 1]).standard_normal((count, dim))
    return np.asarray(directions / np.linalg.norm(directions, axis=1, keepdims=True))


def _towards_pos(rows: Rows, weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Signed so that the mean of pos lies beyond the mean of neg along the direction."""
    return np.asarray(weights if contrast(labels) @ rows.gram @ weights >= 0 else -weights)


def _unit(rows: Rows, weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scaled to unit norm, signed towards pos."""
    norm = np.sqrt(max(weights @ rows.gram @ weights, 0.0))
    return _towards_pos(rows, weights / norm if norm else weights, labels)


def _mean_diff(_rows: Rows, labels: np.ndarray, _cells: np.ndarray) -> Direction:
    return Direction(contrast(labels))


def _probe(rows: Rows, labels: np.ndarray, _cells: np.ndarray) -> Direction:
    """Newton's method with step halving on a'Ka/2 + C sum log(1 + exp(-s (Ka + b))), s = +1 for
    pos, -1 for neg.

    The steps are those of Rasmussen & Williams 2006, algorithm 3.1, with a free intercept: the
    matrix they solve, I + W^(1/2) K W^(1/2), is well conditioned however separable the rows are. At
    the optimum a = C (y - p), and stopping asks for that.
    """
    from scipy.linalg import cho_factor, cho_solve
    from scipy.special import expit

    gram, sign = rows.gram, np.where(labels, 1.0, -1.0)
    diagonal = np.arange(rows.n)

    def loss(weights: np.ndarray, latent: np.ndarray, intercept: float) -> float:
        return float(
            weights @ latent / 2 + PROBE_C * np.logaddexp(0, -sign * (latent + intercept)).sum()
        )

    state = (np.zeros(rows.n), np.zeros(rows.n), 0.0)
    best = loss(*state)
    converged, steps = False, 0
    while steps < PROBE_STEPS:
        weights, latent, intercept = state
        odds = latent + intercept
        residual = PROBE_C * sign * expit(-sign * odds)
        converged = bool(
            np.abs(weights - residual).max() <= PROBE_TOLERANCE * np.abs(residual).max()
        )
        if converged:
            break
        steps += 1
        root = np.sqrt(PROBE_C * np.maximum(expit(odds) * expit(-odds), 1e-300))
        matrix = root[:, None] * gram * root
        matrix[diagonal, diagonal] += 1
        right = np.stack([root * odds + residual / root, root], axis=1)
        solved = cho_solve(
            cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False),
            right,
            check_finite=False,
        )
        along, ones = (root[:, None] * solved).T
        target = along.sum() / ones.sum()
        step = along - target * ones - weights
        step_latent = gram @ step
        for size in 0.5 ** np.arange(30):
            trial = (
                weights + size * step,
                latent + size * step_latent,
                intercept + size * (target - intercept),
            )
            value = loss(*trial)
            if value <= best * (1 + 1e-12):
                break
        state, best = trial, value
    return Direction(
        state[0], state[2], {"C": PROBE_C, "newton_steps": steps, "converged": converged}
    )


def _ica(rows: Rows, labels: np.ndarray, _cells: np.ndarray) -> Direction:
    """The activation's change per standard deviation of a source: column of the mixing matrix, X's
    / n.

    Signed by where the sides lie along that column. The source's own gap can have the other sign:
    columns of the mixing matrix are not orthogonal where a few dimensions dominate.
    """
    sources, converged = rows.sources
    gaps = contrast(labels) @ sources
    spreads = np.sqrt(sources[labels].var(axis=0) + sources[~labels].var(axis=0)) + 1e-12
    chosen = int(np.abs(gaps / spreads).argmax())
    weights = _towards_pos(rows, sources[:, chosen] / rows.n, labels)
    return Direction(
        weights,
        facts={"components": sources.shape[1], "component": chosen, "converged": bool(converged)},
    )


def _gradient(rows: Rows, labels: np.ndarray, _cells: np.ndarray) -> Direction:
    """The stationary point, in closed form: S^-1 d with d the gap of the means and S the shrunk
    within-side covariance.

    With R the residuals of the rows from their side's mean, m the residuals' mean variance and l
    the shrinkage, S = (1 - l) R'R / n + l m I, and by Woodbury S^-1 d is d - R' (rho I + R R')^-1 R
    d, rho = n l m / (1 - l), up to a factor that scaling to unit norm drops.
    """
    from scipy.linalg import solve

    gap = contrast(labels)
    means = np.zeros((rows.n, rows.n))
    for side in (labels, ~labels):
        means[np.ix_(side, side)] = 1 / side.sum()
    half = rows.gram - means @ rows.gram
    within = half - half @ means
    shrinkage = ledoit_wolf(within, rows.dim)
    ridge = shrinkage * np.trace(within) / rows.dim
    weights = gap
    if 0 < shrinkage < 1 and ridge > 0:
        matrix = within + np.eye(rows.n) * ridge / (1 - shrinkage)
        inner = solve(matrix, half @ gap, assume_a="pos", overwrite_a=True, check_finite=False)
        weights = gap - (inner - means @ inner)
    return Direction(_unit(rows, weights, labels), facts={"shrinkage": shrinkage})


def _pca(rows: Rows, labels: np.ndarray, cells: np.ndarray) -> Direction:
    """Rows count once per cell; where no cell has both sides, the gap of the means is the only
    difference."""
    from scipy.linalg import eigh

    paired = np.intersect1d(cells[labels], cells[~labels])
    pairs = np.array([contrast(labels, cells == cell) for cell in paired] or [contrast(labels)])
    gram = pairs @ rows.gram @ pairs.T
    _, vectors = eigh(gram, subset_by_index=[len(gram) - 1, len(gram) - 1], check_finite=False)
    return Direction(_unit(rows, vectors[:, 0] @ pairs, labels), facts={"pairs": len(paired)})


METHODS: dict[str, Method] = {
    "mean_diff": Method(
        objective="mean of pos minus mean of neg",
        units="activation units: its norm is the distance of the two means",
        source="Marks & Tegmark 2023, arXiv:2310.06824",
        fit=_mean_diff,
    ),
    "probe": Method(
        objective="L2-regularised logistic regression: minimise |w|^2/2 + C sum log(1 + exp(-s (w.x + bias))), C = 1",
        units="log-odds per activation unit; bias in log-odds",
        source="Alain & Bengio 2016, arXiv:1610.01644; the optimum scikit-learn's LogisticRegression(C=1) tends to",
        fit=_probe,
    ),
    "ica": Method(
        objective="of up to 10 independent components (FastICA, seeded), the one whose source separates best, "
        "signed towards pos",
        units="activation units per standard deviation of the source",
        source="Hyvarinen & Oja 2000, Neural Networks 13",
        fit=_ica,
    ),
    "gradient": Method(
        objective="maximise (w.d)^2 / w'Sw, d the gap of the means, S the within-side covariance, Ledoit-Wolf shrunk",
        units="unit norm",
        source="Fisher 1936, Annals of Eugenics 7; Ledoit & Wolf 2004, J. Multivariate Analysis 88",
        fit=_gradient,
    ),
    "pca": Method(
        objective="first principal component, uncentred, of pos minus neg, paired by instruction pair and question",
        units="unit norm",
        source="Zou et al. 2023, arXiv:2310.01405",
        fit=_pca,
    ),
    "random": Method(
        objective="an isotropic random vector, fixed by the layer, signed towards pos: a baseline",
        units="unit norm",
        source="no data but the sign",
        fit=None,
    ),
}
DEFAULT_METHODS = ("mean_diff", "probe", "ica", "gradient")


def check_methods(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once. Raises UsageError for an unknown one, with the nearest known."""
    for name in names:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else ""
            raise UsageError(
                " ".join(
                    filter(
                        None,
                        [
                            f"`methods` {name!r} is unknown;",
                            hint,
                            f"choose from {', '.join(METHODS)}",
                        ],
                    )
                )
            )
    if not names:
        raise UsageError(f"`methods` names none; choose from {', '.join(METHODS)}")
    return tuple(dict.fromkeys(names))
