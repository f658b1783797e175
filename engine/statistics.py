"""Figures and their intervals: one implementation for judge scores, evaluations and pages."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy import ndarray

BOOTSTRAPS = 1000
Z = 1.959963984540054
"""Normal quantile of a 95 % interval."""


def auroc(pos: Sequence[float], neg: Sequence[float]) -> float:
    """Return P(a pos score is above a neg score), ties counted half; 0.5 tells nothing apart.

    Raise ValueError on an empty side or a NaN.
    """
    if not pos or not neg:
        raise ValueError("the AUROC needs at least one score on each side")
    if any(map(math.isnan, pos)) or any(map(math.isnan, neg)):
        raise ValueError("the AUROC of NaN scores is not defined")
    below = sorted(neg)
    ranks = sum(bisect_left(below, score) + bisect_right(below, score) for score in pos)
    return ranks / (2 * len(pos) * len(neg))


def auroc_interval(
    pos: Sequence[float], neg: Sequence[float], level: float = 0.95
) -> tuple[float, float, float]:
    """Return the AUROC and its confidence interval, (estimate, low, high).

    Newcombe's score interval (Statistics in Medicine 25, 2006, 559-573, method 5): the values t
    with |estimate - t| <= z * sqrt(V(t)), V(t) = t(1-t) / (mn) * (1 + N(1-t)/(2-t) + Nt/(1+t)),
    N = (m+n)/2 - 1. V is taken at t and not at the estimate, so the interval keeps its width at an
    estimate of 0 or 1. Raise ValueError as `auroc` does.
    """
    from scipy.optimize import brentq

    estimate = auroc(pos, neg)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    product, spread = len(pos) * len(neg), (len(pos) + len(neg)) / 2 - 1

    def beyond(t: float) -> float:
        """Return how far t lies outside: (estimate - t)^2 - z^2 V(t)."""
        variance = t * (1 - t) / product * (1 + spread * (1 - t) / (2 - t) + spread * t / (1 + t))
        return (estimate - t) ** 2 - z**2 * variance

    inside = min(max(estimate, 1e-9), 1 - 1e-9)
    low, high = 0.0, 1.0
    if estimate > 0:
        low = float(brentq(beyond, 0.0, inside, xtol=1e-15))
    if estimate < 1:
        high = float(brentq(beyond, inside, 1.0, xtol=1e-15))
    return estimate, low, high


def histogram(scores: Iterable[float]) -> list[int]:
    """Return counts in ten bins of width 10: [0, 10), ..., [80, 90), [90, 100]."""
    counts = [0] * 10
    for score in scores:
        counts[min(9, int(score // 10))] += 1
    return counts


# --- held-out scores, weighted ---
#
# Scores are `[..., n]`, a figure of them `[..., draws]`. Its cost grows with the rows once, and
# with the draws times the groups, as rows of one group have one weight.

ENTRIES = 1 << 20
"""Of the arrays that are computed at once."""


class Estimate(NamedTuple):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


class Weights(NamedTuple):
    """How often each draw counts a row."""

    groups: ndarray
    """int `[n]`, numbered from 0: the row's group."""
    counts: ndarray
    """float64 `[draws, n_groups]`: how often each draw counts the rows of a group."""

    def total(self, values: ndarray) -> ndarray:
        """Return the weighted sum of values `[..., n]`, `[..., draws]`."""
        order = np.argsort(self.groups, kind="stable")
        present, starts = np.unique(self.groups[order], return_index=True)
        by_group = np.add.reduceat(values[..., order], starts, axis=-1, dtype=np.float64)
        return np.asarray(by_group @ self.counts[:, present].T)

    def mean(self, values: ndarray, side: ndarray) -> ndarray:
        """Return the weighted mean of values `[..., n]` of a side, bool `[n]`, `[..., draws]`."""
        return _ratio(self.total(values * side), self.total(side))


def once(n: int) -> Weights:
    """Return weights that count every one of n rows once."""
    return Weights(np.zeros(n, int), np.ones((1, 1)))


def draw_groups(groups: ndarray, rng: np.random.Generator) -> Weights:
    """Return BOOTSTRAPS bootstrap draws of whole groups, with replacement.

    `groups` is int `[n]`, numbered from 0 without gaps.
    """
    count = int(groups.max()) + 1
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=BOOTSTRAPS)
    return Weights(groups, drawn.astype(np.float64))


