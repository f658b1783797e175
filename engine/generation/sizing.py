"""How large an engine is: sequences, batched tokens and KV cache, as arithmetic a user can read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import ResourceError
from ..models import (
    GIB,
    GPU_BATCHED_TOKENS,
    ModelRef,
    Placement,
    Shape,
    common_length,
    engine_length,
    generation_dtype,
    itemsize,
    read_config,
)
from ..settings import Execution

GPU_SEQUENCES = 512
CPU_SEQUENCES = 128
"""Sequences in flight under `auto`: beyond these, throughput grows little and memory much."""
CPU_BLOCK = 32
"""Tokens a block: vLLM's default of 128 would never share a prefix as short as an instruction."""
_CPU_BATCHED_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class EngineSize:
    """vLLM's limits, all explicit: its own defaults are made for a server, not for a batch."""

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
            said += f", KV cache {self.kv_cache_bytes / GIB:.1f} GiB"
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

    On a CPU the KV cache is what all sequences may need, at most a third of the free memory over
    all workers; on a GPU it is what vLLM finds left of its share, once it has measured the rest, so
    that what nobody foresaw costs cache and not the run. Raise ResourceError when not even one
    sequence fits, UsageError for a model without sizes.
    """
    sequences, batched = CPU_SEQUENCES, _CPU_BATCHED_TOKENS
    if on_gpu:
        sequences, batched = GPU_SEQUENCES, GPU_BATCHED_TOKENS
    sequences = execution.batch_size or sequences
    if on_gpu and placement is not None and placement.limits is not None:
        sequences, batched = placement.limits.sequences, placement.limits.batched_tokens
    length = engine_length(longest)
    length = min(length, ref.context_length or length)
    if longest <= (common := common_length(ref)):
        length = min(length, common)
    size = EngineSize(sequences, max(batched, length, sequences), length, kv_cache_bytes=None)
    if not on_gpu:
        return replace(size, kv_cache_bytes=_cpu_cache(ref, size, free_bytes, dtype, execution))
    if placement is not None and placement.gpu_share:
        return replace(size, gpu_share=placement.gpu_share)
    return size


def _has_wide_states() -> bool:
    """Return whether vLLM keeps what layers carry in float32 on this CPU, whatever a config says.

    The source is `CpuPlatform.check_and_update_config`, for its accelerated gated delta net.
    """
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001 - what vLLM itself asks


def _cpu_cache(
    ref: ModelRef, size: EngineSize, free_bytes: int, dtype: str, execution: Execution
) -> int:
    """Return the bytes of cache of each worker; they hold equal parts of every token's."""
    config = read_config(ref.config)
    value = itemsize(generation_dtype(config, dtype, gpu=False))
    workers = execution.tensor_parallel_size
    shape = Shape.from_config(config)
    if shape.state is not None and _has_wide_states():
        shape = replace(shape, state=replace(shape.state, wide=True))

    def bytes_of(tokens: int) -> int:
        return shape.cache_bytes(value, tokens, workers, CPU_BLOCK)

    empty = shape.state_block(value, workers, CPU_BLOCK)
    need = size.max_num_seqs * bytes_of(size.max_model_len + CPU_BLOCK) + empty
    cache = max(min(need, free_bytes // (3 * workers)), 64 << 20)
    least = bytes_of(size.max_model_len) + empty
    if cache < least:
        raise ResourceError(
            f"one sequence of {size.max_model_len} tokens needs {least / GIB:.1f} GiB of cache, "
            f"but only {free_bytes / GIB:.1f} GiB of memory is free; free some, or lower "
            "`max_new_tokens`"
        )
    return cache
