"""What layers keep of a sequence beside keys and values, and how vLLM lays both out in its cache.

Sources: vLLM's `MambaStateShapeCalculator`, `_align_hybrid_block_size` and `get_kv_cache_groups`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

GPU_BLOCK = 16
"""Tokens of which vLLM's blocks on a GPU are multiples."""
_GPU_STATES = 2
"""Of a sequence and layer: where prefixes are cached, one is kept and one written."""
_NO_MEMORY = ("mlp", "moe")
"""Kinds of layers that keep nothing (Nemotron-H)."""


@dataclass(frozen=True, slots=True)
class State:
    """The sizes of what a hybrid model's layers carry from token to token.

    One arithmetic for all: of Mamba-1 and of short convolutions, groups or more are 0.
    """

    layers: int
    attending: int
    """Layers that keep keys and values; some keep both."""
    kernel: int
    """Tokens that the convolution sees, of which it keeps all but one."""
    inner: int
    """Width of what is carried: heads times their width."""
    groups: int
    width: int
    """Values carried for each of `inner`, and convolved twice for each group."""
    wide: bool
    """Whether they are float32, whatever the model's dtype."""

    def layer_bytes(self, itemsize: int, cards: int = 1) -> int:
        """Return the state of a sequence and layer on each of some cards."""
        groups = self.groups if self.groups % cards == 0 else cards
        convolved = (self.kernel - 1) * (self.inner + 2 * groups * self.width)
        carried = self.inner * self.width * (4 if self.wide else itemsize)
        return (convolved * itemsize + carried) // cards

    @property
    def _group(self) -> int:
        """Layers that share a table of blocks: the fewer of both kinds, or the more if alike."""
        counts = [count for count in (self.layers, self.attending) if count]
        return max(counts) if 2 * max(counts) < 3 * min(counts) else min(counts)

    def _block_tokens(self, token: int, itemsize: int, cards: int, step: int) -> int:
        return step * -(-self.layer_bytes(itemsize, cards) // (step * token))

    def block_bytes(
        self, kv_per_token: int, itemsize: int, cards: int = 1, step: int = GPU_BLOCK
    ) -> int:
        """Return the bytes of a block, which holds the state of one sequence in a group of layers.

        Keys and values of a layer get as many tokens as a state is large. `kv_per_token` is of all
        layers, of each card.
        """
        if not self.attending:
            return self._group * self.layer_bytes(itemsize, cards)
        token = kv_per_token // self.attending
        return self._group * token * self._block_tokens(token, itemsize, cards, step)

    def sequence_bytes(
        self, tokens: int, kv_per_token: int, itemsize: int, cards: int = 1, step: int = GPU_BLOCK
    ) -> int:
        """Return what a sequence takes of each card's cache."""
        blocks = -(-self.layers // self._group) * (_GPU_STATES if step == GPU_BLOCK else 1)
        if self.attending:
            token = kv_per_token // self.attending
            each = -(-tokens // self._block_tokens(token, itemsize, cards, step))
            blocks += -(-self.attending // self._group) * each
        return blocks * self.block_bytes(kv_per_token, itemsize, cards, step)


def read_state(text: Any, size: Callable[..., int]) -> State | None:
    """Return what a config's layers carry, None where they carry nothing or it names no sizes.

    `size` returns the first size that the config has of some names.
    """
    kinds = getattr(text, "layers_block_type", None) or getattr(text, "layer_types", None) or []
    keeping = [str(kind) for kind in kinds if kind not in _NO_MEMORY]
    carrying = [k for k in keeping if "attention" not in k or k == "linear_attention"]
    attending = [k for k in keeping if k not in carrying or "hybrid" in k]
    if heads := size("linear_num_value_heads", "linear_num_heads"):
        inner = heads * size("linear_value_head_dim", "linear_head_dim")
        groups = size("linear_num_key_heads", "linear_num_heads")
        width = size("linear_key_head_dim", "linear_head_dim")
        kernel = size("linear_conv_kernel_dim")
    elif kernel := size("conv_L_cache"):
        inner, groups, width = size("conv_dim", "hidden_size"), 0, 0
    else:
        inner = size("mamba_d_ssm")
        inner = inner or size("mamba_n_heads", "n_mamba_heads", "mamba_num_heads") * size(
            "mamba_d_head", "mamba_headdim", "mamba_head_dim"
        )
        inner = inner or size("mamba_expand") * size("hidden_size")
        groups = size("mamba_n_groups", "mamba_ngroups", "n_groups")
        width, kernel = size("mamba_d_state", "ssm_state_size"), size("mamba_d_conv", "conv_kernel")
    if not (carrying and inner and kernel):
        return None
    named = getattr(text, "mamba_ssm_dtype", None) or getattr(text, "mamba_ssm_cache_dtype", None)
    wide = str(named) == "float32" or text.model_type == "kimi_linear"
    return State(len(carrying), len(attending), kernel, inner, groups, width, wide)
