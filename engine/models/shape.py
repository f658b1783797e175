"""The sizes of a decoder that decide its memory, from its config, as arithmetic a user can read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError
from .config import read_config
from .state import GPU_BLOCK, State, read_state

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_UNGATED = {
    *("apertus", "arcee", "biogpt", "bloom", "codegen", "falcon"),
    *("gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gptj"),
    *("mpt", "nemotron", "opt", "persimmon", "phi", "starcoder2"),
    *("xglm",),
}
"""Model types whose feed-forward part has two matrices, up and down, and no gate."""


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
    return _latent(read_config(raw).get_text_config())


def _latent(text: Any) -> int:
    latent = _size(text, "kv_lora_rank")
    if not latent or text.model_type == "minicpm3":  # vLLM spreads its latents out
        return 0
    return int(latent) + int(_size(text, "qk_rope_head_dim") or 0)


def _kv_heads(text: Any) -> int:
    """Return 1 where all queries share a head and no size says so (Falcon-7B, StarCoder), else
    0."""
    shared = _size(text, "multi_query") and not _size(text, "new_decoder_architecture")
    return 1 if shared else 0


def _sparse(text: Any, layers: int) -> int:
    """Return how many layers have experts: all, those named, or one in a few (Llama-4, Jamba)."""
    named = _size(text, "moe_layers")
    if isinstance(named, (list, tuple)):
        return len(named)
    return layers // (_size(text, "expert_layer_period") or _size(text, "decoder_sparse_step") or 1)


def _beside(text: Any, width: int) -> int:
    """Return the weights of layers' own embeddings, and of feed-forward parts twice as wide as the
    others, where keys and values are shared (Gemma-4 E2B)."""
    own = _size(text, "hidden_size_per_layer_input") or 0
    words = _size(text, "vocab_size_per_layer_input") or 0
    hidden = int(text.hidden_size)
    embedded = int(text.num_hidden_layers) * own * (words + 3 * hidden)
    doubled = _size(text, "num_kv_shared_layers") if _size(text, "use_double_wide_mlp") else 0
    return embedded + 3 * hidden * width * (doubled or 0)


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
    """Key-value heads times their width, summed over layers; of latents half, since one is kept."""
    kv_parts: int
    """Over how many cards keys and values can be dealt out; latents stand on each."""
    vocab: int
    tied: bool
    matrices: int = 3
    """Of a feed-forward part: gate, up and down, or two without a gate."""
    beside: int = 0
    """Weights that are no layer's like the others: embeddings of their own (Gemma-3n), say."""
    state: State | None = None
    """What layers keep of a sequence beside, or instead of, keys and values."""
    values: int = 0
    """Weights as counted in their files; 0: they are estimated."""
    adapter: int = 0
    """Weights of a LoRA adapter, which are kept beside the model's."""
    packed: int = 0
    """Bytes of a quantised model's files, which it takes in any dtype; 0: it is not, or unknown."""

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
        layers = size("num_hidden_layers")
        active, stored = width, width
        if experts := size(*_EXPERTS):
            own = size("moe_intermediate_size") or width
            active = own * (size("num_experts_per_tok", "moe_topk") or 2)
            dense, sparse = size("intermediate_size_mlp") or width, _sparse(text, layers)
            stored = (own * experts * sparse + dense * (layers - sparse)) // layers
        kv_heads = _kv_heads(text) or found("num_key_value_heads", "num_kv_heads") or heads
        head_dim = found("head_dim") or hidden // heads
        latent = _latent(text)
        kv_width = int((np.broadcast_to(kv_heads, layers) * head_dim).sum())
        most = int(np.max(kv_heads))
        kv_width = layers * latent // 2 if latent else kv_width
        state = read_state(text, size)
        if state is not None:
            kv_width = kv_width * state.attending // layers
        return cls(
            n_layers=layers,
            hidden=hidden,
            ffn=active,
            ffn_stored=stored,
            heads=heads,
            kv_heads=most,
            head_dim=int(np.max(head_dim)),
            kv_width=kv_width,
            kv_parts=1 if latent else most,
            vocab=size("vocab_size"),
            tied=bool(getattr(text, "tie_word_embeddings", True)),
            matrices=2 if text.model_type in _UNGATED else 3,
            beside=_beside(text, width),
            state=state,
        )

    @property
    def experts(self) -> bool:
        """Whether tokens are routed to some of several feed-forward parts."""
        return self.ffn_stored > self.ffn

    @property
    def parameters(self) -> int:
        """Weights as counted, else estimated: attention 2·d·d_h·(n_q + n_kv), feed-forward 3·d·d_ff
        (2·d·d_ff without a gate), embeddings."""
        if self.values:
            return self.values + self.adapter
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        block = attention + self.matrices * self.hidden * self.ffn_stored
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2) + self.beside
        return self.n_layers * block + embeddings + self.adapter

    def weight_bytes(self, itemsize: int) -> int:
        """What the weights take in memory."""
        if self.packed:
            return self.packed + self.adapter * itemsize
        return self.parameters * itemsize

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Key and value of every layer that has them."""
        return 2 * self.kv_width * itemsize

    def kv_bytes_of_a_card(self, itemsize: int, cards: int) -> int:
        """The same on each of some cards, which share heads, not halves of one.

        With more cards than key-value heads, vLLM keeps some heads twice.
        """
        return self.kv_bytes_per_token(itemsize) // min(cards, self.kv_parts)

    def cache_bytes(
        self, itemsize: int, tokens: int, cards: int = 1, block: int = GPU_BLOCK
    ) -> int:
        """What a sequence of so many tokens takes of each card's cache, in blocks of `block`."""
        per_token = self.kv_bytes_of_a_card(itemsize, cards)
        if self.state is None:
            return tokens * per_token
        return self.state.sequence_bytes(tokens, per_token, itemsize, cards, block)

    def state_block(self, itemsize: int, cards: int = 1, block: int = GPU_BLOCK) -> int:
        """The block that vLLM keeps empty, and wants for each sequence; 0 without a state."""
        if self.state is None:
            return 0
        per_token = self.kv_bytes_of_a_card(itemsize, cards)
        return self.state.block_bytes(per_token, itemsize, cards, block)

    def state_bytes(self, itemsize: int) -> int:
        """What is kept of a sequence however long it is."""
        return self.state.layers * self.state.layer_bytes(itemsize) if self.state else 0

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
