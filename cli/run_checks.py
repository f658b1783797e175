"""What `doctor` says of a run: room for the weights, and what `run` would do with the machine."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traitmill.engine.errors import ResourceError

if TYPE_CHECKING:
    from traitmill.engine.models import Gpu, ModelRef
    from traitmill.engine.planning import Job
    from traitmill.engine.settings import RunSettings

_HALF = 2
"""Bytes of a value as weights are published."""
_INDEXES = ("model.safetensors.index.json", "model.safetensors")
_GIB = 1 << 30


def check_weight_disk(ref: ModelRef) -> str:
    """Return where the weights are, or that there is room for them; raise ResourceError.

    A hub model that is not in the cache is downloaded by the run.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    from traitmill.engine.models import Shape

    if ref.is_local:
        return "the weights are in the model's folder"
    for name in _INDEXES:
        if isinstance(try_to_load_from_cache(ref.name, name, revision=ref.revision), str):
            return f"the weights, or a part of them, are in {constants.HF_HUB_CACHE}"
    needed = Shape.from_config(ref.config).weight_bytes(_HALF)
    cache = Path(constants.HF_HUB_CACHE)
    folder = next(path for path in (cache, *cache.parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    said = f"{needed / _GIB:.1f} GiB of weights to download, {free / _GIB:.1f} GiB free in {folder}"
    if free < needed:
        raise ResourceError(f"{said}: free some, or set HF_HOME to a larger disk")
    return said


def foretell(ref: ModelRef, settings: RunSettings, gpus: Sequence[Gpu], job: Job) -> str:
    """Return what `run` would do: which cards, how much of them, how long.

    No cards: this machine's CPU. Raise ResourceError where the cards cannot hold the model.
    """
    from traitmill.engine.generation import GPU_SEQUENCES
    from traitmill.engine.models import emptiest_first
    from traitmill.engine.planning import plan_run

    if not gpus:
        return "generation on all cores first, capture after it; the first rows will show the speed"
    placement = _place(ref, settings, emptiest_first(gpus), job, GPU_SEQUENCES)
    plan = plan_run(ref.name, ref.config, settings, placement, job)
    return f"{plan.where()}; {plan.memory()}; {plan.time()}"


def _place(
    ref: ModelRef, settings: RunSettings, gpus: Sequence[Gpu], job: Job, sequences: int
) -> Any:
    from traitmill.engine.models import choose_placement

    return choose_placement(
        ref.config,
        settings,
        gpu=True,
        engine=True,
        capture=job.captures,
        sequences=settings.execution.batch_size or sequences,
        tokens_per_sequence=job.tokens_per_sequence,
        cards=gpus,
    )
