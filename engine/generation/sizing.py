"""How large an engine is: sequences, batched tokens and KV cache, as arithmetic a user can read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import ResourceError
from ..models import (
    GPU_BATCHED_TOKENS,
    LENGTH_STEP,
    ModelRef,
    Placement,
    Shape,
    generation_dtype,
    read_config,
)
from ..settings import Execution

GPU_SEQUENCES = 512
CPU_SEQUENCES = 128
"""Sequences in flight under `auto`: beyond these, throughput grows little and memory much."""
CPU_BLOCK = 32
"""vLLM's CPU default of 128 tokens a block would never share a prefix as short as an instruction.
"""
_CPU_BATCHED_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class EngineSize:
    """vLLM's limits, all explicit: its defaults under AsyncLLM are made for a server, not for a
    batch."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    kv_cache_bytes: int | None
    """None leaves it to vLLM's share of the GPU."""
    gpu_share: float = 0.92
    """Of each GPU, what vLLM asks to be free at its start; 0.92 is its own default."""

    def __str__(self) -> str:
        said = f"{self.max_num_seqs} sequences of up to {self.max_model_len} tokens"
        if self.kv_cache_bytes is not None:
            said += f", KV cache {self.kv_cache_bytes / 2**30:.1f} GiB"
        return said


def size_engine(
    ref: ModelRef,
    execution: Execution,
    longest: int,
    *,
    on_gpu: bool,
    free_bytes: int,
    placement: Placement | None = None,
    dtype: str = "auto",
) -> EngineSize:
    """Return the size for prompts and responses of at most `longest` tokens together.

    On a CPU the KV cache is what all sequences may need, at most a third of the free memory; on a
    GPU it is what `placement` leaves it. Raise ResourceError when not even one sequence fits,
    UsageError for a model without sizes.
    """
    # One token more than the longest, for the self-check's question.
    wanted = -(-(longest + 1) // LENGTH_STEP) * LENGTH_STEP
    max_model_len = min(wanted, ref.context_length or wanted)
    if on_gpu:
        sequences, batched = GPU_SEQUENCES, GPU_BATCHED_TOKENS
    else:
        sequences, batched = CPU_SEQUENCES, _CPU_BATCHED_TOKENS
    sequences = execution.batch_size or sequences
    size = EngineSize(
        max_num_seqs=sequences,
        max_num_batched_tokens=max(batched, max_model_len, sequences),
        max_model_len=max_model_len,
        kv_cache_bytes=None,
    )
    if not on_gpu:
        cache = _cpu_cache(ref, sequences, max_model_len, free_bytes, dtype)
        return replace(size, kv_cache_bytes=cache)
    if placement is None:
        return size
    size = replace(size, kv_cache_bytes=placement.kv_cache_bytes)
    if placement.gpu_share:
        # vLLM asks for its share even where the cache is given: beside a model that is loading,
        # more than it takes.
        size = replace(size, gpu_share=placement.gpu_share)
    return size


def _cpu_cache(
    ref: ModelRef, sequences: int, max_model_len: int, free_bytes: int, dtype: str
) -> int:
    itemsize = 2
    if generation_dtype(read_config(ref.config), dtype, gpu=False) == "float32":
        itemsize = 4
    per_token = Shape.from_config(ref.config).kv_bytes_per_token(itemsize)
    need = sequences * (max_model_len + CPU_BLOCK) * per_token
    cache = max(min(need, free_bytes // 3), 64 << 20)
    if cache < max_model_len * per_token:
        raise ResourceError(
            f"one sequence of {max_model_len} tokens needs "
            f"{max_model_len * per_token / 2**30:.1f} GiB of cache, but only "
            f"{free_bytes / 2**30:.1f} GiB of memory is free; free some, or lower `max_new_tokens`"
        )
    return cache
