"""Whether a model is of a kind that the two engines can use. Reads its config, imports little."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from ..errors import AccessError, UsageError
from .hub import ModelRef
from .shape import Shape, head_widths, latent_width

_GENERATING = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "Decoder", "WithLMHead")
"""Ends of the class names that predict the next token."""
_FP8 = ("fp8", "float-quantized", "modelopt", "mxfp4", "nvfp4")
_SEEING_IN_VLLM = ("qwen3_5_text", "qwen3_5_moe_text")
"""Models of text whose class in vLLM stands in the module of the one that sees."""
_UNBALANCED = ("ernie4_5_moe", "ernie4_5_vl_moe")
"""Model types whose experts are chosen by softmax and a bias, which vLLM's router on a CPU leaves
out: log-probabilities are then many nats apart. Source: its `CPURouter`."""
CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Widths of a head that vLLM's attention computes on a CPU. Source: its v1 CPU_ATTN backend."""
CPU_LATENT = 576
"""Width of a latent attention (DeepSeek) that it computes there. Source: its v1 CPU_MLA backend."""


def check_support(ref: ModelRef, *, captures: bool, generates: bool = True) -> None:
    """Raise UsageError for a model that cannot generate, or with `captures` not be captured, or is
    no transformer decoder; AccessError for one that needs code of its own.

    Without `generates` it need not be one that vLLM computes on this machine.

    Load nothing, and look at nothing but config.json and the names beside it.
    """
    _require_known(ref)
    _require_generating(ref)
    if ref.config.get("model_type") == "deepseek_v3" and "scoring_func" not in ref.config:
        # As transformers saves it again, though not as it is published.
        raise UsageError(
            f"model {ref.name} names no scoring_func for its experts, which vLLM takes for softmax "
            'and transformers for sigmoid: write "scoring_func": "sigmoid" into its config.json'
        )
    quantisation = quantised(ref.config)
    if quantisation and captures:
        raise UsageError(
            f"model {ref.name} is quantised ({quantisation}): capture cannot compute with the same "
            "weights as vLLM; take the model it was made from, or give `extract_activations` False"
        )
    if generates:
        if ref.config.get("model_type") == "gemma3n_text":
            # Its Gemma3nForCausalLM is never given them; the class around it, which sees, is.
            raise UsageError(
                f"model {ref.name} is the text part of a Gemma-3n by itself, for which vLLM leaves "
                "the embeddings of each layer out; take the whole model, as it is published"
            )
        Shape.from_config(ref.config)
        if not _has_gpu():
            _check_on_cpu(ref, quantisation)
    seeing = (
        isinstance(ref.config.get("vision_config"), dict)
        or ref.config.get("model_type") in _SEEING_IN_VLLM
    )
    if seeing and generates and find_spec("torchvision") is None:
        raise UsageError(
            f"model {ref.name} has a vision part, for which vLLM wants torchvision though no "
            "picture is shown: install the version of this PyTorch, or take a model of text alone"
        )


def _check_on_cpu(ref: ModelRef, quantisation: str) -> None:
    if any(name in quantisation for name in _FP8):
        raise UsageError(
            f"model {ref.name} is quantised ({quantisation}), which vLLM does not compute on a "
            "CPU; take the model it was made from, or a machine with a GPU"
        )
    if ref.config.get("model_type") == "jamba":
        raise UsageError(
            f"model {ref.name} has Mamba layers of the first kind, which vLLM computes on no "
            "CPU; take another model, or a machine with a GPU"
        )
    if ref.config.get("model_type") in _UNBALANCED:
        raise UsageError(
            f"model {ref.name} chooses its experts with a bias, which vLLM leaves out on a CPU; "
            "take another model, or a machine with a GPU"
        )
    latent = latent_width(ref.config)
    if latent not in (0, CPU_LATENT):
        raise UsageError(
            f"model {ref.name} attends in {latent} latent values, of which vLLM computes "
            f"{CPU_LATENT} alone on a CPU; take another model, or a machine with a GPU"
        )
    odd = [str(width) for width in head_widths(ref.config) if width not in CPU_HEADS]
    if odd:
        raise UsageError(
            f"model {ref.name} has attention heads of {' and '.join(odd)} values, which vLLM does "
            f"not compute on a CPU (it does {', '.join(map(str, CPU_HEADS))}); take another model, "
            "or a machine with a GPU"
        )


def quantised(config: Mapping[str, Any]) -> str:
    """Return in words how a checkpoint is quantised, empty where it is not.

    Source: `quantization_config` in config.json, which older exporters nest in `text_config`.
    """
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else {}
    how = config.get("quantization_config") or text.get("quantization_config")
    if not how:
        how = config.get("compression_config")
    if not isinstance(how, dict):
        return ""
    words = [str(how[key]) for key in ("quant_method", "quant_algo", "format") if how.get(key)]
    if how.get("bits"):
        words.append(f"{how['bits']} bits")
    return ", ".join(words) or "by an unnamed method"


def own_code_refused(ref: ModelRef) -> AccessError:
    """Return the error for a model that cannot be loaded without code from its own folder."""
    return AccessError(
        f"model {ref.name} brings code of its own (auto_map), which is never run here; take a "
        "model of a kind that transformers and vLLM know themselves"
    )


def _require_known(ref: ModelRef) -> None:
    if not ref.config.get("auto_map"):
        return
    from transformers import CONFIG_MAPPING

    if ref.config.get("model_type") not in CONFIG_MAPPING:
        raise own_code_refused(ref)


def _require_generating(ref: ModelRef) -> None:
    classes = ref.config.get("architectures") or []
    kind = ", ".join(map(str, classes)) or str(ref.config.get("model_type"))
    fault = ""
    if ref.config.get("is_encoder_decoder"):
        fault = "has an encoder beside its decoder"
    elif classes and not any(str(name).endswith(_GENERATING) for name in classes):
        fault = "predicts no next token"
    if fault:
        raise UsageError(
            f"model {ref.name} ({kind}) {fault}: take a causal language model (…ForCausalLM)"
        )


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())