def fold_auroc(scores: ndarray, labels: ndarray, folds: ndarray, weights: Weights) -> ndarray:
    """Return the chance that a pos row scores above a neg row of its own fold, ties counted half.

    Only rows of one fold are compared, since each fold's scores come from a direction of its own:
    pooling folds would compare scales. labels (bool) and folds (int) are `[n]`; NaN where a draw
    leaves no pair.
    """
    flat, draws = scores.reshape(-1, scores.shape[-1]), len(weights.counts)
    won, pairs = np.zeros((len(flat), draws)), np.zeros(draws)
    for fold in np.unique(folds):
        inside = np.flatnonzero(folds == fold)
        pos = labels[inside]
        ours, of_pos = np.unique(weights.groups[inside[pos]], return_inverse=True)
        theirs, of_neg = np.unique(weights.groups[inside[~pos]], return_inverse=True)
        if not len(ours) or not len(theirs):
            continue
        counts, against = weights.counts[:, ours], weights.counts[:, theirs]
        pairs += (counts @ np.bincount(of_pos)) * (against @ np.bincount(of_neg))
        most = max(draws * len(theirs), len(inside) * (len(ours) + len(theirs)))
        some = max(1, ENTRIES // most)
        for start in range(0, len(flat), some):
            wins = _wins(flat[start : start + some, inside], pos, of_pos, of_neg)
            won[start : start + some] += ((counts @ wins) * against).sum(axis=2)
    return _ratio(won, pairs).reshape(*scores.shape[:-1], draws)


def _wins(scores: ndarray, pos: ndarray, of_pos: ndarray, of_neg: ndarray) -> ndarray:
    """Return how many pairs each group of pos wins against each of neg, ties counted half.

    `[m, groups of pos, groups of neg]`, from scores `[m, n]`, which rows are pos, and the groups of
    pos rows and of neg rows.
    """
    m, n = scores.shape
    order = np.argsort(scores, axis=1)
    ranked = np.take_along_axis(scores, order, axis=1)
    # A run of ties begins and ends here; half of it counts.
    place, rise = np.arange(n), ranked[:, 1:] != ranked[:, :-1]
    first, last = np.zeros((m, n), int), np.full((m, n), n)
    np.multiply(place[1:], rise, out=first[:, 1:])
    np.maximum.accumulate(first, axis=1, out=first)
    last[:, :-1] = np.where(rise, place[1:], n)
    last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    ours = np.argsort(of_pos, kind="stable")
    begins = np.searchsorted(of_pos[ours], np.arange(of_pos.max() + 1))
    at = np.argsort(order, axis=1)[:, np.flatnonzero(pos)[ours]]
    first, last = (np.take_along_axis(ends, at, axis=1) for ends in (first, last))
    group = np.full(n, -1)
    group[~pos] = of_neg
    group, each = group[order], np.arange(m)[:, None]
    wins = np.empty((m, len(begins), of_neg.max() + 1))
    some = max(1, ENTRIES // (m * n))
    for start in range(0, wins.shape[2], some):  # of all groups at once it would be rows x groups
        theirs = np.arange(start, min(start + some, wins.shape[2]))
        below = np.zeros((m, n + 1, len(theirs)))
        np.cumsum(group[:, :, None] == theirs, axis=1, out=below[:, 1:])
        ahead = (below[each, first] + below[each, last]) / 2
        wins[:, :, theirs] = np.add.reduceat(ahead, begins, axis=1)
    return wins


def balanced_accuracy(scores: ndarray, labels: ndarray, weights: Weights) -> ndarray:
    """Return the mean of the two sides' shares of rows on the right side of 0."""
    right = ((scores > 0) == labels).astype(float)
    return np.asarray((weights.mean(right, labels) + weights.mean(right, ~labels)) / 2)


def cohens_d(scores: ndarray, labels: ndarray, weights: Weights) -> ndarray:
    """Return the gap of the means in pooled standard deviations (Cohen 1988, section 2.2)."""
    gap, within, count = np.zeros(()), np.zeros(()), np.zeros(())
    for sign, side in ((1, labels), (-1, ~labels)):
        mean, n = weights.mean(scores, side), weights.total(side)
        gap = gap + sign * mean
        within = within + weights.total(scores**2 * side) - n * mean**2
        count = count + n
    spread = np.sqrt(np.maximum(within, 0) / np.maximum(count - 2, 1))
    return _ratio(gap, spread)


def _ratio(above: ndarray, below: ndarray) -> ndarray:
    """Return above / below, NaN where nothing is divided by."""
    nothing = np.full(above.shape, np.nan)
    return np.asarray(np.divide(above, below, out=nothing, where=below > 0))


def effective_groups(labels: ndarray, groups: ndarray) -> float:
    """Return how many equally large groups the side with fewer amounts to.

    (sum m)^2 / sum m^2 over a side's group sizes m (Kish 1965, Survey Sampling, section 8.2). A
    side has at least as many rows, but rows of one group can be as alike as copies, and then a side
    tells no more than so many single rows would.
    """
    found = []
    for side in (labels, ~labels):
        sizes = np.unique(groups[side], return_counts=True)[1]
        found.append(sizes.sum() ** 2 / (sizes**2).sum())
    return float(min(found))


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return the 95 % score interval of a share of n.

    Wilson 1927, J. American Statistical Association 22.
    """
    scale = 1 + Z**2 / n
    centre = (share + Z**2 / (2 * n)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def estimate(value: float, draws: ndarray, n: float | None = None) -> Estimate:
    """Return a figure with the percentiles of its draws, which always hold the value itself.

    For shares and AUROCs `n` is given, and the interval holds Wilson's too: percentiles alone
    shrink to a point when all held-out rows are right. An AUROC's variance is at most
    A (1 - A) / min(n_pos, n_neg) for independent rows (Birnbaum & Klose 1957, Annals of
    Mathematical Statistics 28). Rows of one group are not independent, so n is the number of groups
    (`effective_groups`): the interval is on the safe side.
    """
    return estimates(np.array([value]), draws[None], n)[0]


def estimates(values: ndarray, draws: ndarray, n: float | None = None) -> list[Estimate]:
    """Return the same of figures `[m]` with their draws `[m, any]`."""
    lows, highs = values.copy(), values.copy()
    whole = np.isfinite(draws).all(axis=1)
    lows[whole], highs[whole] = np.percentile(draws[whole], (2.5, 97.5), axis=1)
    for place in np.flatnonzero(~whole):
        kept = draws[place][np.isfinite(draws[place])]
        if len(kept):
            lows[place], highs[place] = np.percentile(kept, (2.5, 97.5))
    found = []
    for value, low, high in zip(values.tolist(), lows.tolist(), highs.tolist(), strict=True):
        ends = (value, low, high) if n is None else (value, low, high, *wilson(value, n))
        found.append(Estimate(value, min(ends), max(ends)))
    return found


def grouped_mean(values: ndarray, groups: ndarray) -> Estimate:
    """Return the mean of the groups' means with Student's 95 % interval of those.

    Rows of one group are alike, so a group counts as one, whatever its size. values and groups are
    `[n]`. The interval is without end for one group, and all is NaN for none.
    """
    from scipy.stats import t

    if not len(values):
        return Estimate(math.nan, math.nan, math.nan)
    _, place = np.unique(groups, return_inverse=True)
    means = np.bincount(place, values) / np.bincount(place)
    centre = float(means.mean())
    if len(means) < 2:
        return Estimate(centre, -math.inf, math.inf)
    half = float(t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means)))
    return Estimate(centre, centre - half, centre + half)


def cohens_kappa(first: ndarray, second: ndarray) -> Estimate | None:
    """Return how far two raters' yes and no, bool `[n]`, agree beyond chance.

    None where a rater said only yes, or only no: kappa is 0 then, whatever the other said. The
    interval is the score interval of the share of agreement (Wilson 1927) at the chance agreement
    observed, which is how Cohen (1960, Educational and Psychological Measurement 20) has its error,
    and keeps its width where all ratings agree. Raise ValueError without ratings.
    """
    n = len(first)
    if n == 0 or n != len(second):
        raise ValueError("kappa needs as many ratings of one rater as of the other, at least one")
    share = float(np.mean(first == second))
    yes, also = float(np.mean(first)), float(np.mean(second))
    if {yes, also} & {0.0, 1.0}:
        return None
    chance = yes * also + (1 - yes) * (1 - also)
    low, high = wilson(share, n)
    value, least, most = ((each - chance) / (1 - chance) for each in (share, low, high))
    return Estimate(value, max(-1.0, least), most)
