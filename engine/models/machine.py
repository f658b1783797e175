"""Sizes from a config, what memory is free, and the batches that fit: arithmetic a user can read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .attention import read_config

GIB = 1 << 30

CPU_TOKENS = 1024
"""Padded tokens of a CPU batch: the fastest of 256 to 4,096 (`python -m benchmarks.capture --budgets`)."""
GPU_TOKENS = 16384
"""Padded tokens of a GPU batch: more fills the matrix units no better. Untested on GPU."""
_LEAST_TOKENS = 256
"""Smaller batches are slow, and the arithmetic is no more than an estimate: below this, memory itself decides."""
_CPU_SHARE = 0.25
_GPU_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder that decide its memory."""

    n_layers: int
    hidden: int
    ffn: int
    """Width of the feed-forward part one token passes through: of all its active experts together."""
    ffn_stored: int
    """Width of the feed-forward part as stored: of all experts together."""
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool

    @classmethod
    def from_config(cls, config: Any) -> Shape:
        """Read config.json's values, or transformers' config; what is missing is as transformers defaults it.

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
                f"model type {text.model_type} cannot be sized: its config names no layers, hidden size or attention "
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
        """Weights, by the usual gated shape: attention 2·d·d_h·(n_q + n_kv), feed-forward 3·d·d_ff, embeddings."""
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

        itemsize · (8·d + 3·d_ff + 2·(n_q + 2·n_kv)·d_h) + 4·d: inputs, residuals and norms; gate, up and product;
        queries, keys and values before and after rotation.
        """
        attention = 2 * (self.heads + 2 * self.kv_heads) * self.head_dim
        return itemsize * (8 * self.hidden + 3 * self.ffn + attention) + 4 * self.hidden

    def score_growth(self, itemsize: int) -> float:
        """How a token's memory grows per token of its row when scores are materialised (eager attention), relative to
        block_bytes_per_token: scores, mask sum and probabilities, and the float32 softmax."""
        return self.heads * (3 * itemsize + 4) / self.block_bytes_per_token(itemsize)


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """How many padded tokens a capture batch may hold, and why."""

    tokens: int
    line: str


def token_budget(shape: Shape, itemsize: int, free: int, *, gpu: bool) -> TokenBudget:
    """The capture budget for `free` bytes of memory beside the weights."""
    share, cap = (_GPU_SHARE, GPU_TOKENS) if gpu else (_CPU_SHARE, CPU_TOKENS)
    per_token = shape.block_bytes_per_token(itemsize)
    fits = int(free * share / per_token)
    tokens = max(_LEAST_TOKENS, min(fits, cap))
    why = f"capped at {cap:,}, where speed levels off" if fits > cap else "all that fits"
    if fits < _LEAST_TOKENS:
        why = f"{tokens} are tried all the same, and halved where they do not fit"
    line = (
        f"capture batches of {tokens:,} tokens: {share:.0%} of {free / GIB:.1f} GiB free at {per_token / 1024:.0f} KiB "
        f"a token would hold {fits:,}; {why}" + ("; untested on GPU" if gpu else "")
    )
    return TokenBudget(tokens, line)


def free_host_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes this process may still take: what the machine has, or what its container leaves."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        if limit != "max":
            taken = int((cgroup / "memory.current").read_text())
            stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
            free = min(
                free, int(limit) - taken + int(stat.get("inactive_file", 0))
            )  # page cache gives way when asked
    except OSError:  # no cgroup v2 here: the machine's own number stands
        pass
    return max(0, free)


def gpu_memory() -> list[int]:
    """Bytes of each NVIDIA GPU, taken or not."""
    import torch

    return [
        int(torch.cuda.get_device_properties(i).total_memory)
        for i in range(torch.cuda.device_count())
    ]
