"""The NVIDIA GPUs of this machine, as its driver reports them: no CUDA context is made."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_FIELDS = "index,uuid,name,memory.total,memory.free,compute_cap,driver_version,mig.mode.current"
_TIMEOUT_S = 30.0
"""A driver without its persistence daemon takes seconds to wake all cards."""
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card: sizes in bytes, `free` as it was when the driver was asked."""

    index: int
    """The driver's number, in the order of the bus."""
    total: int
    free: int
    name: str = ""
    uuid: str = ""
    capability: tuple[int, int] = (0, 0)
    driver: str = ""
    sliced: bool = False
    """Whether it is in slices (MIG), of which a process has one: then sizes are not the card's."""


def read_gpus() -> list[Gpu]:
    """Return the cards this process may use, in the order of CUDA_VISIBLE_DEVICES or the bus.

    Where nvidia-smi does not know them (none is installed, a slice of a card is visible), PyTorch
    is asked, which takes a context of some hundred MiB on each.
    """
    found = _visible(_from_driver(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if found is None or any(gpu.sliced for gpu in found):
        return _from_torch()
    return found


def emptiest_first(gpus: Sequence[Gpu]) -> list[Gpu]:
    """Return cards by free memory in tenths of the largest, the order given deciding among equals.

    Those that `show_only` cannot show in another order stay in theirs.
    """
    if not all(gpu.uuid for gpu in gpus):
        return list(gpus)
    largest = max((gpu.total for gpu in gpus), default=1)
    return sorted(gpus, key=lambda gpu: -(gpu.free * 10 // largest))


def show_only(gpus: Sequence[Gpu]) -> None:
    """Let processes started from now on see these cards alone, in this order.

    Cards the driver did not name (slices of one, or nvidia-smi is missing) stay as they are.
    """
    if not all(gpu.uuid for gpu in gpus):
        return
    # By default CUDA numbers the fastest card first, and the driver by the bus.
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu.index) for gpu in gpus)


def number_here(gpu: Gpu) -> int:
    """Return the number that CUDA gives a card in this process: by default the fastest has 0."""
    import torch

    for number in range(torch.cuda.device_count()):
        uuid = str(torch.cuda.get_device_properties(number).uuid).removeprefix("GPU-")
        if gpu.uuid.removeprefix("GPU-") == uuid:
            return number
    return gpu.index  # one that PyTorch named


def _from_driver() -> list[Gpu]:
    """Return all cards of the machine, none where nvidia-smi is missing or does not answer."""
    command = ["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(  # noqa: S603 - no part of it comes from outside
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        ).stdout
        return [_gpu(line) for line in said.splitlines() if line.strip()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _gpu(line: str) -> Gpu:
    parts = (part.strip() for part in line.split(","))
    index, uuid, name, total, free, capability, driver, slices = parts
    major, minor = capability.split(".")
    return Gpu(
        index=int(index),
        total=int(total) * _MIB,
        free=int(free) * _MIB,
        name=name,
        uuid=uuid,
        capability=(int(major), int(minor)),
        driver=driver,
        sliced=slices == "Enabled",  # else Disabled, or [N/A] on cards that cannot be sliced
    )


def _visible(gpus: Sequence[Gpu], names: str | None) -> list[Gpu] | None:
    """Return the cards that CUDA_VISIBLE_DEVICES names, None where one is not among `gpus`."""
    if not gpus:
        return None
    if names is None:
        return list(gpus)
    chosen = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        same = [gpu for gpu in gpus if name == str(gpu.index)]
        if not same and name.startswith("GPU-"):
            same = [gpu for gpu in gpus if gpu.uuid.startswith(name)]
        if not same:
            return None
        chosen.append(same[0])
    return chosen


def _from_torch() -> list[Gpu]:
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        properties = torch.cuda.get_device_properties(index)
        capability = (int(properties.major), int(properties.minor))
        found.append(Gpu(index, int(total), int(free), str(properties.name), "", capability))
    return found
