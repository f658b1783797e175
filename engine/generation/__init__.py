"""Sample → Response, on vLLM."""

from __future__ import annotations

from .architecture import check_architecture
from .arguments import COMPILED_FROM_S
from .checked import is_checked
from .device import on_gpu, require_cpu_build
from .sizing import GPU_SEQUENCES, EngineSize, size_engine
from .steered_engine import Shift, SteeredEngine
from .vllm_engine import VllmEngine

__all__ = [
    "COMPILED_FROM_S",
    "GPU_SEQUENCES",
    "EngineSize",
    "Shift",
    "SteeredEngine",
    "VllmEngine",
    "check_architecture",
    "is_checked",
    "on_gpu",
    "require_cpu_build",
    "size_engine",
]
