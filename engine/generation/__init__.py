"""Sample → Response, on vLLM."""

from __future__ import annotations

from .sizing import GPU_SEQUENCES, EngineSize, size_engine
from .steered_engine import Shift, SteeredEngine
from .vllm_engine import VllmEngine, is_checked, on_gpu, require_cpu_build

__all__ = [
    "GPU_SEQUENCES",
    "EngineSize",
    "Shift",
    "SteeredEngine",
    "VllmEngine",
    "is_checked",
    "on_gpu",
    "require_cpu_build",
    "size_engine",
]
