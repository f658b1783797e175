"""Which attention implementation and compute dtype are right for a model family. Reads configs, loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..settings import CaptureSettings

KEEPS_SOFT_CAP = ("eager", "flash_attention_2", "flex_attention")
"""Implementations that apply a soft-cap on attention scores. sdpa takes the argument and silently drops it."""

_HALF = ("bfloat16", "float16")
_NEVER_FLOAT16 = ("gemma", "t5gemma", "vaultgemma")
"""Families whose residual stream overflows float16 (Gemma-3 reaches 32,000 of 65,504 in ordinary text)."""


def read_config(raw: Mapping[str, Any]) -> Any:
    """A config.json as transformers reads it: what the file leaves out by its defaults, sizes under common names.

    Raises UsageError for a model type that transformers does not know or values that it refuses.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    kind = str(raw.get("model_type", ""))
    if kind not in CONFIG_MAPPING:
        raise UsageError(
            f"model type {kind or '(none)'} in config.json is unknown to transformers; take another model"
        )
    try:
        return CONFIG_MAPPING[kind].from_dict(dict(raw))
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise UsageError(
            f"config.json of model type {kind} cannot be used: {' '.join(str(error).split())}"
        ) from None


def computes_bfloat16(device: str) -> bool:
    """Whether `device` (cpu or cuda) has bfloat16 arithmetic: GPUs before Ampere have not."""
    import torch

    return device != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def has_soft_cap(text_config: Any) -> bool:
    """Whether attention scores pass through cap * tanh(score / cap), as in Gemma-2."""
    return getattr(text_config, "attn_logit_softcapping", None) is not None


def length_dependent_rope(text_config: Any) -> tuple[str, int] | None:
    """(rope type, tokens) where positions are turned by the length of the longest row, once it is beyond `tokens`."""
    parameters = getattr(text_config, "rope_parameters", None) or {}
    for each in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
        kind = str(each.get("rope_type"))
        if kind == "longrope":
            return kind, int(each["original_max_position_embeddings"])
        if "dynamic" in kind:
            return kind, int(text_config.max_position_embeddings)
    return None


def choose_attention(
    text_config: Any,
    requested: str,
    *,
    device: str,
    dtype: str,
    supports_sdpa: bool = True,
    flash: bool = False,
) -> str:
    """The implementation to load the model with.

    `device` is cpu or cuda; `flash` says whether flash-attn with soft-cap support can be imported. Soft-cap models get
    flash_attention_2 where it exists (GPU, half precision) and eager everywhere else; all others get sdpa, whose
    causal kernels need no mask. Raises UsageError when the requested one would compute something else.
    """
    capped = has_soft_cap(text_config)
    if requested != "auto":
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        known = {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
        if (
            requested not in known and "/" not in requested
        ):  # with a slash it is a kernel on the hub
            raise UsageError(
                f"--attention {requested} is unknown to transformers; use auto, eager or sdpa"
            )
        if capped and requested not in KEEPS_SOFT_CAP:
            raise UsageError(
                f"--attention {requested} drops this model's soft-cap on attention scores; "
                f"use auto or one of {', '.join(KEEPS_SOFT_CAP)}"
            )
        if requested == "flash_attention_2" and (device == "cpu" or dtype not in _HALF):
            raise UsageError(
                "--attention flash_attention_2 needs a GPU and --capture_dtype bfloat16 or float16; use auto"
            )
        if requested == "flash_attention_2" and capped and not flash:
            raise UsageError(
                "--attention flash_attention_2: this model soft-caps attention scores, which flash-attn knows from "
                "2.6 on; install it, or use auto"
            )
        return requested
    if capped:
        return "flash_attention_2" if flash and device != "cpu" and dtype in _HALF else "eager"
    return "sdpa" if supports_sdpa else "eager"


def flash_with_soft_cap() -> bool:
    """Whether flash-attn is installed and new enough (2.6) to know soft-caps; an older one drops them silently."""
    from importlib.util import find_spec

    if find_spec("flash_attn") is None:
        return False
    from importlib import import_module
    from inspect import signature

    return "softcap" in signature(import_module("flash_attn").flash_attn_func).parameters


def choose_dtype(config: Any, requested: str, *, bfloat16: bool = True) -> str:
    """The compute dtype: what is asked for, else bfloat16 for half-precision models, else float32.

    `bfloat16` says whether the device computes in it. float16 is never chosen and is refused for Gemma, whose
    residual stream overflows it.
    """
    if requested == "auto":
        # Composite models may name the dtype on the outer config only.
        own = str(config.get_text_config().dtype or config.dtype or "float32").removeprefix(
            "torch."
        )
        return "bfloat16" if own in _HALF and bfloat16 else "float32"
    if requested not in (*_HALF, "float32"):
        raise UsageError(
            f"--capture_dtype {requested} is unknown; use auto, bfloat16, float16 or float32"
        )
    if requested == "float16" and str(config.model_type).startswith(_NEVER_FLOAT16):
        raise UsageError(
            "--capture_dtype float16 overflows in Gemma's residual stream; use bfloat16 or float32"
        )
    if requested == "bfloat16" and not bfloat16:
        raise UsageError(
            "--capture_dtype bfloat16: this GPU does not compute in it; use auto or float32"
        )
    return requested


def generation_itemsize(config: Any, requested: str, *, bfloat16: bool) -> int:
    """Bytes of a value in vLLM: under `auto` half precision, but where only float16 is left and overflows."""
    if requested != "auto":
        return 4 if requested == "float32" else 2
    return 2 if bfloat16 or not str(config.model_type).startswith((*_NEVER_FLOAT16, "glm4")) else 4


def check_layers(layers: Sequence[int] | None, n_layers: int) -> None:
    """Raises UsageError for a layer that a model of `n_layers` decoder blocks does not have."""
    if layers and layers[-1] >= n_layers:
        raise UsageError(
            f"--layers {layers[-1]}: this model has layers 0 to {n_layers - 1}; index i is the residual stream leaving "
            "block i"
        )


def check_capture(raw: Mapping[str, Any], capture: CaptureSettings, device: str) -> None:
    """Refuse capture settings that a model cannot be loaded with, before anything is written or loaded.

    `raw` is its config.json, `device` cpu or cuda. Raises UsageError.
    """
    config = read_config(raw)
    text_config = config.get_text_config()
    require_causal(text_config)
    check_layers(capture.layers, int(text_config.num_hidden_layers))
    dtype = choose_dtype(config, capture.dtype, bfloat16=computes_bfloat16(device))
    flash = device == "cuda" and flash_with_soft_cap()
    choose_attention(text_config, capture.attention, device=device, dtype=dtype, flash=flash)


def require_causal(text_config: Any) -> None:
    """Raises UsageError for a model whose tokens see later ones: right padding without a mask is not exact there."""
    looks_ahead = getattr(text_config, "use_bidirectional_attention", None) in (True, "all")
    if looks_ahead or not getattr(text_config, "is_causal", True):
        raise UsageError(
            f"model type {text_config.model_type} attends to later tokens; capture works on causal language models"
        )
