"""Sizes against real models, memory that is free, and the batches that fit it."""

import pytest
import torch

from tests.support.oracle import FAMILIES
from traitmill.engine.errors import UsageError
from traitmill.engine.models import machine as devices
from traitmill.engine.models.config import Shape
from traitmill.engine.models.machine import GIB, token_budget

GEMMA_2B = Shape.from_config(
    {
        "model_type": "gemma2",
        "hidden_size": 2304,
        "num_hidden_layers": 26,
        "intermediate_size": 9216,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 256000,
    }
)


def test_sizes_of_known_models():
    """The published parameter count (2.61 billion) and the KV cache's 2 x layers x heads x size."""
    assert GEMMA_2B.parameters == pytest.approx(2.61e9, rel=0.01)
    assert GEMMA_2B.kv_bytes_per_token(2) == 2 * 26 * 4 * 256 * 2
    assert GEMMA_2B.block_bytes_per_token(2) - 4 * 2304 == pytest.approx(108e3, rel=0.02)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma3", "qwen3_moe"])
def test_parameters_are_counted_as_the_model_has_them(family):
    """Gated families; biases and norms are left out of the formula, so they are left out here."""
    from transformers import AutoModelForCausalLM

    config = FAMILIES[family]()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    named = model.named_parameters()
    counted = sum(p.numel() for name, p in named if p.ndim > 1 and "gate.weight" not in name)
    assert Shape.from_config(config.to_dict()).parameters == counted


def test_sizes_that_config_json_leaves_out_are_transformers_defaults():
    """google/gemma-3-4b-it's file names neither heads nor vocabulary; the model card says 4 billion
    (3.88 of text)."""
    text = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
    }
    shape = Shape.from_config(
        {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1152}}
    )
    assert (shape.n_layers, shape.heads, shape.kv_heads, shape.head_dim, shape.vocab) == (
        34,
        8,
        4,
        256,
        262208,
    )
    assert shape.parameters == pytest.approx(3.88e9, rel=0.01)
    assert Shape.from_config(text) == shape


@pytest.mark.parametrize(
    ("raw", "layers", "hidden", "heads"),
    [
        ({"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12}, 12, 768, 12),
        ({"model_type": "gptj", "n_layer": 28, "n_embd": 4096, "n_head": 16}, 28, 4096, 16),
        ({"model_type": "mpt", "n_layers": 32, "d_model": 4096, "n_heads": 32}, 32, 4096, 32),
        (
            {
                "model_type": "gpt_neo",
                "num_layers": 24,
                "hidden_size": 2048,
                "num_heads": 16,
                "attention_types": [[["global", "local"], 12]],
            },
            24,
            2048,
            16,
        ),
        ({"model_type": "bloom", "n_layer": 30, "hidden_size": 4096, "n_head": 32}, 30, 4096, 32),
        ({"model_type": "gemma3n_text"}, 35, 2048, 8),
    ],
)
def test_sizes_have_other_names_in_other_families(raw, layers, hidden, heads):
    shape = Shape.from_config(raw)
    assert (shape.n_layers, shape.hidden, shape.heads) == (layers, hidden, heads)
    assert shape.ffn == (16384 if raw["model_type"] == "gemma3n_text" else 4 * hidden)


def test_experts_of_deepseek_are_counted():
    """DeepSeek-V3: 58 of 61 blocks have 256 routed experts of 3 x 7168 x 2048; 671 billion weights
    in all."""
    shape = Shape.from_config({"model_type": "deepseek_v3"})
    assert shape.experts
    assert (shape.ffn, shape.ffn_stored) == (8 * 2048, 256 * 2048)
    assert shape.parameters == pytest.approx(671e9, rel=0.07)
    assert not GEMMA_2B.experts


@pytest.mark.parametrize("kind", ["mamba", "rwkv"])
def test_a_model_without_attention_is_refused_in_a_line(kind):
    with pytest.raises(UsageError, match=rf"model type {kind} cannot be sized") as caught:
        Shape.from_config({"model_type": kind})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"model_type": "no_such"},
        {"model_type": "llama", "hidden_size": 8},
        {"model_type": "llama", "hidden_size": "x"},
    ],
)
def test_a_config_that_transformers_does_not_take_is_refused_in_a_line(raw):
    with pytest.raises(UsageError, match=r"config\.json") as caught:
        Shape.from_config(raw)
    assert "\n" not in str(caught.value)


def test_the_budget_says_its_arithmetic():
    small = token_budget(GEMMA_2B, 2, 1 * GIB, gpu=True)
    assert small.tokens == int(0.8 * GIB / GEMMA_2B.block_bytes_per_token(2))
    assert "all that fits" in small.line
    assert "untested on GPU" in small.line
    large = token_budget(GEMMA_2B, 2, 500 * GIB, gpu=False)
    assert large.tokens == devices.CPU_TOKENS
    assert "capped" in large.line
    assert "GPU" not in large.line
    none = token_budget(GEMMA_2B, 2, 0, gpu=False)
    assert none.tokens == 256
    assert "halved where they do not fit" in none.line


def test_free_memory_honours_a_container(tmp_path):
    machine = devices.free_host_memory(tmp_path)
    assert machine > 0
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    (tmp_path / "memory.stat").write_text(
        "anon 100000\nfile 300000\ninactive_file 250000\nactive_file 50000\n"
    )
    assert devices.free_host_memory(tmp_path) == 850_000
    (tmp_path / "memory.max").write_text("max\n")
    assert devices.free_host_memory(tmp_path) > 600_000
