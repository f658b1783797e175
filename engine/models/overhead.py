"""What vLLM takes of a GPU beside the weights, and the limits that leave it a useful cache.

Estimates from its source; untested on GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .gpus import Gpu
from .machine import GIB
from .shape import Shape

GPU_BATCHED_TOKENS = 8192
"""Tokens of an engine's step at most: more fills the matrix units no better, and its activations
grow with them."""
_ENGINE_BASE = 3 * GIB // 2
"""What vLLM takes for context, graphs and libraries; another 1 GiB where GPUs talk to each other.
An assumption."""
_LOGIT_BYTES = 8
"""Of a sequence and word: 16-bit logits, their scaled copy, and the float32 copy sampled from."""
_COUNT_BYTES = 4
"""Of a sequence and word: how often it was sampled, which the runner on GPUs keeps for all."""
_PROMPT_LOGPROBS_ROWS = 512
_PROMPT_LOGPROB_BYTES = 12
"""vLLM computes a prompt's log-probabilities in chunks of so many rows, at so much a word: 1.5 GiB
for Gemma's vocabulary."""
_SPARE_TOKENS = 64
"""Blocks vLLM wants beside the longest sequence's: one empty, and one of each kind of layer."""
_LENGTH_STEP = 256
_STEPS = ((512, 8192), (256, 8192), (128, 4096), (64, 2048))
"""Sequences and batched tokens that are weighed against each other, the largest first."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine's step may hold at most."""

    sequences: int
    batched_tokens: int


def engine_length(longest: int) -> int:
    """Return the tokens an engine has room for, where its longest sequence has `longest`.

    At least one more, for the self-check's question.
    """
    return (longest // _LENGTH_STEP + 1) * _LENGTH_STEP


def engine_overhead(
    shape: Shape,
    sequences: int,
    tensor_parallel: int,
    itemsize: int,
    batched_tokens: int = GPU_BATCHED_TOKENS,
) -> int:
    """Return the bytes of a GPU that vLLM takes while it runs, beside weights and KV cache."""
    widths = 2 * shape.ffn // tensor_parallel + 6 * shape.hidden
    row = max(sequences * _LOGIT_BYTES, _PROMPT_LOGPROBS_ROWS * _PROMPT_LOGPROB_BYTES)
    words = (row + sequences * _COUNT_BYTES) * shape.vocab
    overhead = _ENGINE_BASE + batched_tokens * widths * itemsize + words
    return overhead + GIB if tensor_parallel > 1 else overhead


def least_cache(
    shape: Shape, itemsize: int, tokens_per_sequence: int, cards: int = 1, sequences: int = 1
) -> int:
    """Return the bytes of cache, on each of some cards, without which vLLM does not start.

    One sequence of the engine's length must fit in, and a block of state of each of `sequences`.
    """
    tokens, block = engine_length(tokens_per_sequence), shape.state_block(itemsize, cards)
    if block:
        return block + max(shape.cache_bytes(itemsize, tokens, cards), sequences * block)
    return shape.cache_bytes(itemsize, tokens + _SPARE_TOKENS, cards)


def choose_limits(
    shape: Shape,
    gpus: Sequence[Gpu],
    itemsize: int,
    tokens_per_sequence: int,
    sequences: int,
    *,
    fixed: bool,
) -> EngineLimits:
    """Return the limits under which most sequences run at once on `gpus`, the largest among equals.

    Smaller limits leave the cache more of a small card. `fixed`: the user set the `sequences`, of
    which vLLM takes no more than it has room for the states of.
    """
    each = max(1, shape.cache_bytes(itemsize, tokens_per_sequence, len(gpus)))

    def running(limits: EngineLimits) -> int:
        overhead = engine_overhead(
            shape, limits.sequences, len(gpus), itemsize, limits.batched_tokens
        )
        share = min(int(gpu.total * 0.92) - (gpu.total - gpu.free) for gpu in gpus)
        cache = share - shape.weight_bytes(itemsize) // len(gpus) - overhead
        return min(limits.sequences, max(0, cache // each))

    steps = [
        EngineLimits(sequences if fixed else min(sequences, count), tokens)
        for count, tokens in _STEPS
    ]
    best = max(steps, key=running)
    if not running(best):  # nothing is told apart by the estimate: the smallest leaves most
        best = steps[-1]
    elif shape.state is not None:
        best = replace(best, sequences=running(best))
    return best
