"""What hybrid models keep of a sequence, against vLLM's own count of it."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from traitmill.engine.models import Gpu, Shape
from traitmill.engine.models.overhead import choose_limits, engine_overhead, least_cache
from traitmill.engine.models.placement import place_on_gpus

GIB = 1 << 30
GRANITE = {
    "hidden_size": 1536,
    "num_hidden_layers": 40,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "mamba_n_heads": 48,
    "mamba_d_head": 64,
    "mamba_d_state": 128,
    "layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4,
}
FALCON = {
    "hidden_size": 3072,
    "num_hidden_layers": 44,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "mamba_d_ssm": 3072,
    "mamba_n_heads": 24,
    "mamba_d_head": 128,
    "mamba_d_state": 256,
    "mamba_n_groups": 1,
}
LFM = {"conv_dim": 2560, "layer_types": ["conv", "conv", "full_attention"] * 10 + ["conv"] * 2}
HYBRIDS = {
    "falcon_h1.FalconH1": ("FalconH1", FALCON),
    "granitemoehybrid.GraniteMoeHybrid": ("GraniteMoeHybrid", GRANITE),
    "jamba.Jamba": ("Jamba", {}),
    "zamba2.Zamba2": ("Zamba2", {}),
    "nemotron_h.NemotronH": ("NemotronH", {}),
    "qwen3_next.Qwen3Next": ("Qwen3Next", {}),
    "olmo_hybrid.OlmoHybrid": ("OlmoHybrid", {}),
    "lfm2.Lfm2": ("Lfm2", LFM),
}


def config(kind: str, **sizes: Any) -> Any:
    return getattr(transformers, f"{kind}Config")(**sizes)


@pytest.mark.slow
@pytest.mark.parametrize("cards", [1, 2])
@pytest.mark.parametrize("name", HYBRIDS)
def test_a_sequence_takes_what_vllm_counts(name: str, cards: int) -> None:
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec

    kind, sizes = HYBRIDS[name]
    made = config(kind, **sizes)
    shape = Shape.from_config(made)
    state = shape.state
    assert state is not None
    module, _, family = name.partition(".")
    model = getattr(import_module(f"vllm.model_executor.models.{module}"), f"{family}ForCausalLM")
    told = SimpleNamespace(
        model_config=SimpleNamespace(
            hf_config=made, hf_text_config=made, dtype=torch.bfloat16, max_model_len=1536
        ),
        cache_config=SimpleNamespace(
            mamba_cache_dtype="auto",
            mamba_ssm_cache_dtype=getattr(made, "mamba_ssm_cache_dtype", "auto"),
            mamba_cache_mode="align",
            use_replayssm=False,
            get_resolved_kv_cache_layout=lambda: SimpleNamespace(is_block_outermost=False),
        ),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=cards,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
        ),
        num_speculative_tokens=0,
        speculative_config=None,
    )
    shapes = model.get_mamba_state_shape_from_config(told)
    dtypes = model.get_mamba_state_dtype_from_config(told)
    kept = MambaSpec(shapes=shapes, dtypes=dtypes, block_size=16)
    assert state.layer_bytes(2, cards) == kept.page_size_bytes

    def attention(tokens: int) -> Any:
        heads = max(1, shape.kv_heads // cards)
        return FullAttentionSpec(
            block_size=tokens, num_kv_heads=heads, head_size=shape.head_dim, dtype=torch.bfloat16
        )

    block = 16 * -(-kept.page_size_bytes // attention(16).page_size_bytes)
    page = attention(block).page_size_bytes
    padded = MambaSpec(
        shapes=shapes,
        dtypes=dtypes,
        block_size=block,
        page_size_padded=page,
        mamba_cache_mode="align",
    )
    layers = {f"a{layer}": attention(block) for layer in range(state.attending)}
    layers |= {f"s{layer}": padded for layer in range(state.layers)}
    groups = kv_cache_utils._get_kv_cache_groups_uniform_page_size(layers)
    whole = kv_cache_utils._max_memory_usage_bytes_from_groups(told, groups)
    assert shape.cache_bytes(2, 1536, cards) == whole
    pool = kv_cache_utils._pool_bytes_per_block(told, groups)
    assert shape.state_block(2, cards) == pool


def test_keys_and_values_are_counted_where_there_is_attention() -> None:
    shape = Shape.from_config(config("GraniteMoeHybrid", **GRANITE))
    assert shape.kv_bytes_per_token(2) == 4 * 2 * 4 * 128 * 2


def test_a_state_stays_float32_where_the_config_says_so() -> None:
    sizes = {"linear_num_value_heads": 32, "linear_num_key_heads": 16}
    half = Shape.from_config(config("Qwen3_5Text", **sizes))
    whole = Shape.from_config(config("Qwen3_5Text", **sizes, mamba_ssm_dtype="float32"))
    layers = half.state.layers if half.state else 0
    assert whole.state_bytes(2) - half.state_bytes(2) == layers * 32 * 128 * 128 * 2


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("gib", [24, 80])
def test_no_more_sequences_are_asked_for_than_there_are_blocks_of_state(
    gib: int, fixed: bool
) -> None:
    shape = Shape.from_config(config("FalconH1", **FALCON, intermediate_size=12288))
    gpus = [Gpu(0, gib * GIB, gib * GIB - GIB // 2, "card", "u", (9, 0))]
    limits = choose_limits(shape, gpus, 2, 300, 512, fixed=fixed)
    overhead = engine_overhead(shape, limits.sequences, 1, 2, limits.batched_tokens)
    left = int(gpus[0].total * 0.92) - shape.weight_bytes(2) - overhead
    assert 1 <= limits.sequences <= left // shape.state_block(2)


def test_a_shared_card_leaves_each_sequence_its_block() -> None:
    shape = Shape.from_config(config("FalconH1", **FALCON, intermediate_size=12288))
    for gib in range(40, 140, 10):
        placed = place_on_gpus(
            shape,
            gpus=[Gpu(0, gib * GIB, gib * GIB, "card", "u", (9, 0))],
            tensor_parallel=1,
            capture_device="auto",
            itemsize=2,
            capture_itemsize=2,
            sequences=256,
            tokens_per_sequence=300,
        )
        if placed.mode == "co-resident":
            assert placed.kv_cache_bytes is not None
            assert placed.kv_cache_bytes > 256 * shape.state_block(2)
            break
    else:
        pytest.fail("nowhere co-resident")
    assert least_cache(shape, 2, 300, sequences=256) <= placed.kv_cache_bytes
