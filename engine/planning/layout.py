"""How a model lies on some cards: replicas, the split of each, and the memory of its cards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ResourceError
from ..models import (
    CPU_TOKENS,
    Gpu,
    Placement,
    Shape,
    Stored,
    capture_bytes,
    choose_placement,
    divides,
    engine_overhead,
    generation_itemsize,
    read_config,
)
from ..settings import RunSettings
from .job import Job

_VLLMS_SHARE = 0.92
SPLITS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Layout:
    """Replicas of a model, each on cards of its own."""

    replicas: int
    """Of all machines together."""
    tensor_parallel: int
    placement: Placement
    """Of the first replica; the others are like it."""
    gpus: tuple[Gpu, ...]
    """Of the first replica, in the order of its placement."""
    shape: Shape
    itemsize: int
    """Of a value in generation."""
    capture_itemsize: int
    sequences: int
    """That run at once in each replica: what the limits and the cache allow."""
    weights: int
    """Bytes of a card, and so for the rest."""
    overhead: int
    cache: int
    capture: int
    """Of the card that captures: weights, context and the least batch; 0 where none does."""

    @property
    def taken(self) -> int:
        """Return the most that a card of a replica holds at once."""
        engine = self.weights + self.overhead + self.cache
        if self.placement.mode == "co-resident":
            return engine + self.capture
        return max(engine, self.capture)


def layouts(
    config: Mapping[str, Any],
    settings: RunSettings,
    gpus: Sequence[Gpu],
    job: Job,
    sequences: int,
    splits: Sequence[int] = SPLITS,
    machines: int = 1,
    stored: Stored | None = None,
) -> Iterator[Layout | ResourceError]:
    """Yield each way to use all cards of machines that have `gpus` each, or why it cannot be.

    A replica has as many cards as it is split over, all of one machine; where that leaves one
    replica, or one of its cards is named for capture, it sees all cards. Cards that hold less than
    the first replica takes stay idle. `sequences` are wanted at once. Raise UsageError for a model,
    dtype or device that cannot work.
    """
    shape = Shape.from_config(read_config(config))
    named = ":" in settings.execution.capture_device
    for split in splits:
        if split > len(gpus) or not divides(shape, split):
            continue
        replicas = 1 if named else len(gpus) // split
        seen = gpus[:split] if replicas * machines > 1 and not named else gpus
        execution = replace(settings.execution, tensor_parallel_size=split)
        try:
            placement = choose_placement(
                config,
                replace(settings, execution=execution),
                gpu=True,
                engine=True,
                capture=job.captures,
                sequences=sequences,
                tokens_per_sequence=job.tokens_per_sequence,
                cards=seen,
                stored=stored,
            )
        except ResourceError as error:
            yield error
            continue
        found = layout(config, placement, settings, job, split)
        starts = range(0, replicas * split, split)
        alike = [min(gpu.free for gpu in gpus[at : at + split]) >= found.taken for at in starts]
        # The first is as it was placed, be it that a share of its memory is more than is free.
        found = replace(found, replicas=max(1, sum(alike)) * machines)
        if found.sequences:
            yield found
        else:
            yield ResourceError(
                f"a split over {split} leaves no room for the cache of one sequence beside "
                f"{found.weights / 2**30:.1f} GiB of weights a GPU; take more or larger GPUs"
            )


def layout(
    config: Mapping[str, Any],
    placement: Placement,
    settings: RunSettings,
    job: Job,
    tensor_parallel: int,
    replicas: int = 1,
) -> Layout:
    """Return what a placement of generation means in bytes of a card and sequences."""
    read = read_config(config)
    shape = placement.shape
    engines = placement.gpus[:tensor_parallel]
    limits = placement.limits
    assert limits is not None and shape is not None  # noqa: S101, PT018 - GPUs have both
    itemsize = generation_itemsize(read, settings.sampling.dtype, engines)
    weights = shape.weight_bytes(itemsize) // tensor_parallel
    overhead = engine_overhead(
        shape, limits.sequences, tensor_parallel, itemsize, limits.batched_tokens
    )
    cache = placement.kv_cache_bytes
    if cache is None:
        share = placement.gpu_share or _VLLMS_SHARE
        cache = min(int(gpu.total * share) for gpu in engines) - weights - overhead
    cache = max(0, cache)
    each = shape.cache_bytes(itemsize, int(job.tokens_per_sequence), tensor_parallel)
    running = min(limits.sequences, cache // each)
    capture = 0
    if job.captures and placement.capture_device != "cpu":
        over = 1 if ":" in placement.capture_device else len(placement.gpus)
        whole = capture_bytes(shape, placement.capture_itemsize, CPU_TOKENS)
        capture = whole - shape.weight_bytes(placement.capture_itemsize) * (over - 1) // over
    return Layout(
        replicas=replicas,
        tensor_parallel=tensor_parallel,
        placement=placement,
        gpus=placement.gpus,
        shape=shape,
        itemsize=itemsize,
        capture_itemsize=placement.capture_itemsize,
        sequences=running,
        weights=weights,
        overhead=overhead,
        cache=cache,
        capture=capture,
    )
