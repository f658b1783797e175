"""Rows divided into folds by group, so that what is held out shares nothing with what is fitted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy import ndarray

from ..statistics import (
    Estimate,
    Weights,
    balanced_accuracy,
    cohens_d,
    draw_groups,
    effective_groups,
    estimates,
    fold_auroc,
    once,
)

FOLDS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Folds, with no group in two of them, and bootstrap draws of whole groups.

    Scores are `[..., n]` in all methods.
    """

    name: str
    labels: ndarray
    """bool `[n]`: True is pos."""
    groups: ndarray
    """int `[n]`, numbered from 0."""
    folds: ndarray
    """int `[n]`, numbered from 0: the fold in which the row is held out."""
    draws: Weights
    """How often each draw, with replacement, counts a group."""
    nestable: bool
    """Whether two folds can be left out together."""

    @property
    def compared(self) -> ndarray:
        """Return the rows of folds with both sides, bool `[n]`: others are in no AUROC, which
        compares rows of one fold."""
        folds = range(int(self.folds.max()) + 1)
        both = [len(set(self.labels[self.folds == fold])) == 2 for fold in folds]
        return np.asarray(np.array(both)[self.folds])

    @property
    def n_groups(self) -> int:
        """How many groups are compared."""
        return len(np.unique(self.groups[self.compared]))

    @property
    def smaller_side(self) -> int:
        """How many rows that are compared the side with fewer has."""
        labels = self.labels[self.compared]
        return int(min(labels.sum(), (~labels).sum()))

    @property
    def effective(self) -> float:
        """How many equally large groups are compared."""
        return effective_groups(self.labels[self.compared], self.groups[self.compared])

    def tests(self) -> list[ndarray]:
        """Return the folds as masks `[n]` of held-out rows."""
        return [self.folds == fold for fold in np.unique(self.folds)]

    def relabelled(self, labels: ndarray) -> Split:
        """Return the same folds of rows with other labels, bool `[n]`."""
        return replace(self, labels=labels)

    def auroc(self, scores: ndarray) -> ndarray:
        """Return `[...]`."""
        return fold_auroc(scores, self.labels, self.folds, once(scores.shape[-1]))[..., 0]

    def auroc_draws(self, scores: ndarray) -> ndarray:
        """Return the AUROC of each draw of groups, `[..., draws]`."""
        return fold_auroc(scores, self.labels, self.folds, self.draws)

    def figures(self, scores: ndarray) -> dict[str, list[Estimate]]:
        """Return AUROC, accuracy and Cohen's d of each of `[m, n]`."""
        n = effective_groups(self.labels, self.groups)
        labels, unit = self.labels, once(scores.shape[-1])
        accuracy = balanced_accuracy(scores, labels, unit)[:, 0]
        accuracies = balanced_accuracy(scores, labels, self.draws)
        gap, gaps = cohens_d(scores, labels, unit)[:, 0], cohens_d(scores, labels, self.draws)
        return {
            "auroc": estimates(self.auroc(scores), self.auroc_draws(scores), self.effective),
            "accuracy": estimates(accuracy, accuracies, n),
            "cohens_d": estimates(gap, gaps),
        }

    def ranks(self, scores: ndarray, among: ndarray | bool = True) -> list[tuple[float, float]]:
        """Return what candidates `[m, n]` are compared by: AUROC, and Cohen's d where that ties.

        `among` is bool `[n]`: the rows to look at. What cannot be measured comes last.
        """
        among = np.broadcast_to(among, scores.shape[1:])
        scores, labels = scores[:, among], self.labels[among]
        weights = once(len(labels))
        auroc = fold_auroc(scores, labels, self.folds[among], weights)
        gap = cohens_d(scores, labels, weights)
        found = np.nan_to_num(np.concatenate([auroc, gap], axis=1), nan=-np.inf)
        return [(first, second) for first, second in found.tolist()]


def make_split(name: str, labels: ndarray, groups: ndarray, seed: int) -> Split | str:
    """Return a split, or the reason in words why rows so grouped cannot be held out."""
    _, groups = np.unique(groups, return_inverse=True)
    n_groups = int(groups.max()) + 1
    refusal = f"held-out figures by {name} are not given"
    if n_groups < 2:
        return f"{refusal}: the kept rows have only one {name}"
    rng = np.random.default_rng([seed, n_groups])
    # Groups of one side alone are dealt out side by side, so that folds can compare them.
    sides = [set(labels[groups == group]) for group in range(n_groups)]
    dealt = sorted(zip(map(sorted, sides), rng.permutation(n_groups), range(n_groups), strict=True))
    places = np.empty(n_groups, int)
    places[[group for *_, group in dealt]] = np.arange(n_groups)
    folds = (places % min(FOLDS, n_groups))[groups]
    lack = why_not(labels, folds)
    if lack:
        return f"{refusal}: {lack}"
    draws = draw_groups(groups, rng)
    return Split(name, labels, groups, folds, draws, nestable=_trainable(labels, folds, 2))


def why_not(labels: ndarray, folds: ndarray) -> str:
    """Return why rows so labelled cannot be held out by fold; empty where they can."""
    if not _trainable(labels, folds, 1):
        return "without one fold a side has fewer than 2 rows"
    for fold in np.unique(folds):
        if len(set(labels[folds == fold])) == 2:
            return ""
    return "no fold has rows of both sides"


def _trainable(labels: ndarray, folds: ndarray, left_out: int) -> bool:
    """Return whether both sides keep at least 2 rows whichever folds are left out."""
    for gone in combinations(np.unique(folds), left_out):
        rest = labels[~np.isin(folds, gone)]
        if min(rest.sum(), (~rest).sum()) < 2:
            return False
    return True
