"""What a model needs, from its config: attention, dtype, sizes. Loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..settings import CaptureSettings
from .gpus import read_gpus

KEEPS_SOFT_CAP = ("eager", "flash_attention_2", "flex_attention")
"""Implementations that apply a soft-cap on attention scores. sdpa drops it without a word."""
_HALF = ("bfloat16", "float16")
OVERFLOWS_FLOAT16 = ("gemma", "t5gemma", "vaultgemma")
"""Families whose residual stream is too large for it (Gemma-3 reaches 32,000 of 65,504)."""


def read_config(raw: Mapping[str, Any]) -> Any:
    """Return a config.json as transformers reads it: defaults filled in, sizes under common names.

    Raise UsageError for a model type that transformers does not know or values that it refuses.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    kind = str(raw.get("model_type", ""))
    if kind not in CONFIG_MAPPING:
        raise UsageError(
            f"model type {kind or '(none)'} in config.json is unknown to transformers; take "
            "another model"
        )
    try:
        return CONFIG_MAPPING[kind].from_dict(dict(raw))
    except (StrictDataclassError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"config.json of model type {kind} cannot be used: {reason}") from None


def check_capture(raw: Mapping[str, Any], capture: CaptureSettings, device: str) -> tuple[str, str]:
    """Return the dtype and attention that settings come to on a device. Load nothing.

    `raw` is its config.json, `device` cpu or cuda. Where a model's class has no sdpa, it takes
    eager for it. Raise UsageError for settings that a model cannot be loaded with.
    """
    config = read_config(raw)
    text_config = config.get_text_config()
    require_causal(text_config)
    require_class(config)
    n_layers = getattr(text_config, "num_hidden_layers", None)
    if not n_layers:
        raise UsageError(
            f"model type {config.model_type} names no decoder layers in its config, which capture "
            "reads; take a decoder with attention, or give `extract_activations` False"
        )
    check_layers(capture.layers, int(n_layers))
    dtype = dtype_on(config, capture.dtype, device)
    flash = device == "cuda" and has_soft_cap(text_config) and flash_with_soft_cap()
    attention = capture.attention
    return dtype, choose_attention(text_config, attention, device=device, dtype=dtype, flash=flash)


def require_causal(text_config: Any) -> None:
    """Raise UsageError where tokens see later ones: right padding is not exact without a mask."""
    looks_ahead = getattr(text_config, "use_bidirectional_attention", None) in (True, "all")
    if getattr(text_config, "is_decoder", None) is False:  # BERT's kind; GPT-NeoX never reads it
        looks_ahead = not text_config.model_type.startswith("gpt_neox")
    if looks_ahead or not getattr(text_config, "is_causal", True):
        raise UsageError(
            f"model type {text_config.model_type} attends to later tokens; capture works on causal "
            "language models"
        )


