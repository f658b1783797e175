"""The device that generates: an NVIDIA GPU that PyTorch sees, or this machine's cores."""

from __future__ import annotations

from ..errors import UsageError


def on_gpu() -> bool:
    """Return whether this machine's PyTorch sees an NVIDIA GPU."""
    import torch

    return bool(torch.cuda.is_available())


def require_cpu_build() -> None:
    """Raise UsageError where PyTorch is a CUDA build that sees no GPU: vLLM fails minutes later."""
    import torch

    if torch.version.cuda is not None and not torch.cuda.is_available():
        raise UsageError(
            f"PyTorch is built for CUDA {torch.version.cuda} and sees no GPU: its driver is too "
            "old for that (nvidia-smi shows it), or CUDA_VISIBLE_DEVICES hides the GPU; mend that, "
            "or install the CPU build: export FLAVOUR=cpu, then make clean setup"
        )
