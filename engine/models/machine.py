"""The machine: devices, free memory, and the batches that fit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from .shape import Shape

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


def free_host_memory(root: Path = Path("/")) -> int:
    """Return the bytes that the machine has left, or the tightest group this process is in.

    Groups are control groups of version 1 or 2, as containers, Slurm and systemd make them; a limit
    holds for all groups below it. `root` is where /proc and /sys are.
    """
    import psutil

    free = int(psutil.virtual_memory().available)
    limits = [_left_in(group) for group in _memory_groups(root)]
    return max(0, min([free, *(left for left in limits if left is not None)]))


def _memory_groups(root: Path) -> Iterator[Path]:
    """Yield the folders of the groups whose memory limits hold for this process, its own first."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, name = line.split(":", 2)
        top = mounted
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            top = mounted / "memory"
        # A container may see its own group as the top, under a name that only the host has.
        parts = [part for part in Path(name).parts if part not in ("/", "..")]
        for depth in range(len(parts), -1, -1):
            yield top.joinpath(*parts[:depth])


def _left_in(group: Path) -> int | None:
    """Return the bytes a group has left, None where it has no limit or is not there."""
    names = ("memory.max", "memory.current", "inactive_file")
    if (group / "memory.limit_in_bytes").is_file():
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    try:
        limit = (group / names[0]).read_text().strip()
        taken = int((group / names[1]).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    if limit == "max":
        return None
    # Page cache gives way when asked.
    return int(limit) - taken + int(stat.get(names[2], 0))


def choose_device(requested: str) -> str:
    """Return the device to capture on: `auto` is cuda when there is one, else cpu.

    Raise UsageError for a device that is not here.
    """
    import torch

    if requested == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(requested, torch.cuda.device_count())
    return requested


def check_device(requested: str, count: int) -> None:
    """Raise UsageError for a device that no machine with so many GPUs has."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", requested):
        raise UsageError(f"`capture_device` {requested} is unknown; use auto, cpu, cuda or cuda:N")
    kind, _, index = requested.partition(":")
    if kind == "cuda" and int(index or 0) >= count:
        raise UsageError(
            f"`capture_device` {requested}: this machine shows {count} NVIDIA GPUs; use auto or cpu"
        )
