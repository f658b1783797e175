"""Held-out folds by group, and figures with intervals from held-out scores."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

FOLDS = 5
BOOTSTRAPS = 1000
Z = 1.959963984540054
"""Normal quantile of a 95 % interval."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Rows divided into folds so that no group stands in two of them, with bootstrap draws of whole
    groups."""

    name: str
    labels: np.ndarray
    """bool `[n]`: True is pos."""
    groups: np.ndarray
    """int `[n]`."""
    folds: np.ndarray
    """int `[n]`: the fold in which the row is held out."""
    draws: np.ndarray
    """float32 `[draws, n]`: how often the row's group was drawn, with replacement."""

    nestable: bool
    """Whether two folds can be left out together."""

    @property
    def n_groups(self) -> int:
        return len(np.unique(self.groups))

    @property
    def n_effective(self) -> float:
        return effective_groups(self.labels, self.groups)

    def tests(self) -> list[np.ndarray]:
        """The folds as masks `[n]` of held-out rows."""
        return [self.folds == fold for fold in np.unique(self.folds)]


def make_split(name: str, labels: np.ndarray, groups: np.ndarray, seed: int) -> Split | str:
    """A split, or the reason in words why rows so grouped cannot be held out."""
    _, groups = np.unique(groups, return_inverse=True)
    n_groups = int(groups.max()) + 1
    if n_groups < 2:
        return f"held-out figures by {name} are not given: the kept rows have only one {name}"
    rng = np.random.default_rng([seed, n_groups])
    folds = (rng.permutation(n_groups) % min(FOLDS, n_groups))[groups]
    lack = why_not(labels, folds)
    if lack:
        return f"held-out figures by {name} are not given: {lack}"
    draws = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=BOOTSTRAPS)[:, groups]
    return Split(
        name, labels, groups, folds, draws.astype(np.float32), _trainable(labels, folds, 2)
    )


def why_not(labels: np.ndarray, folds: np.ndarray) -> str:
    """Why rows so labelled cannot be held out by fold, in words; empty where they can."""
    if not _trainable(labels, folds, 1):
        return "without one fold a side has fewer than 2 rows"
    if not any(len(set(labels[folds == fold])) == 2 for fold in np.unique(folds)):
        return "no fold has rows of both sides"
    return ""


def effective_groups(labels: np.ndarray, groups: np.ndarray) -> float:
    """How many equally large groups the side with fewer amounts to: (sum m)^2 / sum m^2 over a
    side's group sizes m.

    Kish 1965, Survey Sampling, section 8.2. A side has at least as many rows, but rows of one group
    can be as alike as copies, and then a side tells no more than so many single rows would.
    """
    sizes = [np.unique(groups[side], return_counts=True)[1] for side in (labels, ~labels)]
    return float(min(size.sum() ** 2 / (size**2).sum() for size in sizes))


def _trainable(labels: np.ndarray, folds: np.ndarray, left_out: int) -> bool:
    """Whether both sides keep at least 2 rows however many folds are left out."""
    return all(
        min(labels[rest].sum(), (~labels[rest]).sum()) >= 2
        for gone in combinations(np.unique(folds), left_out)
        for rest in [~np.isin(folds, gone)]
    )


def once(n: int) -> np.ndarray:
    """Weights `[1, n]` that count every row once."""
    return np.ones((1, n), np.float32)


def auroc(
    scores: np.ndarray, labels: np.ndarray, folds: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Chance that a pos row scores above a neg row of its own fold (ties count half), `[draws]`.

    Only rows of one fold are compared, since each fold's scores come from a direction of its own:
    pooling folds would compare scales. scores `[n]`, weights `[draws, n]`; NaN where a draw leaves
    no pair.
    """
    won = np.zeros(len(weights))
    pairs = np.zeros(len(weights))
    for fold in np.unique(folds):
        pos, neg = (
            np.flatnonzero(labels & (folds == fold)),
            np.flatnonzero(~labels & (folds == fold)),
        )
        ahead = np.sign(scores[pos][:, None] - scores[neg]).astype(np.float32) / 2 + np.float32(0.5)
        won += ((weights[:, pos] @ ahead) * weights[:, neg]).sum(axis=1)
        pairs += weights[:, pos].sum(axis=1) * weights[:, neg].sum(axis=1)
    return _ratio(won, pairs)


def accuracy(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of the two sides' shares of rows on the right side of 0, `[draws]`."""
    right = (scores > 0) == labels
    shares = [_mean(right.astype(float), weights * side) for side in (labels, ~labels)]
    return np.asarray((shares[0] + shares[1]) / 2)


def cohens_d(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Gap of the sides' means in pooled standard deviations, `[draws]` (Cohen 1988, section 2.2)."""
    gap, within, count = np.zeros(len(weights)), np.zeros(len(weights)), np.zeros(len(weights))
    for sign, side in ((1, labels), (-1, ~labels)):
        mine = weights * side
        mean = _mean(scores, mine)
        gap = gap + sign * mean
        within = within + mine @ scores**2 - mine.sum(axis=1) * mean**2
        count = count + mine.sum(axis=1)
    spread = np.sqrt(np.maximum(within, 0) / np.maximum(count - 2, 1))
    return _ratio(gap, spread)


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _ratio(weights @ values, weights.sum(axis=1))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where nothing is divided by."""
    return np.asarray(np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0))


def wilson(share: float, n: float) -> tuple[float, float]:
    """95 % score interval of a share of n (Wilson 1927, J. American Statistical Association 22)."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def interval(value: float, draws: np.ndarray, n: float | None = None) -> tuple[float, float]:
    """95 % interval: bootstrap percentiles, always holding the value itself.

    For shares and AUROCs `n` is given, and the interval holds Wilson's too: percentiles alone
    shrink to a point when all held-out rows are right. An AUROC's variance is at most A (1 - A) /
    min(n_pos, n_neg) (Birnbaum & Klose 1957, Annals of Mathematical Statistics 28) for n
    independent rows on the smaller side. Rows of one group are not independent, so n is the number
    of groups (`effective_groups`): the interval is on the safe side.
    """
    kept = draws[np.isfinite(draws)]
    low, high = (
        (float(np.percentile(kept, share)) for share in (2.5, 97.5))
        if len(kept)
        else (value, value)
    )
    if n is not None:
        wilson_low, wilson_high = wilson(value, n)
        low, high = min(low, wilson_low), max(high, wilson_high)
    return min(low, value), max(high, value)
