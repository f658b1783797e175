"""Models that the engines cannot use are refused from their config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from traitmill.engine.errors import UsageError
from traitmill.engine.models import ModelRef, check_support

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


def test_t24_a_vision_part_without_its_processor_is_told(tmp_path: Path) -> None:
    config = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "vision_config": {"hidden_size": 32},
    }
    with pytest.raises(UsageError, match=r"no preprocessor_config\.json.*copy it"):
        check(config, source=str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    check(config, source=str(tmp_path))
