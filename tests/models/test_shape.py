"""What is counted of a model, against the model itself without its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from traitmill.engine.models import Shape

SIZES = {
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
}
GEMMA = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 4,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 32_000,
    "num_kv_shared_layers": 2,
}
MLA = {
    "num_key_value_heads": 8,
    "q_lora_rank": 512,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_routed_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 1024,
    "first_k_dense_replace": 0,
    "n_group": 1,
    "topk_group": 1,
}
LLAMA_4 = {"intermediate_size_mlp": 8192, "num_local_experts": 16, "num_experts_per_tok": 1}


def config(name: str, **more: Any) -> Any:
    return getattr(transformers, name)(**SIZES | more)


@pytest.mark.parametrize(
    "made",
    [
        config("LlamaConfig", tie_word_embeddings=False),
        config("Gemma3nTextConfig", **GEMMA, activation_sparsity_pattern=[0.0] * 4, laurel_rank=8),
        config("Gemma4TextConfig", **GEMMA, use_double_wide_mlp=True, global_head_dim=128),
        config("Llama4TextConfig", **LLAMA_4, interleave_moe_layer_step=2),
        config("Llama4TextConfig", **LLAMA_4, interleave_moe_layer_step=1),
        config("AriaTextConfig", moe_num_experts=16, moe_topk=2),
        config("DeepseekV3Config", **MLA),
    ],
    ids=lambda made: made.model_type,
)
def test_parameters_are_nearly_those_of_the_model(made: Any) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    real = sum(parameter.numel() for parameter in model.parameters())
    assert Shape.from_config(made).parameters == pytest.approx(real, rel=0.12)


def falcon(**sizes: Any) -> Any:
    return transformers.FalconConfig(
        hidden_size=1024, num_attention_heads=16, num_hidden_layers=4, **sizes
    )


@pytest.mark.parametrize(
    ("made", "heads"),
    [
        (falcon(multi_query=True, new_decoder_architecture=False), 1),
        (falcon(new_decoder_architecture=True, num_kv_heads=8), 8),
        (falcon(multi_query=False, new_decoder_architecture=False), 16),
        (transformers.GPTBigCodeConfig(n_embd=1024, n_layer=4, n_head=16, multi_query=True), 1),
    ],
)
def test_key_value_heads_are_found_under_each_familys_name(made: Any, heads: int) -> None:
    shape = Shape.from_config(made)
    assert shape.kv_heads == heads
    assert shape.kv_bytes_per_token(2) == 2 * 2 * 4 * heads * 64


def test_a_latent_is_kept_once_and_on_every_card() -> None:
    shape = Shape.from_config(config("DeepseekV3Config", **MLA))
    assert shape.kv_bytes_per_token(2) == 2 * 8 * (512 + 64)
    assert shape.kv_bytes_of_a_card(2, 4) == shape.kv_bytes_per_token(2)


@pytest.mark.parametrize(
    "model_type",
    [
        "apertus",
        "arcee",
        "biogpt",
        "codegen",
        "falcon",
        "gpt2",
        "gpt_bigcode",
        "gpt_neo",
        "gpt_neox",
        "gptj",
        "mpt",
        "opt",
        "persimmon",
        "phi",
        "starcoder2",
        "xglm",
        "stablelm",
        "llama",
        "olmo2",
    ],
)
def test_feed_forward_parts_with_and_without_a_gate_are_told_apart(model_type: str) -> None:
    """Without a gate there are two matrices: GPT-NeoX-20B was refused by a card that holds it."""
    config = transformers.AutoConfig.for_model(model_type)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counted = sum(part.numel() for part in model.parameters())
    assert Shape.from_config(config).parameters == pytest.approx(counted, rel=0.02)
