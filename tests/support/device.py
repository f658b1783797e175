"""What the tests take of this machine's device: decided here once, for CPUs and GPUs."""

from __future__ import annotations

from typing import Any

from traitmill.engine.generation import EngineSize, on_gpu, size_engine
from traitmill.engine.models import GIB, ModelRef, Placement, fast_bfloat16
from traitmill.engine.settings import Execution

GPU_SHARE = 0.2
"""Of a card: what a test's engine may take, so that a judge's server and capture stay beside it."""
GPU_TOLERANCE = {"rtol": 2e-2, "atol": 2e-2}
"""bfloat16 rows on a GPU move with the batch they are in, by some of its steps of 1/256. A guess
until a card has been measured."""


def engine_size(ref: ModelRef, execution: Execution, longest: int) -> EngineSize:
    """Return the size of a small test engine on this machine's device."""
    placement = Placement("co-resident", "", "cuda", kv_cache_bytes=GIB, gpu_share=GPU_SHARE)
    return size_engine(
        ref, execution, longest, on_gpu=on_gpu(), free_bytes=4 * GIB, placement=placement
    )


def serve_arguments(*, gpu: bool) -> list[str]:
    """Return what `vllm serve` is told, so that it shares the device with what is under test."""
    if gpu:
        return ["--gpu-memory-utilization", str(GPU_SHARE)]
    return [] if fast_bfloat16("cpu") else ["--dtype", "float32"]


def same_batch_tolerance(*, gpu: bool) -> dict[str, Any]:
    """Return how closely the same rows, captured again in other batches, must agree."""
    return GPU_TOLERANCE if gpu else {"rtol": 1e-5, "atol": 1e-5}
