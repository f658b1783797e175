"""Figures and their intervals: one implementation for judge scores, evaluations and pages."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from statistics import NormalDist


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
