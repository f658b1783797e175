"""Whether a model can be split over several workers, as vLLM's tensor parallelism deals it out."""

from __future__ import annotations

import os

from ..errors import UsageError
from .hub import ModelRef
from .shape import Shape

_MOST = 64


def check_split(ref: ModelRef, workers: int) -> None:
    """Raise UsageError where the heads of a model cannot be dealt out evenly over `workers`."""
    if workers == 1:
        return
    shape = Shape.from_config(ref.config)
    if divides(shape, workers):
        return
    fit = [str(n) for n in range(1, _MOST + 1) if divides(shape, n)]
    raise UsageError(
        f"`tensor_parallel_size` {workers}: model {ref.name} has {shape.heads} attention heads and "
        f"{shape.kv_heads} key-value heads and a feed-forward width of {shape.ffn:,}, which "
        f"{workers} workers cannot share evenly; use {' or '.join(fit)}"
    )


def cores() -> int:
    """Return the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def divides(shape: Shape, workers: int) -> bool:
    """Return whether a model can be dealt out evenly over so many workers."""
    # vLLM's rules: query heads and the feed-forward width are dealt out, key-value heads too, or
    # repeated where there are more workers than heads. It pads the vocabulary.
    widest, narrowest = max(shape.kv_heads, workers), min(shape.kv_heads, workers)
    return (
        shape.heads % workers == 0
        and widest % narrowest == 0
        and (shape.experts or shape.ffn % workers == 0)
    )
