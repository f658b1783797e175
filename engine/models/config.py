"""What a model needs, from its config: attention, dtype, sizes. Loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..settings import CaptureSettings

KEEPS_SOFT_CAP = ("eager", "flash_attention_2", "flex_attention")
"""Implementations that apply a soft-cap on attention scores. sdpa takes the argument and silently
drops it."""

_HALF = ("bfloat16", "float16")
_NEVER_FLOAT16 = ("gemma", "t5gemma", "vaultgemma")
"""Families whose residual stream overflows float16 (Gemma-3 reaches 32,000 of 65,504 in ordinary
text)."""


def read_config(raw: Mapping[str, Any]) -> Any:
    """A config.json as transformers reads it: what the file leaves out by its defaults, sizes under
    common names.

    Raises UsageError for a model type that transformers does not know or values that it refuses.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    kind = str(raw.get("model_type", ""))
    if kind not in CONFIG_MAPPING:
        raise UsageError(
            f"model type {kind or '(none)'} in config.json is unknown to transformers; take "
            f"another model"
        )
    try:
        return CONFIG_MAPPING[kind].from_dict(dict(raw))
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise UsageError(
            f"config.json of model type {kind} cannot be used: {' '.join(str(error).split())}"
        ) from None


def computes_bfloat16(device: str) -> bool:
    """Return whether `device` (cpu or cuda) has bfloat16 arithmetic: GPUs before Ampere have not."""
    import torch

    return device != "cuda" or bool(torch.cuda.is_bf16_supported(including_emulation=False))


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
    fast = computes_bfloat16(device)
    if requested == "auto":
        fast = fast_bfloat16(device)
    return choose_dtype(config, requested, bfloat16=fast)


def has_soft_cap(text_config: Any) -> bool:
    """Whether attention scores pass through cap * tanh(score / cap), as in Gemma-2."""
    return getattr(text_config, "attn_logit_softcapping", None) is not None


