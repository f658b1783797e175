"""Who gets which device: generation and capture of one model on one machine, as arithmetic a user
can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..settings import RunSettings
from .config import Shape, computes_bfloat16, dtype_on, generation_itemsize, read_config
from .machine import CPU_TOKENS, GIB, GPU_TOKENS, choose_device, gpu_memory

GPU_BATCHED_TOKENS = 8192
"""Tokens of an engine's step at most: more fills the matrix units no better, and its activations
grow with them."""
_ENGINE_BASE = 3 * GIB // 2
"""What vLLM takes for context, graphs and libraries; another 1 GiB where GPUs talk to each other.
An assumption."""
_LOGIT_BYTES = 8
"""Of a sequence and word: 16-bit logits, their scaled copy, and the float32 copy that is sampled
from."""
CONTEXT_OVERHEAD = 1 * GIB
"""What one more CUDA process takes before its first tensor, libraries included. An assumption;
untested on GPU."""
_USABLE = 0.95
LENGTH_STEP = 256
"""The engine's longest sequence is a multiple of it."""
_PROMPT_LOGPROBS_ROWS = 512
"""vLLM computes a prompt's log-probabilities in chunks that take as much as so many sequences'
logits."""
_SPARE_TOKENS = 64
"""Blocks vLLM wants beside the longest sequence's: one that stays empty, and one of each kind of
layer."""

Mode = Literal["alone", "apart", "co-resident", "in turn"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where capture runs beside vLLM, which has the first GPUs, and what each may take of a shared
    one."""

    mode: Mode
    """alone: no engine is loaded. apart: capture has a device to itself. co-resident: both are
    loaded and run side by side. in turn: generation ends and leaves before capture is loaded."""
    line: str
    capture_device: str
    kv_cache_bytes: int | None = None
    """Of each GPU, where it is shared at the same time; None leaves it to vLLM."""
    gpu_share: float | None = None
    """Of each GPU, what vLLM may ask to be free at its start, weights and KV cache included; None
    is its default."""
    capture_tokens: int | None = None
    """Of a batch, where vLLM is loaded too; None lets capture see what is free."""


def engine_overhead(shape: Shape, sequences: int, tensor_parallel: int, itemsize: int) -> int:
    """Bytes of a GPU that vLLM takes beside weights and KV cache, while it runs. An estimate;
    untested on GPU."""
    activations = (
        GPU_BATCHED_TOKENS * (2 * shape.ffn // tensor_parallel + 6 * shape.hidden) * itemsize
    )
    logits = max(sequences, _PROMPT_LOGPROBS_ROWS) * shape.vocab * _LOGIT_BYTES
    return _ENGINE_BASE + (GIB if tensor_parallel > 1 else 0) + activations + logits


def place_on_gpus(
    shape: Shape,
    *,
    totals: Sequence[int],
    tensor_parallel: int,
    capture_device: str,
    itemsize: int,
    capture_itemsize: int,
    sequences: int,
    tokens_per_sequence: int,
) -> Placement:
    """Decide how GPUs of `totals` bytes, otherwise empty, serve generation and capture of the same
    model.

    vLLM splits weights and KV cache over the first `tensor_parallel`. Capture goes where
    `capture_device` says; `auto` is the first GPU that vLLM leaves free, if it holds the model,
    else all GPUs, weights spread evenly. `sequences` of `tokens_per_sequence` (prompt and response)
    are wanted in flight; a quarter of them is the least that co-residence is worth. What neither
    needs of a shared GPU goes to capture batches.
    """
    per_token = shape.block_bytes_per_token(capture_itemsize)
    all_weights = shape.weight_bytes(capture_itemsize)
    least_batch = CPU_TOKENS * per_token
    spare = next(
        (
            i
            for i, total in enumerate(totals)
            if i >= tensor_parallel
            and all_weights + CONTEXT_OVERHEAD + least_batch <= int(total * _USABLE)
        ),
        None,
    )
    if capture_device == "auto":
        capture_device = "cuda" if spare is None else f"cuda:{spare}"
    kind, _, index = capture_device.partition(":")
    if kind != "cuda" or (index and int(index) >= tensor_parallel):
        line = f"generation on {_gpus(tensor_parallel)}, capture on {capture_device} beside it; untested on GPU"
        return Placement("apart", line, capture_device)
    over = 1 if index else len(totals)
    usable = int(min(totals) * _USABLE)
    weights, capture_weights = shape.weight_bytes(itemsize) // tensor_parallel, all_weights // over
    kv = sequences * tokens_per_sequence * shape.kv_bytes_per_token(itemsize) // tensor_parallel
    longest = -(-(tokens_per_sequence + 1) // LENGTH_STEP) * LENGTH_STEP
    # vLLM does not start with a cache that one sequence of the engine's length does not fit in.
    least_kv = (longest + _SPARE_TOKENS) * shape.kv_bytes_per_token(itemsize) // tensor_parallel
    kv = max(kv, least_kv)
    overhead = engine_overhead(shape, sequences, tensor_parallel, itemsize)
    engine, capture = weights + overhead, capture_weights + CONTEXT_OVERHEAD + least_batch
    sums = (
        f"{usable / GIB:.1f} GiB usable a GPU; generation on {_gpus(tensor_parallel)}: "
        f"{weights / GIB:.1f} weights "
        f"+ {overhead / GIB:.1f} engine + {kv / GIB:.1f} KV; capture on {_gpus(over)}: "
        f"{capture_weights / GIB:.1f} weights + {CONTEXT_OVERHEAD / GIB:.1f} context + "
        f"{least_batch / GIB:.1f} batch; "
        "untested on GPU"
    )
    if engine + capture + max(kv // 4, least_kv) <= usable:
        room = usable - engine - capture
        # Batches of eight times the least, as long as the cache keeps half of what it wants.
        roomy = min(7 * least_batch, max(0, room - max(kv // 2, least_kv)))
        kv_given = min(kv, room - roomy)
        tokens = min(GPU_TOKENS, CPU_TOKENS + (room - kv_given) // per_token)
        share = (engine + kv_given) / min(totals)
        return Placement(
            "co-resident", f"co-resident: {sums}", capture_device, kv_given, share, tokens
        )
    return Placement("in turn", f"generation first, capture after it: {sums}", capture_device)


def _gpus(count: int) -> str:
    return "one GPU" if count == 1 else f"{count} GPUs"


def choose_placement(
    config: Mapping[str, Any],
    settings: RunSettings,
    *,
    gpu: bool,
    engine: bool,
    sequences: int,
    tokens_per_sequence: int,
) -> Placement:
    """Where a run's capture goes: `gpu` says whether there is one, `engine` whether vLLM loads the
    same model.

    Looks at the GPUs and at free host memory. Raises UsageError for a model, dtype or device that
    cannot work.
    """
    device = settings.execution.capture_device
    if not engine:
        return Placement("alone", "", device)
    if not gpu:  # sharing the cores gains nothing
        return Placement("in turn", "generation on all cores first, capture after it", device)
    read, kind = read_config(config), choose_device(device).partition(":")[0]
    capture_dtype = dtype_on(read, settings.capture.dtype, kind)
    return place_on_gpus(
        Shape.from_config(read),
        totals=gpu_memory(),
        tensor_parallel=settings.execution.tensor_parallel_size,
        capture_device=device,
        itemsize=generation_itemsize(
            read, settings.sampling.dtype, bfloat16=computes_bfloat16("cuda")
        ),
        capture_itemsize=4 if capture_dtype == "float32" else 2,
        sequences=sequences,
        tokens_per_sequence=tokens_per_sequence,
    )
