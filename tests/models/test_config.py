"""What is read from a config: sizes against real models, dtypes, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import FalconConfig

from tests.support.oracle import BY_LENGTH, FAMILIES
from traitmill.engine.errors import UsageError
from traitmill.engine.models import config as configs
from traitmill.engine.models.config import (
    check_capture,
    check_layers,
    choose_attention,
    dtype_on,
    generation_dtype,
    has_soft_cap,
    itemsize,
    length_dependent_rope,
)
from traitmill.engine.models.gpus import Gpu
from traitmill.engine.models.placement import generation_itemsize
from traitmill.engine.models.shape import Shape
from traitmill.engine.settings import CaptureSettings

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


def test_r01_layers_of_different_widths_are_summed():
    """Gemma-4's: every sixth layer attends to all, with heads of 512 in place of 256."""
    shape = Shape.from_config({"model_type": "gemma4"})
    assert (shape.n_layers, shape.kv_heads, shape.head_dim) == (30, 4, 512)
    assert shape.kv_bytes_per_token(2) == 2 * 2 * 4 * (25 * 256 + 5 * 512)


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


def test_soft_caps_and_long_rope_are_seen():
    assert has_soft_cap(FAMILIES["gemma2"]())
    assert not has_soft_cap(FAMILIES["llama"]())
    assert length_dependent_rope(FAMILIES["llama"]()) is None
    for family, tokens in (("longrope", 16), ("dynamic", 16)):
        assert length_dependent_rope(BY_LENGTH[family]()) == (family, tokens)


@pytest.mark.parametrize(
    ("words", "fast"),
    [("flags : fpu avx2", False), ("flags : avx512f avx512_bf16", True), ("Features : bf16", True)],
)
def test_a_cpu_without_bfloat16_computes_in_float32(words, fast, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path: words)
    configs.fast_bfloat16.cache_clear()
    try:
        config = FAMILIES["llama"]()
        config.dtype = torch.bfloat16
        expected = "bfloat16" if fast else "float32"
        assert configs.fast_bfloat16("cpu") is fast
        assert dtype_on(config, "auto", "cpu") == expected
        assert generation_dtype(config, "auto", gpu=False) == expected
        # What is asked for is done: slow, but the CPU can.
        assert dtype_on(config, "bfloat16", "cpu") == "bfloat16"
        assert generation_dtype(config, "bfloat16", gpu=False) == "bfloat16"
        assert generation_dtype(config, "auto", gpu=True) == "auto"
    finally:
        configs.fast_bfloat16.cache_clear()


@pytest.mark.parametrize("kind", ["Qwen3NextConfig", "Qwen3_5TextConfig"])
def test_a_gated_delta_net_generates_in_bfloat16_on_a_cpu(kind, monkeypatch):
    """vLLM's kernel for it takes no other: in float32 the engine died at its first request."""
    monkeypatch.setattr(configs, "fast_bfloat16", lambda _: False)
    config = getattr(transformers, kind)(dtype="bfloat16")
    assert generation_dtype(config, "auto", gpu=False) == "bfloat16"
    assert generation_dtype(config, "float32", gpu=True) == "float32"
    with pytest.raises(UsageError, match="on a CPU in bfloat16 alone"):
        generation_dtype(config, "float32", gpu=False)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3n", "gemma4", "vaultgemma", "glm4"])
def test_what_overflows_in_float16_generates_in_float32_on_a_card_without_bfloat16(
    family, monkeypatch
):
    config = SimpleNamespace(model_type=family)
    for bfloat16, expected in ((True, "auto"), (False, "float32")):
        monkeypatch.setattr(configs, "computes_bfloat16", lambda _, has=bfloat16: has)
        assert generation_dtype(config, "auto", gpu=True) == expected
        capability = (8, 0) if bfloat16 else (7, 5)
        card = [Gpu(0, 1, 1, capability=capability)]
        assert generation_itemsize(config, "auto", card) == (2 if bfloat16 else 4)  # as planned
    assert generation_dtype(config, "bfloat16", gpu=True) == "bfloat16"  # refused by vLLM itself
    assert generation_dtype(SimpleNamespace(model_type="llama"), "auto", gpu=True) == "auto"


@pytest.mark.parametrize(
    "error", [ImportError("undefined symbol"), OSError("libcudart"), AttributeError("no such")]
)
def test_a_flash_attn_that_cannot_be_imported_is_none(error, monkeypatch):
    asked = []

    def broken(name):
        asked.append(name)
        raise error

    monkeypatch.setattr(configs, "find_spec", lambda _: object())
    monkeypatch.setattr(configs, "import_module", broken)
    assert not configs.flash_with_soft_cap()
    assert asked.pop() == "flash_attn"
    for family, wanted in (("llama", []), ("gemma2", ["flash_attn"])):
        raw = json.loads(FAMILIES[family]().to_json_string())
        check_capture(raw, CaptureSettings(), "cuda")
        assert asked == wanted  # of a model without a soft cap it is not even asked


def test_bytes_of_a_value():
    assert [itemsize(dtype) for dtype in ("bfloat16", "float16", "float32")] == [2, 2, 4]


def test_an_old_gpu_refuses_bfloat16_and_auto_is_float32_there(monkeypatch):
    monkeypatch.setattr(configs, "computes_bfloat16", lambda device: device != "cuda")
    configs.fast_bfloat16.cache_clear()
    config = FAMILIES["llama"]()
    config.dtype = torch.bfloat16
    assert dtype_on(config, "auto", "cuda") == "float32"
    with pytest.raises(UsageError, match="`capture_dtype` bfloat16: this GPU does not compute"):
        dtype_on(config, "bfloat16", "cuda")
    configs.fast_bfloat16.cache_clear()


def test_an_attention_that_nobody_knows_is_refused_and_a_kernel_of_the_hub_is_not():
    config = FAMILIES["llama"]()
    with pytest.raises(UsageError, match="`attention` fast is unknown to transformers"):
        choose_attention(config, "fast", device="cpu", dtype="float32")
    for known in ("eager", "sdpa", "kernels-community/flash-attn"):
        assert choose_attention(config, known, device="cpu", dtype="float32") == known


def test_eager_attention_is_refused_where_transformers_adds_alibi_twice():
    config = FalconConfig(alibi=True)
    assert choose_attention(config, "auto", device="cpu", dtype="float32") == "sdpa"
    with pytest.raises(UsageError, match="`attention` eager adds ALiBi twice"):
        choose_attention(config, "eager", device="cpu", dtype="float32")
    plain = FalconConfig(alibi=False)
    assert choose_attention(plain, "eager", device="cpu", dtype="float32") == "eager"


def test_layers_that_are_not_there_are_refused():
    check_layers(None, 4)
    check_layers((0, 3), 4)
    with pytest.raises(UsageError, match=r"`layers` 4: this model has layers 0 to 3"):
        check_layers((0, 4), 4)


@pytest.mark.parametrize(
    ("capture", "words"),
    [
        (CaptureSettings(layers=(99,)), "`layers` 99"),
        (CaptureSettings(dtype="float16"), "`capture_dtype` float16 overflows"),
        (CaptureSettings(attention="sdpa"), "`attention` sdpa drops this model's soft-cap"),
    ],
)
def test_capture_settings_are_checked_by_config_json_alone(capture, words):
    raw = json.loads(FAMILIES["gemma2"]().to_json_string())
    check_capture(raw, CaptureSettings(), "cpu")
    with pytest.raises(UsageError, match=words):
        check_capture(raw, capture, "cpu")
