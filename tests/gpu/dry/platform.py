"""vLLM's CUDA build made to believe in cards of a kind: its choices can be asked, no kernel runs."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from traitmill.engine.planning import CARDS


@dataclass(slots=True)
class _Machine:
    card: Any = CARDS[0]
    count: int = 1


_machine = _Machine()
"""What the stand-in says there is. vLLM's modules keep the platform they were imported with."""


def show(name: str, count: int) -> None:
    """Let the machine have so many cards of a kind from now on."""
    _machine.card = next(card for card in CARDS if card.name == name)
    _machine.count = count


def _properties() -> SimpleNamespace:
    major, minor = _machine.card.capability
    name, total = f"NVIDIA {' '.join(_machine.card.words)}", int(_machine.card.total)
    sizes = {"total_memory": total, "multi_processor_count": 108}
    return SimpleNamespace(major=major, minor=minor, name=name, **sizes)


def install() -> None:
    """Put the stand-in in the driver's place. Before anything else of vLLM is imported."""
    import torch
    from vllm import platforms
    from vllm.platforms import cuda
    from vllm.platforms.interface import DeviceCapability

    class Fake(cuda.NvmlCudaPlatform):  # type: ignore[misc] - its base is chosen at run time
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> Any:
            return DeviceCapability(*_machine.card.capability)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return f"NVIDIA {' '.join(_machine.card.words)}"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return int(_machine.card.total)

        @classmethod
        def get_device_uuid(cls, device_id: int = 0) -> str:
            return f"GPU-{device_id}"

        @classmethod
        def device_count(cls) -> int:
            return _machine.count

        @classmethod
        def is_fully_connected(cls, physical_device_ids: list[int]) -> bool:
            return True

        @classmethod
        def num_compute_units(cls, device_id: int = 0) -> int:
            return 108

        @classmethod
        def is_integrated_gpu(cls, device_id: int = 0) -> bool:
            return False

        @classmethod
        def log_warnings(cls) -> None:
            pass

    platforms._current_platform = Fake()
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: _machine.count
    # what the product asks of it where nvidia-smi is missing, as here
    torch.cuda.mem_get_info = lambda _=0: (_machine.card.total, _machine.card.total)
    torch.cuda.get_device_properties = lambda _=0: _properties()
