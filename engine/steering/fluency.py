"""How coherent a response is where no judge at an endpoint can say: by the model's own likelihood.

The unsteered model gives each response a mean log-probability a token, after the bare question. Its
own unsteered answers are 100, the same answers with their tokens in random order are 0, and what
lies between is placed in proportion. A text that repeats itself is likely and yet not coherent, so
a response is at most as good as the share of its three-token sequences that are distinct, against
that of the unsteered answers. The scale is the model's own: not comparable between models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ORDER = 3


@dataclass(frozen=True, slots=True)
class Scale:
    """What 100 and 0 are, as means over unsteered answers."""

    own: float
    """Log-probability a token of the answers."""
    shuffled: float
    """Of the same with their tokens in random order."""
    distinct: float
    """Share of distinct three-token sequences."""

    def score(self, logprob: float, token_ids: Sequence[int]) -> float:
        """Return 0 to 100, two decimals; NaN where the scale has no length or is not known."""
        length = self.own - self.shuffled
        if not length > 0 or not self.distinct > 0:
            return float("nan")
        likely = (logprob - self.shuffled) / length
        varied = distinct_share(token_ids) / self.distinct
        return round(100 * float(np.clip(min(likely, varied), 0, 1)), 2)


def make_scale(
    own: Sequence[float], shuffled: Sequence[float], texts: Sequence[Sequence[int]]
) -> Scale:
    """Return the scale of unsteered answers `texts`; of NaN where there are none."""
    if not own or not shuffled:
        return Scale(float("nan"), float("nan"), float("nan"))
    distinct = [distinct_share(token_ids) for token_ids in texts]
    return Scale(float(np.mean(own)), float(np.mean(shuffled)), float(np.mean(distinct)))


def distinct_share(token_ids: Sequence[int]) -> float:
    """Return the share of distinct sequences of three tokens; 1 for texts too short for two."""
    count = len(token_ids) - _ORDER + 1
    if count < 2:
        return 1.0
    return len({tuple(token_ids[i : i + _ORDER]) for i in range(count)}) / count


def shuffled(token_ids: Sequence[int], seed: int) -> tuple[int, ...]:
    """Return the same tokens in another order, ever the same for a seed."""
    order = np.random.default_rng(seed).permutation(len(token_ids))
    return tuple(int(token_ids[i]) for i in order)