def length_dependent_rope(text_config: Any) -> tuple[str, int] | None:
    """(rope type, tokens) where positions are turned by the length of the longest row, once it is
    beyond `tokens`."""
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

    `device` is cpu or cuda; `flash` says whether flash-attn with soft-cap support can be imported.
    Soft-cap models get flash_attention_2 where it exists (GPU, half precision) and eager everywhere
    else; all others get sdpa, whose causal kernels need no mask. Raises UsageError when the
    requested one would compute something else.
    """
    capped = has_soft_cap(text_config)
    if requested != "auto":
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        known = {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
        if (
            requested not in known and "/" not in requested
        ):  # with a slash it is a kernel on the hub
            raise UsageError(
                f"`attention` {requested} is unknown to transformers; use auto, eager or sdpa"
            )
        if capped and requested not in KEEPS_SOFT_CAP:
            raise UsageError(
                f"`attention` {requested} drops this model's soft-cap on attention scores; "
                f"use auto or one of {', '.join(KEEPS_SOFT_CAP)}"
            )
        if requested == "flash_attention_2" and (device == "cpu" or dtype not in _HALF):
            raise UsageError(
                "`attention` flash_attention_2 needs a GPU and `capture_dtype` bfloat16 or "
                "float16; use auto"
            )
        if requested == "flash_attention_2" and capped and not flash:
            raise UsageError(
                "`attention` flash_attention_2: this model soft-caps attention scores, which "
                "flash-attn knows from "
                "2.6 on; install it, or use auto"
            )
        return requested
    if capped:
        return "flash_attention_2" if flash and device != "cpu" and dtype in _HALF else "eager"
    return "sdpa" if supports_sdpa else "eager"


def flash_with_soft_cap() -> bool:
    """Whether flash-attn is installed and new enough (2.6) to know soft-caps; an older one drops
    them silently."""
    from importlib.util import find_spec

    if find_spec("flash_attn") is None:
        return False
    from importlib import import_module
    from inspect import signature

    return "softcap" in signature(import_module("flash_attn").flash_attn_func).parameters


def choose_dtype(config: Any, requested: str, *, bfloat16: bool = True) -> str:
    """The compute dtype: what is asked for, else bfloat16 for half-precision models, else float32.

    `bfloat16` says whether the device computes in it. float16 is never chosen and is refused for
    Gemma, whose residual stream overflows it.
    """
    if requested == "auto":
        # Composite models may name the dtype on the outer config only.
        own = str(config.get_text_config().dtype or config.dtype or "float32").removeprefix(
            "torch."
        )
        return "bfloat16" if own in _HALF and bfloat16 else "float32"
    if requested not in (*_HALF, "float32"):
        raise UsageError(
            f"`capture_dtype` {requested} is unknown; use auto, bfloat16, float16 or float32"
        )
    if requested == "float16" and str(config.model_type).startswith(_NEVER_FLOAT16):
        raise UsageError(
            "`capture_dtype` float16 overflows in Gemma's residual stream; use bfloat16 or float32"
        )
    if requested == "bfloat16" and not bfloat16:
        raise UsageError(
            "`capture_dtype` bfloat16: this GPU does not compute in it; use auto or float32"
        )
    return requested


def generation_dtype(config: Any, requested: str, *, gpu: bool) -> str:
    """Return the dtype to ask vLLM for: `auto` is its own choice, but on a CPU without bfloat16.

    There a model of half precision runs in float32, several times faster.
    """
    if requested != "auto" or gpu:
        return requested
    return dtype_on(config, "auto", "cpu")


def generation_itemsize(config: Any, requested: str, *, bfloat16: bool) -> int:
    """Return bytes of a value in vLLM: under `auto` half precision, unless only float16 is left.

    float16 overflows in some families, which then run in float32.
    """
    if requested != "auto":
        return 4 if requested == "float32" else 2
    if bfloat16 or not str(config.model_type).startswith((*_NEVER_FLOAT16, "glm4")):
        return 2
    return 4


def check_layers(layers: Sequence[int] | None, n_layers: int) -> None:
    """Raises UsageError for a layer that a model of `n_layers` decoder blocks does not have."""
    if layers and layers[-1] >= n_layers:
        raise UsageError(
            f"`layers` {layers[-1]}: this model has layers 0 to {n_layers - 1}; index i is the "
            f"residual stream leaving "
            "block i"
        )


def check_capture(raw: Mapping[str, Any], capture: CaptureSettings, device: str) -> None:
    """Refuse capture settings that a model cannot be loaded with, before anything is written or
    loaded.

    `raw` is its config.json, `device` cpu or cuda. Raises UsageError.
    """
    config = read_config(raw)
    text_config = config.get_text_config()
    require_causal(text_config)
    check_layers(capture.layers, int(text_config.num_hidden_layers))
    dtype = dtype_on(config, capture.dtype, device)
    flash = device == "cuda" and flash_with_soft_cap()
    choose_attention(text_config, capture.attention, device=device, dtype=dtype, flash=flash)


def require_causal(text_config: Any) -> None:
    """Raises UsageError for a model whose tokens see later ones: right padding without a mask is
    not exact there."""
    looks_ahead = getattr(text_config, "use_bidirectional_attention", None) in (True, "all")
    if looks_ahead or not getattr(text_config, "is_causal", True):
        raise UsageError(
            f"model type {text_config.model_type} attends to later tokens; capture works on causal "
            f"language models"
        )


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder that decide its memory."""

    n_layers: int
    hidden: int
    ffn: int
    """Width of the feed-forward part one token passes through: of all its active experts together.
    """
    ffn_stored: int
    """Width of the feed-forward part as stored: of all experts together."""
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool

    @classmethod
    def from_config(cls, config: Any) -> Shape:
        """Read config.json's values, or transformers' config; what is missing is as transformers
        defaults it.

        Raises UsageError for a model without the sizes of a transformer decoder, such as Mamba.
        """
        text = (read_config(config) if isinstance(config, Mapping) else config).get_text_config()

        def size(name: str) -> int:
            found = getattr(text, name, None) or 0
            return int(
                max(found) if isinstance(found, (list, tuple)) else found
            )  # Gemma-3n has one a layer

        n_layers, hidden, heads = map(
            size, ("num_hidden_layers", "hidden_size", "num_attention_heads")
        )
        if not (n_layers and hidden and heads):
            raise UsageError(
                f"model type {text.model_type} cannot be sized: its config names no layers, hidden "
                f"size or attention "
                "heads; take a decoder with attention"
            )
        ffn = size("intermediate_size") or 4 * hidden
        experts = size("num_experts") or size("num_local_experts") or size("n_routed_experts")
        width = size("moe_intermediate_size") or ffn if experts else ffn
        return cls(
            n_layers=n_layers,
            hidden=hidden,
            ffn=width * (size("num_experts_per_tok") or 2) if experts else width,
            ffn_stored=width * experts if experts else width,
            heads=heads,
            kv_heads=size("num_key_value_heads") or heads,
            head_dim=size("head_dim") or hidden // heads,
            vocab=size("vocab_size"),
            tied=bool(getattr(text, "tie_word_embeddings", True)),
        )

    @property
    def experts(self) -> bool:
        """Whether tokens are routed to some of several feed-forward parts."""
        return self.ffn_stored > self.ffn

    @property
    def parameters(self) -> int:
        """Weights, by the usual gated shape: attention 2·d·d_h·(n_q + n_kv), feed-forward 3·d·d_ff,
        embeddings."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        block = attention + 3 * self.hidden * self.ffn_stored
        return self.n_layers * block + self.vocab * self.hidden * (1 if self.tied else 2)

    def weight_bytes(self, itemsize: int) -> int:
        return self.parameters * itemsize

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Key and value of every layer."""
        return 2 * self.n_layers * self.kv_heads * self.head_dim * itemsize

    def block_bytes_per_token(self, itemsize: int) -> int:
        """Memory of one token while one block runs, and of its float32 copy while it is pooled.

        itemsize · (8·d + 3·d_ff + 2·(n_q + 2·n_kv)·d_h) + 4·d: inputs, residuals and norms; gate,
        up and product; queries, keys and values before and after rotation.
        """
        attention = 2 * (self.heads + 2 * self.kv_heads) * self.head_dim
        return itemsize * (8 * self.hidden + 3 * self.ffn + attention) + 4 * self.hidden

    def score_growth(self, itemsize: int) -> float:
        """How a token's memory grows per token of its row when scores are materialised (eager
        attention), relative to block_bytes_per_token: scores, mask sum and probabilities, and the
        float32 softmax."""
        return self.heads * (3 * itemsize + 4) / self.block_bytes_per_token(itemsize)
