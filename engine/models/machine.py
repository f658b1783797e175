"""The machine: devices, free memory, and the batches that fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from .config import Shape

GIB = 1 << 30

CPU_TOKENS = 1024
"""Padded tokens of a CPU batch: the fastest of 256 to 4,096 (`python -m benchmarks.capture
`budgets``)."""
GPU_TOKENS = 16384
"""Padded tokens of a GPU batch: more fills the matrix units no better. Untested on GPU."""
_LEAST_TOKENS = 256
"""Smaller batches are slow, and the arithmetic is no more than an estimate: below this, memory
itself decides."""
_CPU_SHARE = 0.25
_GPU_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """How many padded tokens a capture batch may hold, and why."""

    tokens: int
    line: str


def token_budget(shape: Shape, itemsize: int, free: int, *, gpu: bool) -> TokenBudget:
    """The capture budget for `free` bytes of memory beside the weights."""
    share, cap = (_GPU_SHARE, GPU_TOKENS) if gpu else (_CPU_SHARE, CPU_TOKENS)
    per_token = shape.block_bytes_per_token(itemsize)
    fits = int(free * share / per_token)
    tokens = max(_LEAST_TOKENS, min(fits, cap))
    why = f"capped at {cap:,}, where speed levels off" if fits > cap else "all that fits"
    if fits < _LEAST_TOKENS:
        why = f"{tokens} are tried all the same, and halved where they do not fit"
    line = (
        f"capture batches of {tokens:,} tokens: {share:.0%} of {free / GIB:.1f} GiB free at "
        f"{per_token / 1024:.0f} KiB "
        f"a token would hold {fits:,}; {why}" + ("; untested on GPU" if gpu else "")
    )
    return TokenBudget(tokens, line)


def free_host_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes this process may still take: what the machine has, or what its container leaves."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        if limit != "max":
            taken = int((cgroup / "memory.current").read_text())
            stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
            free = min(
                free, int(limit) - taken + int(stat.get("inactive_file", 0))
            )  # page cache gives way when asked
    except OSError:  # no cgroup v2 here: the machine's own number stands
        pass
    return max(0, free)


def gpu_memory() -> list[int]:
    """Bytes of each NVIDIA GPU, taken or not."""
    import torch

    return [
        int(torch.cuda.get_device_properties(i).total_memory)
        for i in range(torch.cuda.device_count())
    ]


def choose_device(requested: str) -> str:
    """`auto` is cuda when there is one, else cpu. Raises UsageError for a device that is not here."""
    import torch

    if requested == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(requested)
    except RuntimeError:
        raise UsageError(
            f"`capture_device` {requested} is unknown; use auto, cpu, cuda or cuda:N"
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"`capture_device` {requested}: this machine shows {torch.cuda.device_count()} NVIDIA "
            f"GPUs; use auto or cpu"
        )
    return requested
