"""What vLLM's engine is told: the model, its limits, and the choices that suit a GPU or a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..models import ModelRef, generation_dtype, keeps_state, latent_width, read_config
from ..settings import Execution, Sampling
from .sizing import CPU_BLOCK, EngineSize

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs

_COMPILING_S, _GAIN = 75.0, 1.15
COMPILED_FROM_S = _COMPILING_S / (1 - 1 / _GAIN)
"""Seconds of generation from which compiling has paid for itself: 575. It takes 60 to 90 s with its
51 graphs, as others measured it. The gain is an assumption between the 1.05 and 1.19 measured on a
CPU (docs/decisions/009-eager-on-cpu.md); no card has been measured."""
_BY_HEADS = ("lfm2", "lfm2_moe")
"""Model types whose queries vLLM rotates as a table of heads, beside those of latent attention: its
own operation on a CPU takes them for one long head, and tokens are up to 39 nats apart."""
_FEW_GRAPHS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
# Left to vLLM, both hang on whether nvcc and ninja are on PATH, and cost minutes at the start.
_PASSES: Mapping[str, Any] = {"fuse_allreduce_rms": False}


def engine_arguments(
    ref: ModelRef,
    sampling: Sampling,
    execution: Execution,
    size: EngineSize,
    *,
    on_gpu: bool,
    own_nucleus: bool,
    compiled: bool = True,
) -> AsyncEngineArgs:
    """Return vLLM's arguments.

    `own_nucleus` leaves top-p to `top_p` rather than to vLLM. Not `compiled`, an engine on a GPU
    starts in seconds rather than minutes, and needs no compiler: see `COMPILED_FROM_S`.
    """
    from vllm import AsyncEngineArgs

    config = read_config(ref.config)
    arguments: dict[str, Any] = {
        "model": ref.source,
        "revision": ref.hub_revision,
        "tokenizer_revision": ref.hub_revision,
        # Else vLLM reads a Mistral's own files where they lie beside those that capture reads.
        "config_format": "hf",
        "load_format": "hf",
        "dtype": generation_dtype(config, sampling.dtype, gpu=on_gpu),
        "tensor_parallel_size": execution.tensor_parallel_size,
        "max_num_seqs": size.max_num_seqs,
        "max_num_batched_tokens": size.max_num_batched_tokens,
        "max_model_len": size.max_model_len,
        "kv_cache_memory_bytes": size.kv_cache_bytes,
        "gpu_memory_utilization": size.gpu_share,
        # Of layers with a state it caches where a prompt is cut, which ours are not on a CPU.
        "enable_prefix_caching": on_gpu or not keeps_state(config.get_text_config()),
        "disable_log_stats": True,
        "enable_log_requests": False,
        "generation_config": "vllm",  # sampling is ours to state, never a model file's
    }
    if isinstance(ref.config.get("vision_config"), dict):
        # No picture is shown: the part that sees is neither loaded nor made ready.
        arguments["language_model_only"] = True
    if ref.adapter is not None:
        arguments |= {
            "enable_lora": True,
            "max_loras": 1,
            "max_cpu_loras": 1,
            "max_lora_rank": ref.adapter.slot,
            # Else the head is made ready for one too, and on a CPU then breaks over
            # log-probabilities of a prompt.
            "lora_target_modules": ref.adapter.targets,
        }
    arguments |= _query_scaling(config)
    arguments |= _on_gpu(size, compiled) if on_gpu else _on_cpu(ref, config, execution)
    if own_nucleus:
        from .top_p import NAME

        arguments["logits_processors"] = [NAME]
        arguments["additional_config"] = {"top_p": sampling.top_p}
    return AsyncEngineArgs(**arguments)


def _query_scaling(config: Any) -> dict[str, Any]:
    """Return how queries are scaled by their position, where vLLM 0.32 looks for it: in a model's
    config it does not find it, and would do without.

    Ministral-3 scales them from the 16,385th token on, Llama-4 from the 8,192nd.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    told: dict[str, Any] = {}
    if rope.get("llama_4_scaling_beta"):
        scaling = {
            "beta": rope["llama_4_scaling_beta"],
            "original_max_position_embeddings": rope["original_max_position_embeddings"],
        }
        named = {"llama_4_scaling": scaling}
        told["hf_overrides"] = named if text is config else {"text_config": named}
    if (tuned := getattr(text, "attn_temperature_tuning", None)) is not None:
        # Left to itself, it is on for contexts beyond 32,768 tokens alone.
        told["override_generation_config"] = {"attn_temperature_tuning": bool(tuned)}
    return told


def _on_gpu(size: EngineSize, compiled: bool) -> dict[str, Any]:
    compilation: dict[str, Any] = {"pass_config": dict(_PASSES)}
    if not compiled:
        fitting = [count for count in _FEW_GRAPHS if count < size.max_num_seqs]
        compilation |= {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": [*fitting, size.max_num_seqs],
        }
    return {"enable_flashinfer_autotune": False, "compilation_config": compilation}


def _on_cpu(ref: ModelRef, config: Any, execution: Execution) -> dict[str, Any]:
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    arguments: dict[str, Any] = {
        "block_size": CPU_BLOCK,
        # Compiling costs a CPU run more than it gains (docs/decisions/009-eager-on-cpu.md).
        "enforce_eager": True,
        # A seeded prompt cut in two ends vLLM 0.32's CPU engine: it turns back a generator
        # that cannot be turned.
        "enable_chunked_prefill": False,
    }
    latent = latent_width(ref.config) > 0
    if latent or config.get_text_config().model_type in _BY_HEADS:
        arguments["compilation_config"] = {"custom_ops": ["all", "-rotary_embedding"]}
    if latent:
        # That for AMX, which it would choose, takes bfloat16 alone.
        arguments["attention_backend"] = "CPU_MLA"
    if execution.tensor_parallel_size == 1:
        # By default the engine's process spins on a core while it waits for a worker process:
        # with the model in its own it has that core too (docs/decisions/008). Named by
        # its class, because vLLM overrules the name.
        arguments["distributed_executor_backend"] = UniProcExecutor
    return arguments
