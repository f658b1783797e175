"""Which model, what it needs of the machine, and who gets which device. Loads no weights."""

from __future__ import annotations

from .chat import chat_token_ids, lazy_tokenizer, load_tokenizer
from .config import (
    Shape,
    check_capture,
    check_layers,
    choose_attention,
    choose_dtype,
    computes_bfloat16,
    dtype_on,
    fast_bfloat16,
    flash_with_soft_cap,
    generation_dtype,
    generation_itemsize,
    has_soft_cap,
    length_dependent_rope,
    read_config,
    require_causal,
)
from .demo import EMBEDDED, embedded_folder
from .hub import DEFAULT_MODEL, ModelRef, find_model, infer_model
from .machine import (
    CPU_TOKENS,
    GIB,
    GPU_TOKENS,
    choose_device,
    free_host_memory,
    gpu_memory,
    token_budget,
)
from .placement import GPU_BATCHED_TOKENS, LENGTH_STEP, Placement, choose_placement, place_on_gpus
from .weights import check_weights

__all__ = [
    "CPU_TOKENS",
    "DEFAULT_MODEL",
    "EMBEDDED",
    "GIB",
    "GPU_BATCHED_TOKENS",
    "GPU_TOKENS",
    "LENGTH_STEP",
    "ModelRef",
    "Placement",
    "Shape",
    "chat_token_ids",
    "check_capture",
    "check_layers",
    "check_weights",
    "choose_attention",
    "choose_device",
    "choose_dtype",
    "choose_placement",
    "computes_bfloat16",
    "dtype_on",
    "embedded_folder",
    "fast_bfloat16",
    "find_model",
    "flash_with_soft_cap",
    "free_host_memory",
    "generation_dtype",
    "generation_itemsize",
    "gpu_memory",
    "has_soft_cap",
    "infer_model",
    "lazy_tokenizer",
    "length_dependent_rope",
    "load_tokenizer",
    "place_on_gpus",
    "read_config",
    "require_causal",
    "token_budget",
]
