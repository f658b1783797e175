"""What is captured."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import require
from .sampling import DTYPES

POOLS = ("response_mean", "prompt_last", "prompt_mean", "response_last", "thought_mean")
DEFAULT_POOL = POOLS[0]


def check_pool(pool: str) -> None:
    """Raise UsageError for a pool that is none."""
    require(pool in POOLS, f"`pool` {pool!r} is unknown; choose from {', '.join(POOLS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSettings:
    """What is captured. A change makes a new activation set; other pools stand beside the old."""

    pools: tuple[str, ...] = (DEFAULT_POOL,)
    layers: tuple[int, ...] | None = None
    """Block indices, ascending; None is all."""
    include_embeddings: bool = False
    dtype: str = "auto"
    """Compute dtype of the pass; pooling is float32 always.

    auto: the model's own, float32 where the device does not support that.
    """
    attention: str = "auto"
    """transformers' attn_implementation; auto picks one that is right for the model family."""

    def __post_init__(self) -> None:
        require(
            self.dtype in DTYPES,
            f"`capture_dtype` {self.dtype!r} is unknown; choose from {', '.join(DTYPES)}",
        )
        require(bool(self.pools), "`pool` names at least one of " + ", ".join(POOLS))
        for pool in self.pools:
            check_pool(pool)
        require(len(set(self.pools)) == len(self.pools), "`pool` names a pool twice")
        if self.layers is not None:
            require(bool(self.layers), "`layers` names at least one layer")
            require(
                list(self.layers) == sorted(set(self.layers)) and self.layers[0] >= 0,
                f"`layers` must be ascending, 0 or more and without repeats, not "
                f"{list(self.layers)}",
            )
