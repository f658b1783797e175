"""The sizes of a decoder that decide its memory, from its config, as arithmetic a user can read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError
from .config import read_config


def _size(text_config: Any, name: str) -> Any:
    """Return a size from a config, as a list over layers where they differ (Gemma-4)."""
    from transformers.integrations.heterogeneity.configuration_utils import (
        AmbiguousGlobalPerLayerAttributeError,
    )

    try:
        return getattr(text_config, name, None)
    except AmbiguousGlobalPerLayerAttributeError:
        layers = range(text_config.num_hidden_layers)
        return [getattr(text_config.per_layer_config[layer], name) for layer in layers]


def head_widths(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the widths of attention heads that a config.json names, ascending.

    None for a model without such heads, or with ones that hold keys in a latent form (DeepSeek).
    """
    text = read_config(raw).get_text_config()
    heads = _size(text, "num_attention_heads")
    if not heads or _size(text, "kv_lora_rank"):
        return ()
    width = _size(text, "head_dim") or int(text.hidden_size) // int(np.max(heads))
    return tuple(sorted({int(each) for each in np.atleast_1d(width)}))


def latent_width(raw: Mapping[str, Any]) -> int:
    """Return the width in which a config.json's attention keeps keys and values (DeepSeek, GLM).

    0 for a model that keeps them by heads.
    """
    text = read_config(raw).get_text_config()
    latent = _size(text, "kv_lora_rank")
    if not latent or text.model_type == "minicpm3":  # vLLM spreads its latents out
        return 0
    return int(latent) + int(_size(text, "qk_rope_head_dim") or 0)


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder that decide its memory."""

    n_layers: int
    hidden: int
    ffn: int
    """Width of the feed-forward part that a token passes through, over its active experts."""
    ffn_stored: int
    """Width of the feed-forward part as stored, over all experts."""
    heads: int
    kv_heads: int
    """Where layers differ, the largest; so for the width of a head."""
    head_dim: int
    kv_width: int
    """Key-value heads times their width, summed over layers."""
    vocab: int
    tied: bool

    @classmethod
    def from_config(cls, config: Any) -> Shape:
        """Read config.json's values, or transformers' config.

        Raise UsageError for a model without the sizes of a transformer decoder, such as Mamba.
        """
        if isinstance(config, Mapping):
            config = read_config(config)
        text = config.get_text_config()

        def found(*names: str) -> Any:
            """Return the first that is there: a number, or one of each layer."""
            return next(filter(None, (_size(text, name) for name in names)), 0)

        def size(*names: str) -> int:
            """Return the first size that is there, the largest where each layer has its own."""
            value = found(*names)
            return int(max(value) if isinstance(value, (list, tuple)) else value)

        hidden, heads = size("hidden_size"), size("num_attention_heads")
        if not (size("num_hidden_layers") and hidden and heads):
            raise UsageError(
                f"model type {text.model_type} cannot be sized: its config names no layers, hidden "
                "size or attention heads; take a decoder with attention"
            )
        width = size("intermediate_size") or 4 * hidden
        active = stored = 1
        if experts := size("num_experts", "num_local_experts", "n_routed_experts"):
            width = size("moe_intermediate_size") or width
            active, stored = size("num_experts_per_tok") or 2, experts
        kv_heads = found("num_key_value_heads") or heads
        head_dim = found("head_dim") or hidden // heads
        layers = size("num_hidden_layers")
        return cls(
            n_layers=layers,
            hidden=hidden,
            ffn=width * active,
            ffn_stored=width * stored,
            heads=heads,
            kv_heads=size("num_key_value_heads") or heads,
            head_dim=size("head_dim") or hidden // heads,
            kv_width=int((np.broadcast_to(kv_heads, layers) * head_dim).sum()),
            vocab=size("vocab_size"),
            tied=bool(getattr(text, "tie_word_embeddings", True)),
        )

    @property
    def experts(self) -> bool:
        """Whether tokens are routed to some of several feed-forward parts."""
        return self.ffn_stored > self.ffn

    @property
    def parameters(self) -> int:
        """Weights: attention 2·d·d_h·(n_q + n_kv), gated feed-forward 3·d·d_ff, embeddings."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        block = attention + 3 * self.hidden * self.ffn_stored
        return self.n_layers * block + self.vocab * self.hidden * (1 if self.tied else 2)

    def weight_bytes(self, itemsize: int) -> int:
        return self.parameters * itemsize

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Key and value of every layer."""
        return 2 * self.kv_width * itemsize

    def kv_bytes_of_a_card(self, itemsize: int, cards: int) -> int:
        """Key and value of every layer on each of some cards, which share heads, not halves of one.

        With more cards than key-value heads, vLLM keeps some heads twice.
        """
        return self.kv_bytes_per_token(itemsize) // min(cards, self.kv_heads)

    def block_bytes_per_token(self, itemsize: int) -> int:
        """Memory of one token while one block runs, and of its float32 copy while it is pooled.

        itemsize · (8·d + 3·d_ff + 2·(n_q + 2·n_kv)·d_h) + 4·d: inputs, residuals and norms; gate,
        up and product; queries, keys and values before and after rotation.
        """
        attention = 2 * (self.heads + 2 * self.kv_heads) * self.head_dim
        return itemsize * (8 * self.hidden + 3 * self.ffn + attention) + 4 * self.hidden

    def score_growth(self, itemsize: int) -> float:
        """How a token's memory grows per token of its row where scores are kept (eager attention).

        Relative to `block_bytes_per_token`: scores, mask sum and probabilities, and the float32
        softmax.
        """
        return self.heads * (3 * itemsize + 4) / self.block_bytes_per_token(itemsize)
