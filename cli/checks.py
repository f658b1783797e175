"""What `doctor` says of a machine and of a run on it: cards, compiler, shared memory, room for the
weights, and what `run` would do with all that."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from traitmill.engine.errors import ResourceError, UsageError
from traitmill.engine.models import GIB, Shape, choose_placement, count_weights, emptiest_first

if TYPE_CHECKING:
    from traitmill.engine.models import Gpu, ModelRef
    from traitmill.engine.planning import Job
    from traitmill.engine.settings import RunSettings

_LEAST_SHARED = GIB // 2
"""Of /dev/shm, through which the processes of a split model talk; Docker gives 64 MiB."""
_HALF = 2
"""Bytes of a value as weights are published."""
_INDEXES = ("model.safetensors.index.json", "model.safetensors")


def describe_gpus(gpus: Sequence[Gpu]) -> str:
    """Return a line of all cards with what is free on them.

    Raise UsageError for one that the installed PyTorch has no code for.
    """
    import torch

    built = [_capability(name) for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    for gpu in gpus:
        if built and gpu.capability < min(built):
            oldest = ".".join(map(str, min(built)))
            raise UsageError(
                f"GPU {gpu.index}, {gpu.name}, has compute capability "
                f"{'.'.join(map(str, gpu.capability))}, and the installed PyTorch needs {oldest}; "
                "hide it with CUDA_VISIBLE_DEVICES or take another card"
            )
    driver = next((f", driver {gpu.driver}" for gpu in gpus if gpu.driver), "")
    cards = "; ".join(
        f"GPU {gpu.index} {gpu.name}, {gpu.free / GIB:.0f} of {gpu.total / GIB:.0f} GiB free"
        for gpu in gpus
    )
    return f"{cards}{driver}"


def check_compiler() -> str:
    """Return where compiler and headers are; raise UsageError where one is missing.

    vLLM and Triton compile kernels at their first start.
    """
    compiler = shutil.which(os.environ.get("CC") or "gcc") or shutil.which("cc")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if compiler is None:
        raise UsageError("no C compiler, and vLLM compiles at its start: apt install gcc")
    if not headers.is_file():
        version = sysconfig.get_python_version()
        raise UsageError(
            f"{headers} is missing, and vLLM compiles at its start: apt install python{version}-dev"
        )
    return f"{compiler}, {headers}"


def check_shared_memory(
    gpus: Sequence[Gpu],
    folder: Path = Path("/dev/shm"),  # noqa: S108 - looked at
) -> str:
    """Return the size of shared memory; raise ResourceError where several GPUs need more."""
    total = shutil.disk_usage(folder).total if folder.is_dir() else 0
    line = f"{total / GIB:.1f} GiB in {folder}"
    if len(gpus) > 1 and total < _LEAST_SHARED:
        raise ResourceError(
            f"only {line}: a model split over GPUs needs {_LEAST_SHARED / GIB:.1f} GiB; start the "
            "container with --shm-size=8g or --ipc=host"
        )
    return line


def check_weight_disk(ref: ModelRef) -> str:
    """Return where the weights are, or that there is room for them; raise ResourceError.

    A hub model that is not in the cache is downloaded by the run.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if ref.is_local:
        return "the weights are in the model's folder"
    for name in _INDEXES:
        if isinstance(try_to_load_from_cache(ref.name, name, revision=ref.revision), str):
            return f"the weights, or a part of them, are in {constants.HF_HUB_CACHE}"
    stored = count_weights(ref)
    needed = stored.n_bytes if stored else Shape.from_config(ref.config).weight_bytes(_HALF)
    cache = Path(constants.HF_HUB_CACHE)
    folder = next(path for path in (cache, *cache.parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    said = f"{needed / GIB:.1f} GiB of weights to download, {free / GIB:.1f} GiB free in {folder}"
    if free < needed:
        raise ResourceError(f"{said}: free some, or set HF_HOME to a larger disk")
    return said


def foretell(ref: ModelRef, settings: RunSettings, gpus: Sequence[Gpu], job: Job) -> str:
    """Return what `run` would do: which cards, how much of them, how long.

    No cards: this machine's CPU. Raise ResourceError where the cards cannot hold the model.
    """
    from traitmill.engine.generation import GPU_SEQUENCES
    from traitmill.engine.planning import plan_run

    if not gpus:
        return "generation on all cores first, capture after it; the first rows will show the speed"
    placement = choose_placement(
        ref.config,
        settings,
        gpu=True,
        engine=True,
        capture=job.captures,
        sequences=settings.execution.batch_size or GPU_SEQUENCES,
        tokens_per_sequence=job.tokens_per_sequence,
        cards=emptiest_first(gpus),
        stored=count_weights(ref),
    )
    plan = plan_run(ref.name, ref.config, settings, placement, job)
    return f"{plan.where()}; {plan.memory()}; {plan.time()}"


def _capability(name: str) -> tuple[int, int]:
    """Return (9, 0) for sm_90 or sm_90a."""
    digits = "".join(filter(str.isdigit, name))
    return int(digits[:-1]), int(digits[-1])
