"""A causal language model loaded for capture, and where its decoder blocks are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import AccessError, ResourceError, UsageError
from ..models import config as attention
from ..models import refuse_faulty

OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",  # cuBLAS's, on a card that is all but full
)


_SHORT_WINDOWS = ("cohere2", "cohere2_moe")
"""Model types whose window holds the token itself and as many before it as config.json says. So
they were trained and vLLM computes them; transformers 5.19 leaves one out."""


def is_out_of_memory(error: BaseException) -> bool:
    """True for CUDA's out-of-memory, for the CPU allocator's (a plain RuntimeError) and for
    Python's own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error).lower() for text in OUT_OF_MEMORY_TEXTS
    )


def load(
    source: str,
    *,
    dtype: str,
    attn: str,
    device: str,
    revision: str | None = None,
    adapter: str | None = None,
) -> Any:
    """Load a causal language model for inference, with the LoRA adapter of a folder over it.

    `dtype` and `attn` as in settings.Capture. On several GPUs `cuda` spreads the layers over them.
    Raises AccessError when files are missing, UsageError for settings that cannot work,
    ResourceError when the weights do not fit.
    """
    from transformers import AutoConfig

    kind = torch.device(device).type
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise AccessError(
            f"the config of model {source} cannot be loaded: {_first_line(error)}"
        ) from None
    text_config = config.get_text_config()
    attention.require_causal(text_config)
    chosen = attention.dtype_on(config, dtype, kind)
    loader, family = attention.require_class(config)
    spread = kind == "cuda" and torch.device(device).index is None and torch.cuda.device_count() > 1
    try:
        model, info = loader.from_pretrained(
            source,
            revision=revision,
            trust_remote_code=False,
            dtype=getattr(torch, chosen),
            attn_implementation=_implementation(config, family, attn, kind, chosen),
            device_map="auto" if spread else {"": device},
            output_loading_info=True,
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"the weights of {source} do not fit on {device}: free memory there, or use "
            f"`capture_device`"
        ) from error
    except (OSError, ValueError, ImportError) as error:
        raise AccessError(
            f"the weights of model {source} cannot be loaded: {_first_line(error)}"
        ) from None
    refuse_faulty(source, config, model, info)
    if adapter is not None:
        _add_adapter(model, adapter)
    if spread:
        _refuse_spill(model, source)
    if text_config.model_type in _SHORT_WINDOWS:
        _widen(model)
    if attention.length_dependent_rope(text_config) is not None:
        model.register_forward_pre_hook(_forget_lengths)
    return model.eval().requires_grad_(requires_grad=False)


def _widen(model: Any) -> None:
    """Let sliding windows hold one token more."""
    if model.config.get_text_config().sliding_window is None:
        return
    model.config.get_text_config().sliding_window += 1  # masks are made of it
    for module in model.modules():
        if isinstance(getattr(module, "sliding_window", None), int):
            module.sliding_window += 1


def _refuse_spill(model: Any, source: str) -> None:
    """Raise ResourceError where GPUs do not hold a model: accelerate would run what is left over
    from host memory, at a crawl."""
    if any(parameter.device.type != "cuda" for parameter in model.parameters()):
        raise ResourceError(
            f"the weights of {source} do not fit on the {torch.cuda.device_count()} GPUs here: "
            "free memory there, or use `capture_device` cpu"
        )


def _implementation(config: Any, family: type, asked: str, kind: str, dtype: str) -> str:
    """Return the attention implementation on a kind of device. Raise UsageError."""
    text_config = config.get_text_config()
    capped = attention.has_soft_cap(text_config)
    return attention.choose_attention(
        text_config,
        asked,
        device=kind,
        dtype=dtype,
        supports_sdpa=getattr(family, "_supports_sdpa", False),
        flash=kind == "cuda" and capped and attention.flash_with_soft_cap(),
    )


def _add_adapter(model: Any, folder: str) -> None:
    """Add an adapter's products beside the weights, in the weights' dtype, as vLLM does.

    Raises AccessError where some of its parts found no place.
    """
    info = model.load_adapter(folder)
    lost = sorted({*info.missing_keys, *info.unexpected_keys, *info.mismatched_keys})
    if lost:
        raise AccessError(
            f"`adapter` {folder}: {', '.join(map(str, lost[:3]))} found no place in the model"
        )


def _forget_lengths(model: nn.Module, _args: Any) -> None:
    """transformers' dynamic RoPE goes on with the frequencies of the longest row so far: make each
    forward a first."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", "")
        for layer_type, kind in kinds.items() if isinstance(kinds, dict) else [("", kinds)]:
            if "dynamic" in str(kind):
                prefix = f"{layer_type}_" if layer_type else ""
                frequencies = getattr(module, f"{prefix}inv_freq")
                original = getattr(module, f"{prefix}original_inv_freq").to(frequencies.device)
                setattr(module, f"{prefix}inv_freq", original)
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def find_blocks(model: nn.Module, path: str | None = None) -> list[nn.Module]:
    """The decoder blocks in order.

    Without `path`: the one list of as many modules as the config has layers, nearest the decoder's
    top. Raises UsageError naming `blocks` when there is no such list, or several, or `path` leads
    nowhere.
    """
    n_layers = int(model.config.get_text_config().num_hidden_layers)
    if path is not None:
        try:
            found = model.get_submodule(path)
        except AttributeError:
            raise UsageError(
                f"`blocks` {path}: {type(model).__name__} has no such module; {_lists(model)}"
            ) from None
        if not isinstance(found, nn.ModuleList) or len(found) != n_layers:
            raise UsageError(
                f"`blocks` {path} is not a list of the {n_layers} blocks the config speaks of; "
                f"{_lists(model)}"
            )
        return list(found)
    decoder = model.get_decoder()
    candidates = [
        (name, module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    depth = min((name.count(".") for name, _ in candidates), default=0)
    nearest = [module for name, module in candidates if name.count(".") == depth]
    if len(nearest) != 1:
        raise UsageError(
            f"the decoder blocks of {type(model).__name__} were not found; name them, "
            f"as in `blocks` model.layers; {_lists(model)}"
        )
    return list(nearest[0])


def _lists(model: nn.Module) -> str:
    lists = [
        f"{name} ({len(m)})" for name, m in model.named_modules() if isinstance(m, nn.ModuleList)
    ]
    return "lists of modules here: " + (", ".join(lists[:8]) or "none")


def free_bytes(model: nn.Module) -> int:
    """Return what is free on the GPU with least, of those that hold a model's layers."""
    places = {parameter.device for parameter in model.parameters()}
    return int(min(torch.cuda.mem_get_info(place)[0] for place in places))


def hidden_of(output: Any) -> torch.Tensor:
    """The residual stream `[batch, seq, dim]` in what a block returned (a tensor, or a tuple that
    starts with it)."""
    return output[0] if isinstance(output, tuple) else output


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
