"""Who gets which device: generation and capture of one model on one machine, as arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..settings import RunSettings
from .config import OVERFLOWS_FLOAT16, Shape, computes_bfloat16, dtype_on, itemsize, read_config
from .machine import CPU_TOKENS, GIB, GPU_TOKENS, choose_device, gpu_memory

GPU_BATCHED_TOKENS = 8192
"""Tokens of an engine's step at most: more fills the matrix units no better, and its activations
grow with them."""
CONTEXT_OVERHEAD = 1 * GIB
"""What one more CUDA process takes before its first tensor, libraries included. An assumption."""
_ENGINE_BASE = 3 * GIB // 2
"""What vLLM takes for context, graphs and libraries; another 1 GiB where GPUs talk to each other.
An assumption."""
_LOGIT_BYTES = 8
"""Of a sequence and word: 16-bit logits, their scaled copy, and the float32 copy sampled from."""
_PROMPT_LOGPROBS_ROWS = 512
"""vLLM computes a prompt's log-probabilities in chunks as large as so many sequences' logits."""
_SPARE_TOKENS = 64
"""Blocks vLLM wants beside the longest sequence's: one empty, and one of each kind of layer."""
_LENGTH_STEP = 256
_USABLE = 0.95

Mode = Literal["alone", "apart", "co-resident", "in turn"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where capture runs beside vLLM, which has the first GPUs, and what each may take."""

    mode: Mode
    """alone: no engine is loaded. apart: capture has a device to itself. co-resident: both are
    loaded and run side by side. in turn: generation ends and leaves before capture is loaded."""
    line: str
    capture_device: str
    kv_cache_bytes: int | None = None
    """Of each GPU, where it is shared at the same time; None leaves it to vLLM."""
    gpu_share: float | None = None
    """Of each GPU, what vLLM may ask to be free at its start, cache included; None: its default."""
    capture_tokens: int | None = None
    """Of a batch, where vLLM is loaded too; None lets capture see what is free."""


def engine_length(longest: int) -> int:
    """Return the tokens an engine has room for, where its longest sequence has `longest`.

    At least one more, for the self-check's question.
    """
    return (longest // _LENGTH_STEP + 1) * _LENGTH_STEP


def engine_overhead(shape: Shape, sequences: int, tensor_parallel: int, itemsize: int) -> int:
    """Return the bytes of a GPU that vLLM takes while it runs, beside weights and KV cache.

    An estimate; untested on GPU.
    """
    widths = 2 * shape.ffn // tensor_parallel + 6 * shape.hidden
    logits = max(sequences, _PROMPT_LOGPROBS_ROWS) * shape.vocab * _LOGIT_BYTES
    overhead = _ENGINE_BASE + GPU_BATCHED_TOKENS * widths * itemsize + logits
    return overhead + GIB if tensor_parallel > 1 else overhead


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
    """Decide how GPUs of `totals` bytes, otherwise empty, serve generation and capture of a model.

    vLLM splits weights and KV cache over the first `tensor_parallel`. `sequences` of
    `tokens_per_sequence` (prompt and response) are wanted in flight; a quarter of them is the least
    that co-residence is worth. What neither needs of a shared GPU goes to capture batches.
    """
    per_token = shape.block_bytes_per_token(capture_itemsize)
    all_weights = shape.weight_bytes(capture_itemsize)
    least_batch = CPU_TOKENS * per_token
    if capture_device == "auto":
        needed = all_weights + CONTEXT_OVERHEAD + least_batch
        capture_device = _spare_gpu(totals, tensor_parallel, needed)
    kind, _, index = capture_device.partition(":")
    generation = f"generation on {_gpus(tensor_parallel)}"
    if kind != "cuda" or (index and int(index) >= tensor_parallel):
        line = f"{generation}, capture on {capture_device} beside it; untested on GPU"
        return Placement("apart", line, capture_device)
    over = 1 if index else len(totals)
    usable = int(min(totals) * _USABLE)
    weights, capture_weights = shape.weight_bytes(itemsize) // tensor_parallel, all_weights // over
    kv_per_token = shape.kv_bytes_per_token(itemsize)
    # vLLM does not start with a cache that one sequence of the engine's length does not fit in.
    least_kv = (engine_length(tokens_per_sequence) + _SPARE_TOKENS) * kv_per_token
    least_kv //= tensor_parallel
    kv = max(sequences * tokens_per_sequence * kv_per_token // tensor_parallel, least_kv)
    overhead = engine_overhead(shape, sequences, tensor_parallel, itemsize)
    engine, capture = weights + overhead, capture_weights + CONTEXT_OVERHEAD + least_batch
    sums = (
        f"{usable / GIB:.1f} GiB usable a GPU; {generation}: {weights / GIB:.1f} weights + "
        f"{overhead / GIB:.1f} engine + {kv / GIB:.1f} KV; capture on {_gpus(over)}: "
        f"{capture_weights / GIB:.1f} weights + {CONTEXT_OVERHEAD / GIB:.1f} context + "
        f"{least_batch / GIB:.1f} batch; untested on GPU"
    )
    room = usable - engine - capture
    if room < max(kv // 4, least_kv):
        return Placement("in turn", f"generation first, capture after it: {sums}", capture_device)
    # Batches of eight times the least, as long as the cache keeps half of what it wants.
    roomy = min(7 * least_batch, max(0, room - max(kv // 2, least_kv)))
    kv_given = min(kv, room - roomy)
    return Placement(
        "co-resident",
        f"co-resident: {sums}",
        capture_device,
        kv_cache_bytes=kv_given,
        gpu_share=(engine + kv_given) / min(totals),
        capture_tokens=min(GPU_TOKENS, CPU_TOKENS + (room - kv_given) // per_token),
    )


def _spare_gpu(totals: Sequence[int], taken: int, needed: int) -> str:
    """Return the first GPU after the `taken` ones that holds `needed` bytes, else all GPUs."""
    for index, total in enumerate(totals):
        if index >= taken and needed <= int(total * _USABLE):
            return f"cuda:{index}"
    return "cuda"


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
    """Return where a run's capture goes.

    `config` is config.json; `gpu` says whether there is one, `engine` whether vLLM loads the same
    model. Raise UsageError for a model, dtype or device that cannot work.
    """
    device = settings.execution.capture_device
    if not engine:
        return Placement("alone", "", device)
    if not gpu:  # sharing the cores gains nothing
        return Placement("in turn", "generation on all cores first, capture after it", device)
    read, kind = read_config(config), choose_device(device).partition(":")[0]
    return place_on_gpus(
        Shape.from_config(read),
        totals=gpu_memory(),
        tensor_parallel=settings.execution.tensor_parallel_size,
        capture_device=device,
        itemsize=_generation_itemsize(read, settings.sampling.dtype),
        capture_itemsize=itemsize(dtype_on(read, settings.capture.dtype, kind)),
        sequences=sequences,
        tokens_per_sequence=tokens_per_sequence,
    )


def _generation_itemsize(config: Any, dtype: str) -> int:
    """Return the bytes of a value in vLLM on a GPU: under `auto`, half precision where it is safe.

    Without bfloat16 only float16 is left, which overflows in some families; they run in float32.
    """
    overflows = str(config.model_type).startswith((*OVERFLOWS_FLOAT16, "glm4"))
    if dtype == "auto" and overflows and not computes_bfloat16("cuda"):
        return 4
    return itemsize(dtype)
