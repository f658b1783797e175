"""Which model, what it needs of the machine, and who gets which device. Loads no weights."""

from __future__ import annotations

from .adapter_fit import adapter_here, check_adapter, find_adapter
from .chat import Prompts, chat_token_ids, lazy_tokenizer
from .config import (
    check_capture,
    check_layers,
    choose_attention,
    dtype_on,
    fast_bfloat16,
    flash_with_soft_cap,
    generation_dtype,
    has_soft_cap,
    itemsize,
    keeps_state,
    length_dependent_rope,
    read_config,
    require_causal,
)
from .conversation import Conversation, Conversations, Turn, span_of
from .demo import EMBEDDED, embedded_folder
from .download import fetch_weights
from .feasibility import capture_bytes
from .gpus import Gpu, emptiest_first, read_gpus, show_only
from .here import device_here
from .hub import DEFAULT_MODEL, Adapter, ModelRef, find_model, infer_model
from .longrope import check_longest, common_length
from .machine import CPU_TOKENS, GIB, choose_device, free_host_memory, token_budget
from .overhead import GPU_BATCHED_TOKENS, engine_length, engine_overhead
from .placement import Placement, choose_placement, generation_itemsize
from .shape import Shape, latent_width
from .split import check_split, cores, divides
from .stored import Stored, count_weights, sized
from .support import check_support, quantised
from .thought import Thought, holds_thought
from .tokenizer import is_chat, load_tokenizer
from .weights import check_weights, refuse_faulty

__all__ = [
    "CPU_TOKENS",
    "DEFAULT_MODEL",
    "EMBEDDED",
    "GIB",
    "GPU_BATCHED_TOKENS",
    "Adapter",
    "Conversation",
    "Conversations",
    "Gpu",
    "ModelRef",
    "Placement",
    "Prompts",
    "Shape",
    "Stored",
    "Thought",
    "Turn",
    "adapter_here",
    "capture_bytes",
    "chat_token_ids",
    "check_adapter",
    "check_capture",
    "check_layers",
    "check_longest",
    "check_split",
    "check_support",
    "check_weights",
    "choose_attention",
    "choose_device",
    "choose_placement",
    "common_length",
    "cores",
    "count_weights",
    "device_here",
    "divides",
    "dtype_on",
    "embedded_folder",
    "emptiest_first",
    "engine_length",
    "engine_overhead",
    "fast_bfloat16",
    "fetch_weights",
    "find_adapter",
    "find_model",
    "flash_with_soft_cap",
    "free_host_memory",
    "generation_dtype",
    "generation_itemsize",
    "has_soft_cap",
    "holds_thought",
    "infer_model",
    "is_chat",
    "itemsize",
    "keeps_state",
    "latent_width",
    "lazy_tokenizer",
    "length_dependent_rope",
    "load_tokenizer",
    "quantised",
    "read_config",
    "read_gpus",
    "refuse_faulty",
    "require_causal",
    "show_only",
    "sized",
    "span_of",
    "token_budget",
]