_SEEING = ("mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Models of text and pictures, no causal models by transformers' list, whose text is read exactly
where no picture is shown: tried, see docs/models.md."""


def loading_class(config: Any) -> tuple[Any, type] | None:
    """Return transformers' class that loads a language model of this type, and the model's own.

    None where there is none, or none that is known to read text as vLLM does.
    """
    import transformers

    causal = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) in causal:
        return transformers.AutoModelForCausalLM, causal[type(config)]
    seeing = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if config.model_type in _SEEING and type(config) in seeing:
        return transformers.AutoModelForImageTextToText, seeing[type(config)]
    return None


def require_class(config: Any) -> tuple[Any, type]:
    """Return `loading_class`. Raise UsageError where transformers has no such model."""
    found = loading_class(config)
    if found is None:
        raise UsageError(
            f"model type {config.model_type} has no causal language model in transformers, which "
            "capture needs; take another, or give `extract_activations` False"
        )
    return found


def check_layers(layers: Sequence[int] | None, n_layers: int) -> None:
    """Raise UsageError for a layer that a model of `n_layers` decoder blocks does not have."""
    if layers and layers[-1] >= n_layers:
        raise UsageError(
            f"`layers` {layers[-1]}: this model has layers 0 to {n_layers - 1}; index i is the "
            "residual stream leaving block i"
        )


def keeps_state(text_config: Any) -> bool:
    """Return whether some layers carry a state from token to token (Mamba, linear attention)."""
    kinds = [
        str(kind)
        for name in ("layer_types", "layers_block_type", "block_types")
        for kind in getattr(text_config, name, None) or []
    ]
    linear = any(kind == "linear_attention" or "attention" not in kind for kind in kinds)
    sizes = ("mamba_d_state", "mamba_d_ssm", "ssm_state_size", "state_size")
    return linear or any(getattr(text_config, name, None) for name in sizes)


def has_soft_cap(text_config: Any) -> bool:
    """Return whether attention scores pass through cap * tanh(score / cap), as in Gemma-2."""
    return getattr(text_config, "attn_logit_softcapping", None) is not None


def length_dependent_rope(text_config: Any) -> tuple[str, int] | None:
    """Return (rope type, tokens) where the longest row, once beyond `tokens`, turns positions."""
    parameters = getattr(text_config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    for each in (parameters, *nested):
        kind = str(each.get("rope_type"))
        if kind == "longrope":
            return kind, int(each["original_max_position_embeddings"])
        if "dynamic" in kind:
            return kind, int(text_config.max_position_embeddings)
    return None


def flash_with_soft_cap() -> bool:
    """Return whether flash-attn can be imported and knows soft-caps (2.6); an older one drops them.

    One that was built for another PyTorch is there and cannot be.
    """
    if find_spec("flash_attn") is None:
        return False
    try:
        return "softcap" in signature(import_module("flash_attn").flash_attn_func).parameters
    except (ImportError, OSError, AttributeError):
        return False


def choose_attention(
    text_config: Any,
    requested: str,
    *,
    device: str,
    dtype: str,
    supports_sdpa: bool = True,
    flash: bool = False,
) -> str:
    """Return the attention implementation to load the model with.

    `device` is cpu or cuda; `flash` says whether flash-attn with soft-cap support can be imported.
    Soft-cap models get flash_attention_2 where it exists (GPU, half precision), else eager; others
    sdpa. Raise UsageError when the requested one would compute something else.
    """
    capped = has_soft_cap(text_config)
    half_on_gpu = device != "cpu" and dtype in _HALF
    if requested == "auto":
        if capped:
            return "flash_attention_2" if flash and half_on_gpu else "eager"
        return "sdpa" if supports_sdpa else "eager"
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    fault, keeping = "", ", ".join(KEEPS_SOFT_CAP)
    if requested not in known and "/" not in requested:  # with a slash it is a kernel on the hub
        fault = "is unknown to transformers; use auto, eager or sdpa"
    elif capped and requested not in KEEPS_SOFT_CAP:
        fault = f"drops this model's soft-cap on attention scores; use auto or one of {keeping}"
    elif requested == "flash_attention_2" and not half_on_gpu:
        fault = "needs a GPU and `capture_dtype` bfloat16 or float16; use auto"
    elif requested == "flash_attention_2" and capped and not flash:
        fault = (
            "drops this model's soft-cap on attention scores, which flash-attn knows from 2.6 on; "
            "install that, or use auto"
        )
    elif requested == "eager" and getattr(text_config, "alibi", False):
        fault = "adds ALiBi twice in transformers' Falcon; use auto or sdpa"
    if fault:
        raise UsageError(f"`attention` {requested} {fault}")
    return requested


@cache
def computes_bfloat16(device: str) -> bool:
    """Return whether `device`, cpu or cuda, has bfloat16 arithmetic: GPUs before Ampere have not.

    Asked of the driver: PyTorch would take a context on the card for the answer.
    """
    return device != "cuda" or all(gpu.capability >= (8, 0) for gpu in read_gpus())


@cache
def fast_bfloat16(device: str) -> bool:
    """Return whether bfloat16 is the faster dtype on `device`, cpu or cuda.

    A CPU without instructions for it is several times slower in bfloat16 than in float32
    (docs/decisions/011-bfloat16-on-cpu.md).
    """
    if device == "cuda":
        return computes_bfloat16(device)
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return True
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def dtype_on(config: Any, requested: str, device: str) -> str:
    """Return the compute dtype on `device`, cpu or cuda; `choose_dtype` has the rules."""
    usable = fast_bfloat16 if requested == "auto" else computes_bfloat16
    return choose_dtype(config, requested, bfloat16=usable(device))


def choose_dtype(config: Any, requested: str, *, bfloat16: bool = True) -> str:
    """Return the compute dtype: what is asked for, else bfloat16 for half-precision models.

    All others run in float32. `bfloat16` says whether the device computes in it. float16 is never
    chosen and is refused for Gemma, whose residual stream overflows it. Raise UsageError.
    """
    if requested == "auto":
        return "bfloat16" if stored_itemsize(config) == 2 and bfloat16 else "float32"
    fault = ""
    if requested not in (*_HALF, "float32"):
        fault = " is unknown; use auto, bfloat16, float16 or float32"
    elif requested == "float16" and str(config.model_type).startswith(OVERFLOWS_FLOAT16):
        fault = " overflows in Gemma's residual stream; use bfloat16 or float32"
    elif requested == "bfloat16" and not bfloat16:
        fault = ": this GPU does not compute in it; use auto or float32"
    if fault:
        raise UsageError(f"`capture_dtype` {requested}{fault}")
    return requested


def generation_dtype(config: Any, requested: str, *, gpu: bool) -> str:
    """Return the dtype to ask vLLM for: `auto` is its own choice where that is safe and fast.

    On a CPU without bfloat16 a model of half precision runs in float32, several times faster; on a
    GPU without it, one that overflows in float16 does, which vLLM knows of some families alone.
    vLLM computes gated delta nets (Qwen3-Next, Qwen3.5) on a CPU in bfloat16 alone. Raise
    UsageError where another dtype is asked for there.
    """
    if not gpu and getattr(config.get_text_config(), "linear_num_value_heads", None):
        if requested not in ("auto", "bfloat16"):
            raise UsageError(
                f"`dtype` {requested}: vLLM computes this model on a CPU in bfloat16 alone; use "
                "auto or bfloat16"
            )
        return "bfloat16"
    if requested != "auto":
        return requested
    if not gpu:
        return dtype_on(config, "auto", "cpu")
    return "auto" if half_dtype(config, bfloat16=computes_bfloat16("cuda")) else "float32"


def half_dtype(config: Any, *, bfloat16: bool) -> str:
    """Return the dtype of two bytes a value that a model can run in; empty where there is none.

    `bfloat16` says whether the device computes in it. Without it only float16 is left.
    """
    if bfloat16:
        return "bfloat16"
    overflows = str(config.model_type).startswith((*OVERFLOWS_FLOAT16, "glm4"))
    return "" if overflows else "float16"


def stored_itemsize(config: Any) -> int:
    """Return the bytes of a value in the dtype that a config names; four where it names none."""
    # Composite models may name the dtype on the outer config only.
    own = str(config.get_text_config().dtype or config.dtype).removeprefix("torch.")
    return 2 if own in _HALF else 4


def itemsize(dtype: str) -> int:
    """Return the bytes of a value."""
    return 4 if dtype == "float32" else 2
