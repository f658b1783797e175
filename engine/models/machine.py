"""The machine: devices, free memory, and the batches that fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from .config import Shape

GIB = 1 << 30
CPU_TOKENS = 1024
"""Padded tokens of a CPU batch: the fastest of 256 to 4,096 (python -m benchmarks.capture)."""
GPU_TOKENS = 16384
"""Padded tokens of a GPU batch: more fills the matrix units no better. Untested on GPU."""
LEAST_TOKENS = 256
"""The arithmetic is an estimate: below this, memory itself decides."""
_CPU_SHARE = 0.25
_GPU_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """How many padded tokens a capture batch may hold, and why."""

    tokens: int
    line: str


def token_budget(shape: Shape, itemsize: int, free: int, *, gpu: bool) -> TokenBudget:
    """Return the capture budget for `free` bytes of memory beside the weights."""
    share, cap = (_GPU_SHARE, GPU_TOKENS) if gpu else (_CPU_SHARE, CPU_TOKENS)
    per_token = shape.block_bytes_per_token(itemsize)
    fits = int(free * share / per_token)
    tokens = max(LEAST_TOKENS, min(fits, cap))
    why = "all that fits"
    if fits > cap:
        why = f"capped at {cap:,}, where speed levels off"
    elif fits < LEAST_TOKENS:
        why = f"{tokens} are tried all the same, and halved where they do not fit"
    line = (
        f"capture batches of {tokens:,} tokens: {share:.0%} of {free / GIB:.1f} GiB free at "
        f"{per_token / 1024:.0f} KiB a token would hold {fits:,}; {why}"
    )
    if gpu:
        line += "; untested on GPU"
    return TokenBudget(tokens, line)


def free_host_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that the machine has left, or the container (cgroup v2) of this process."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        taken = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:
        return free
    if limit == "max":
        return free
    # Page cache gives way when asked.
    return max(0, min(free, int(limit) - taken + int(stat.get("inactive_file", 0))))


def choose_device(requested: str) -> str:
    """Return the device to capture on: `auto` is cuda when there is one, else cpu.

    Raise UsageError for a device that is not here.
    """
    import torch

    if requested == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(requested)
    except RuntimeError:
        raise UsageError(
            f"`capture_device` {requested} is unknown; use auto, cpu, cuda or cuda:N"
        ) from None
    here = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= here:
        raise UsageError(
            f"`capture_device` {requested}: this machine shows {here} NVIDIA GPUs; use auto or cpu"
        )
    return requested
