"""What vLLM's CUDA build makes of our arguments, for card, model and split, without a card.

    make test-cuda-dry                                      # and compares with the snapshot
    python -m tests.gpu.dry.resolve FILE.json [CARD ...]    # in the environment of `make setup-cuda-dry`

Placement, sizes and arguments are the product's own; the configuration, the attention backend, the
KV cache and the loader of logits processors are vLLM's.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.plans import config as config_of
from tests.gpu.dry import platform
from traitmill.engine.errors import ResourceError
from traitmill.engine.generation import EngineSize, VllmEngine
from traitmill.engine.generation.sizing import GPU_SEQUENCES, size_engine
from traitmill.engine.models import ModelRef, choose_placement
from traitmill.engine.planning import parse_gpus, typical_job
from traitmill.engine.planning.layout import layout
from traitmill.engine.settings import RunSettings, apply

CARD_NAMES = ("H100", "A100-80", "A100-40", "L40S", "4090", "L4", "T4")
MODELS = (
    *("gemma-2-2b", "gemma-2-9b", "gemma-2-27b", "llama-3.1-8b", "llama-3.1-70b"),
    *("qwen3-8b", "qwen3-32b", "qwen3-30b-a3b"),
)
SPLITS = (1, 2, 4, 8)
NO_CACHE = (
    "no refusal: by the estimate, no room for the cache of one sequence, and vLLM ends at its "
    "start; take more or larger cards"
)
Found = dict[str, Any]


def resolve(name: str, model: str, split: int, folder: Path) -> Found:
    """Return what a run on `split` such cards would be: a refusal, or the configuration."""
    raw = config_of(model)
    folder = folder / model
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    settings = apply({"tensor_parallel_size": split})
    job = typical_job(1, settings)
    try:
        placement = choose_placement(
            raw,
            settings,
            gpu=True,
            engine=True,
            sequences=GPU_SEQUENCES,
            tokens_per_sequence=job.tokens_per_sequence,
            cards=parse_gpus(f"{split}x{name}"),
        )
    except ResourceError as error:
        return {"refused": error.message}
    ref = ModelRef(model, str(folder), "r0", raw)
    size = size_engine(
        ref,
        settings.execution,
        job.tokens_per_sequence,
        on_gpu=True,
        free_bytes=0,
        placement=placement,
    )
    found = layout(raw, placement, settings, job, split)
    if not found.sequences:
        return {"refused": NO_CACHE}
    answer = _ask(ref, settings, size, found.cache)
    return {
        "placement": placement.mode,
        "weights_gib": round(found.weights / 2**30, 1),
        "overhead_gib": round(found.overhead / 2**30, 1),
        **answer,
    }


def _ask(ref: ModelRef, settings: RunSettings, size: EngineSize, cache: int) -> Found:
    from vllm.config import set_current_vllm_config
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.attention.selector import get_attn_backend
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs

    engine = VllmEngine(
        ref, replace(settings.sampling, model=ref.name), settings.execution, size, on_gpu=True
    )
    arguments = engine._arguments()
    arguments.load_format, arguments.skip_tokenizer_init = "dummy", True
    made = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
    model, graphs = made.model_config, made.compilation_config
    with set_current_vllm_config(made):
        backend = get_attn_backend(
            model.get_head_size(),
            model.dtype,
            "auto",
            num_heads=model.get_num_attention_heads(made.parallel_config),
        )
    named = list(model.logits_processors or ())
    sizes = graphs.cudagraph_capture_sizes or []
    return {
        "runner": "V2" if made.use_v2_model_runner else "V1",
        "dtype": str(model.dtype).removeprefix("torch."),
        "executor": made.parallel_config.distributed_executor_backend,
        "asynchronous": made.scheduler_config.async_scheduling,
        "attention": backend.get_name(),
        "compilation": int(graphs.mode),
        "graphs": f"{graphs.cudagraph_mode.name}: {len(sizes)} to {max(sizes, default=0)}",
        "sequences": made.scheduler_config.max_num_seqs,
        "batched_tokens": made.scheduler_config.max_num_batched_tokens,
        "length": model.max_model_len,
        "share": round(made.cache_config.gpu_memory_utilization, 3),
        "cache_gib": round(cache / 2**30, 1),
        "cached_tokens": _cached_tokens(made, backend, cache),
        "logits_processors": len(_load_v2_logitsprocs(named)),
        "worker_extension": made.parallel_config.worker_extension_cls,
    }


def _cached_tokens(made: Any, backend: Any, cache: int) -> int:
    """Return the tokens of the cache that vLLM makes of so many bytes; it raises on too few."""
    from vllm.v1.attention.backends.utils import (
        get_supported_kv_cache_layouts,
        resolve_kv_cache_layout,
    )
    from vllm.v1.core.kv_cache_utils import get_kv_cache_configs
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    model, parallel = made.model_config, made.parallel_config
    sizes = {
        "block_size": 16,
        "num_kv_heads": model.get_num_kv_heads(parallel),
        "head_size": model.get_head_size(),
        "dtype": model.dtype,
    }
    text = model.hf_text_config
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    specs: dict[str, Any] = {
        f"layers.{index}": (
            SlidingWindowSpec(**sizes, sliding_window=window)
            if kind == "sliding_attention"
            else FullAttentionSpec(**sizes)
        )
        for index, kind in enumerate(kinds)
    }
    layouts = [each.name for each in get_supported_kv_cache_layouts([backend])]
    resolve_kv_cache_layout(made, [layouts], specs.values())
    (found,) = get_kv_cache_configs(made, [specs], [cache])
    return int(found.num_blocks * 16 // len(found.kv_cache_groups))


def of_card(name: str) -> dict[str, Found]:
    """Return what each model and split is on a card. For a process that does nothing else."""
    rows: dict[str, Found] = {}
    with TemporaryDirectory() as folder:
        for split in SPLITS:
            platform.show(name, split)
            for model in MODELS:
                rows[f"{model} x{split}"] = resolve(name, model, split, Path(folder))
    return rows


def main() -> None:
    """Ask for each card in a process of its own: what vLLM has once found of a card, it keeps."""
    path, names = Path(sys.argv[1]), sys.argv[2:] or CARD_NAMES
    platform.install()
    import vllm.v1.attention.selector  # noqa: F401 - imported once, for all processes

    found: dict[str, dict[str, Found]] = {}
    for name in names:
        with get_context("fork").Pool(1) as pool:
            found[name] = pool.apply(of_card, (name,))
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
