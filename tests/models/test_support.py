"""Models that the engines cannot use are refused from their config."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from traitmill.engine.errors import UsageError
from traitmill.engine.models import (
    ModelRef,
    check_capture,
    check_support,
    find_model,
    keeps_state,
    read_config,
    support,
)
from traitmill.engine.models.support import CPU_HEADS, CPU_LATENT
from traitmill.engine.settings import CaptureSettings

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
W8A8 = {"quant_method": "compressed-tensors", "format": "int-quantized"}


def check(config: dict[str, Any], *, captures: bool = True, source: str = "m") -> None:
    check_support(ModelRef("m", source, "r", config), captures=captures)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "LlamaForCausalLM"),
        ("gpt2", "GPT2LMHeadModel"),
        ("gemma3", "Gemma3ForConditionalGeneration"),
        ("qwen3_moe", "Qwen3MoeForCausalLM"),
        ("gpt_neox", "GPTNeoXForCausalLM"),
    ],
)
def test_models_that_generate_are_taken(kind: str, name: str) -> None:
    check({"model_type": kind, "architectures": [name], "is_decoder": False})
    check({"model_type": kind})


@pytest.mark.parametrize("gpu", [False, True])
def test_the_text_part_of_a_gemma_3n_is_refused(monkeypatch, gpu: bool) -> None:
    monkeypatch.setattr(support, "_has_gpu", lambda: gpu)
    with pytest.raises(UsageError, match="leaves the embeddings of each layer out; take the whole"):
        check({"model_type": "gemma3n_text", "architectures": ["Gemma3nForCausalLM"]})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bert", "BertForMaskedLM"),
        ("bert", "BertModel"),
        ("roberta", "RobertaForSequenceClassification"),
        ("llama", "LlamaForSequenceClassification"),
        ("qwen3", "Qwen3Model"),
        ("qwen2", "Qwen2ForTokenClassification"),
    ],
)
@pytest.mark.parametrize("captures", [True, False])
def test_t25_an_encoder_or_classifier_is_refused(kind: str, name: str, captures: bool) -> None:
    with pytest.raises(UsageError, match=f"{name}.* predicts no next token: take a causal"):
        check({"model_type": kind, "architectures": [name]}, captures=captures)


def test_t25_an_encoder_beside_a_decoder_is_refused() -> None:
    name = "T5ForConditionalGeneration"
    with pytest.raises(UsageError, match=f"{name}.* has an encoder"):
        check({"model_type": "t5", "architectures": [name], "is_encoder_decoder": True})


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"quantization_config": FP8}, "fp8"),
        ({"quantization_config": W8A8}, "compressed-tensors, int-quantized"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq, 4 bits"),
        ({"text_config": {"quantization_config": FP8}}, "fp8"),
    ],
)
def test_t23_t41_a_quantised_checkpoint_is_not_captured(how: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=rf"quantised \({words}\).*extract_activations` False"):
        check(LLAMA | how)


def test_t23_fp8_is_not_generated_from_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    float_quantized = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    for how in (FP8, float_quantized):
        with pytest.raises(UsageError, match="does not compute on a CPU"):
            check(LLAMA | {"quantization_config": how}, captures=False)
    check(LLAMA | {"quantization_config": W8A8}, captures=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check(LLAMA | {"quantization_config": FP8}, captures=False)


def test_t24_a_vision_part_wants_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"torchvision": None}
    monkeypatch.setattr(support, "find_spec", there.get)
    for kind, name in (("gemma3", "Gemma3"), ("mistral3", "Mistral3"), ("qwen3_vl", "Qwen3VL")):
        config = {"model_type": kind, "architectures": [f"{name}ForConditionalGeneration"]}
        config["vision_config"] = {"hidden_size": 32}
        with pytest.raises(UsageError, match=r"a vision part, .* wants torchvision"):
            check(config)
    there["torchvision"] = object()  # type: ignore[assignment]
    check(config)


def test_t24_a_text_model_that_vllm_computes_in_a_seeing_ones_module_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = {"torchvision": None}
    monkeypatch.setattr(support, "find_spec", there.get)
    config = {"model_type": "qwen3_5_text", "architectures": ["Qwen3_5ForCausalLM"]}
    config |= {"hidden_size": 64, "num_attention_heads": 2}
    with pytest.raises(UsageError, match="wants torchvision"):
        check(config)
    there["torchvision"] = object()  # type: ignore[assignment]
    check(config)


@pytest.mark.parametrize(
    ("config", "odd"),
    [
        ({"hidden_size": 64, "num_attention_heads": 4}, "16"),
        ({"hidden_size": 64, "num_attention_heads": 2, "head_dim": 48}, "48"),
        ({"model_type": "gemma4_text", "head_dim": 24, "global_head_dim": 72}, "24 and 72"),
    ],
)
def test_heads_that_vllm_does_not_compute_on_a_cpu_are_refused(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], odd: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match=f"attention heads of {odd} values, .* on a CPU"):
        check(LLAMA | {"architectures": None} | config)
    check_support(ModelRef("m", "m", "r", LLAMA | config), captures=True, generates=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check(LLAMA | config)


def test_latents_that_vllm_does_not_compute_on_a_cpu_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    deepseek = {"model_type": "deepseek_v3", "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    with pytest.raises(UsageError, match='write "scoring_func": "sigmoid" into its config.json'):
        check(deepseek)
    deepseek |= {"scoring_func": "sigmoid"}
    check(deepseek)
    small = deepseek | {"kv_lora_rank": 256, "qk_rope_head_dim": 32}
    with pytest.raises(UsageError, match="attends in 288 latent values, .* 576 alone on a CPU"):
        check(small)
    check({"model_type": "minicpm3", "kv_lora_rank": 256, "qk_rope_head_dim": 32})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check(small)


def test_mamba_layers_of_the_first_kind_are_refused_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    jamba = {"model_type": "jamba", "architectures": ["JambaForCausalLM"]}
    with pytest.raises(UsageError, match="Mamba layers of the first kind, .* on no CPU"):
        check(jamba)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check(jamba)


def test_experts_whose_bias_is_left_out_on_a_cpu_are_refused_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ERNIE-4.5's: log-probabilities were up to 15 nats apart."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ernie = {"model_type": "ernie4_5_moe", "moe_num_experts": 4}
    with pytest.raises(UsageError, match="experts with a bias, which vLLM leaves out on a CPU"):
        check(ernie)
    check({"model_type": "ernie4_5"})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check(ernie)


def test_the_widths_of_heads_on_a_cpu_are_vllms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = find_spec("vllm")  # its source: importing it takes long
    assert spec is not None
    assert spec.origin is not None
    backend = Path(spec.origin).with_name("v1") / "attention/backends/cpu_attn.py"
    assert f"return {list(CPU_HEADS)}" in backend.read_text()
    assert f"return {[CPU_LATENT]}" in backend.with_name("mla").joinpath("cpu_mla.py").read_text()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for width in CPU_HEADS:
        check(LLAMA | {"head_dim": width})


def test_a_config_without_decoder_layers_is_refused() -> None:
    with pytest.raises(UsageError, match="blt names no decoder layers"):
        check_capture({"model_type": "blt"}, CaptureSettings(), "cpu")


def test_an_infinity_that_transformers_wrote_into_a_config_is_read(tmp_path: Path) -> None:
    """Granite-4's and Falcon-H1's, saved again by transformers 5."""
    from transformers import GraniteMoeHybridConfig

    GraniteMoeHybridConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(
        path.read_text().replace("{", '{"time_step_limit": [0.0, {"__float__": "Infinity"}],', 1)
    )
    found = find_model(str(tmp_path))
    assert found.config["time_step_limit"] == [0.0, float("inf")]
    check_capture(found.config, CaptureSettings(), "cpu")


@pytest.mark.parametrize(
    ("config", "keeps"),
    [
        ({"model_type": "llama"}, False),
        ({"model_type": "gemma3_text"}, False),
        ({"model_type": "llama4_text"}, False),
        ({"model_type": "qwen3_next"}, True),
        ({"model_type": "qwen3_5_text"}, True),
        ({"model_type": "granitemoehybrid", "layer_types": ["mamba", "attention"] * 16}, True),
        ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"] * 16}, True),
        ({"model_type": "falcon_h1"}, True),
        ({"model_type": "jamba"}, True),
    ],
)
def test_models_whose_layers_keep_a_state_are_told(config: dict[str, Any], keeps: bool) -> None:
    assert keeps_state(read_config(config).get_text_config()) == keeps
