"""What `doctor` looks at where there are NVIDIA GPUs: cards, compiler, shared memory."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from traitmill.engine.errors import ResourceError, UsageError
from traitmill.engine.models import GIB, Gpu

_LEAST_SHARED = GIB // 2
"""Of /dev/shm, through which the processes of a split model talk; Docker gives 64 MiB."""


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


def _capability(name: str) -> tuple[int, int]:
    """Return (9, 0) for sm_90 or sm_90a."""
    digits = "".join(filter(str.isdigit, name))
    return int(digits[:-1]), int(digits[-1])
