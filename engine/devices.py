"""Sizes from a config, what memory is free, and who gets how much of one machine: arithmetic a user can read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

GIB = 1 << 30

CPU_TOKENS = 1024
"""Padded tokens of a CPU batch: speed is flat from 512 to 2,048 (docs/capture.md), and smaller batches pad less."""
GPU_TOKENS = 16384
"""Padded tokens of a GPU batch: more fills the matrix units no better. Untested on GPU."""
_CPU_SHARE = 0.25
_GPU_SHARE = 0.8

ENGINE_OVERHEAD = 3 * GIB
"""What vLLM takes beside weights and KV cache: context, graphs, workspaces. An assumption; untested on GPU."""
CONTEXT_OVERHEAD = 1 * GIB
"""What one more CUDA process takes before its first tensor, libraries included. An assumption; untested on GPU."""
_USABLE = 0.95


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
    def from_config(cls, text_config: Mapping[str, Any]) -> Shape:
        """Read a (text) config.json's values; missing ones as transformers defaults them."""
        hidden = int(text_config["hidden_size"])
        heads = int(text_config["num_attention_heads"])
        ffn = int(text_config.get("intermediate_size") or 4 * hidden)
        experts = int(text_config.get("num_experts") or text_config.get("num_local_experts") or 0)
        width = int(text_config.get("moe_intermediate_size") or ffn) if experts else ffn
        return cls(
            n_layers=int(text_config["num_hidden_layers"]),
            hidden=hidden,
            ffn=width * int(text_config.get("num_experts_per_tok") or 2) if experts else width,
            ffn_stored=width * experts if experts else width,
            heads=heads,
            kv_heads=int(text_config.get("num_key_value_heads") or heads),
            head_dim=int(text_config.get("head_dim") or hidden // heads),
            vocab=int(text_config.get("vocab_size") or 0),
            tied=bool(text_config.get("tie_word_embeddings", True)),
        )

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
    tokens = max(1, min(fits, cap))
    why = f"capped at {cap:,}, where speed levels off" if fits > cap else "all that fits"
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
            free = min(free, int(limit) - int((cgroup / "memory.current").read_text()))
    except OSError:  # no cgroup v2 here: the machine's own number stands
        pass
    return max(0, free)


@dataclass(frozen=True, slots=True)
class CpuShare:
    """Which cores generation and capture use while both run. Alone, either may use all."""

    engine: tuple[int, ...]
    capture: tuple[int, ...]

    @property
    def omp_bind(self) -> str:
        """Value of VLLM_CPU_OMP_THREADS_BIND."""
        return ",".join(map(str, self.engine))


def share_cores(cores: Sequence[int]) -> CpuShare:
    """All cores but the last to the engine, which leaves one free anyway, and that one to capture; one core is shared.

    A capture thread pinned to the free core slowed generation 1.08 times, two unpinned ones 1.25 times.
    """
    ordered = tuple(sorted(cores))
    return CpuShare(ordered[:-1] or ordered, ordered[-1:])


def pin(cores: Sequence[int]) -> None:
    """Run every thread of this process on `cores`, and torch with one thread a core (where the system can pin)."""
    import torch

    if hasattr(os, "sched_setaffinity"):
        for task in Path("/proc/self/task").iterdir():
            try:
                os.sched_setaffinity(int(task.name), cores)
            except ProcessLookupError:  # that thread has just ended
                continue
    torch.set_num_threads(len(cores))


Mode = Literal["co-resident", "sleep", "in turn"]


@dataclass(frozen=True, slots=True)
class Placement:
    """How generation and capture share one GPU."""

    mode: Mode
    """co-resident: both loaded. sleep: vLLM sleeps while capture runs, and capture waits in host memory while vLLM
    runs. in turn: generation ends and leaves before capture is loaded."""
    kv_cache_bytes: int
    capture_tokens: int
    line: str


def place_on_gpu(
    shape: Shape,
    *,
    total: int,
    host_free: int,
    itemsize: int,
    capture_itemsize: int,
    sequences: int,
    tokens_per_sequence: int,
) -> Placement:
    """Decide how one GPU of `total` bytes, otherwise empty, serves generation and capture of the same model.

    `sequences` of `tokens_per_sequence` (prompt and response) are wanted in flight; a quarter of them is the least
    that co-residence is worth. What neither needs goes to capture batches.
    """
    usable = int(total * _USABLE)
    weights, capture_weights = shape.weight_bytes(itemsize), shape.weight_bytes(capture_itemsize)
    kv = sequences * tokens_per_sequence * shape.kv_bytes_per_token(itemsize)
    per_token = shape.block_bytes_per_token(capture_itemsize)
    least_batch = CPU_TOKENS * per_token
    fixed = weights + ENGINE_OVERHEAD + capture_weights + CONTEXT_OVERHEAD + least_batch
    sums = (
        f"{usable / GIB:.1f} GiB usable; generation {weights / GIB:.1f} weights + {ENGINE_OVERHEAD / GIB:.1f} engine "
        f"+ {kv / GIB:.1f} KV; capture {capture_weights / GIB:.1f} weights + {CONTEXT_OVERHEAD / GIB:.1f} context "
        f"+ {least_batch / GIB:.1f} batch"
    )
    if fixed + kv // 4 <= usable:
        kv_given = min(kv, usable - fixed)
        spare = usable - fixed - kv_given
        tokens = min(GPU_TOKENS, CPU_TOKENS + spare // per_token)
        return Placement("co-resident", kv_given, tokens, f"co-resident on one GPU: {sums}; untested on GPU")
    alone_engine = usable - weights - ENGINE_OVERHEAD
    alone_capture = usable - capture_weights - CONTEXT_OVERHEAD
    tokens = max(1, min(GPU_TOKENS, alone_capture // per_token))
    # Asleep at level 1 the engine keeps its weights in host memory and its CUDA context on the device.
    if (
        weights + capture_weights <= host_free
        and alone_engine - CONTEXT_OVERHEAD >= kv // 4
        and alone_capture - ENGINE_OVERHEAD >= least_batch
    ):
        tokens = max(1, min(GPU_TOKENS, (alone_capture - ENGINE_OVERHEAD) // per_token))
        kv_given = min(kv, alone_engine - CONTEXT_OVERHEAD)
        return Placement("sleep", kv_given, tokens, f"vLLM sleeps while capture runs: {sums}; untested on GPU")
    kv_given = max(0, min(kv, alone_engine))
    return Placement("in turn", kv_given, tokens, f"generation first, capture after it: {sums}; untested on GPU")


class SleepingEngine(Protocol):
    """What turns need of vLLM's AsyncLLM."""

    async def sleep(self, level: int = 1) -> None: ...
    async def wake_up(self, tags: list[str] | None = None) -> None: ...
    def shutdown(self) -> None: ...


class MovableCapture(Protocol):
    """What turns need of the capture worker."""

    async def restore(self) -> None: ...
    async def offload(self) -> None: ...


class Turns:
    """Hands one GPU back and forth as a placement says. Generation holds it at the start."""

    def __init__(self, mode: Mode, engine: SleepingEngine, capture: MovableCapture) -> None:
        self._mode = mode
        self._engine = engine
        self._capture = capture
        self._capturing = False

    async def to_capture(self) -> None:
        """Call when no request is in flight. In turn, generation is over after this."""
        if self._capturing:
            return
        self._capturing = True
        if self._mode == "sleep":
            await self._engine.sleep(1)
        elif self._mode == "in turn":
            self._engine.shutdown()
        if self._mode != "co-resident":
            await self._capture.restore()

    async def to_generation(self) -> None:
        """Call when no batch is being captured."""
        if not self._capturing:
            return
        if self._mode == "in turn":
            raise RuntimeError("the engine was shut down for capture; generation does not come back")
        self._capturing = False
        if self._mode == "sleep":
            await self._capture.offload()
            await self._engine.wake_up()
