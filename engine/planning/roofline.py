"""The least time that arithmetic and memory allow a decoder, and what is expected of it.

A decoding step of c sequences reads the weights once and each sequence's keys and values, and
computes two operations a weight and sequence: it takes at least
max((W + c (L K + 2 S)) / bandwidth, 2 P c / peak). W: bytes of the weights that are read, of
experts those that some token of the step is routed to; P: weights that a token is multiplied with
(blocks and output layer); K: bytes of keys and values a token; L: mean tokens of a sequence in the
cache; S: bytes of the state that a hybrid model keeps of a sequence, which is read and written. A
prompt computes 2 P a token; capture the same without the output layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..models import Shape

MEMORY_SHARE = 0.6
"""Of the bandwidth, what a step's kernels reach. An assumption, as all below it: untested on GPU.
"""
MATRIX_SHARE = 0.5
"""Of the peak, what prompts, and capture with fused attention, reach."""
EAGER_SHARE = 0.39
"""Of the peak, what capture with eager attention reaches: counted for Gemma-2 on an H100."""
STEP_S = 3e-3
"""Of a step, what launching and scheduling take, whatever it holds."""
SEQUENCE_S = 10e-6
"""Of a step and sequence, what the scheduler, the sampler and the front end take."""
REDUCE_S = 30e-6
"""Of a step and layer, what two sums over the cards of a split model take."""


@dataclass(frozen=True, slots=True)
class Device:
    """What computes: one card, or several that share a model."""

    flops: float
    """Operations a second in the dtype in use."""
    bandwidth: float
    """Bytes a second."""


def step_seconds(
    shape: Shape, device: Device, sequences: float, context: float, itemsize: int = 2
) -> float:
    """Return the least time of a decoding step with `context` tokens a sequence in the cache."""
    moved = itemsize * read_weights(shape, sequences)
    moved += sequences * context * shape.kv_bytes_per_token(itemsize)
    moved += 2 * sequences * shape.state_bytes(itemsize)
    return max(moved / device.bandwidth, 2 * passed(shape) * sequences / device.flops)


def expected_step(
    shape: Shape, device: Device, sequences: float, context: float, itemsize: int, cards: int
) -> float:
    """Return the time that a decoding step is expected to take on `cards` that `device` sums up."""
    reached = Device(device.flops * MATRIX_SHARE, device.bandwidth * MEMORY_SHARE)
    reduced = REDUCE_S * shape.n_layers if cards > 1 else 0.0
    computed = step_seconds(shape, reached, sequences, context, itemsize)
    return computed + STEP_S + SEQUENCE_S * sequences + reduced


def passed(shape: Shape) -> int:
    """Return the weights a token is multiplied with: blocks (active experts), output layer."""
    return blocks(shape) + shape.vocab * shape.hidden


def blocks(shape: Shape) -> int:
    """Return the weights of the blocks that a token is multiplied with."""
    return _blocks(shape, shape.ffn)


def read_weights(shape: Shape, sequences: float) -> float:
    """Return the weights that a step of so many sequences reads."""
    touched = min(float(shape.ffn_stored), shape.ffn * sequences)
    return _blocks(shape, touched) + shape.vocab * shape.hidden


def _blocks(shape: Shape, ffn: float) -> int:
    attention = 2 * shape.hidden * shape.head_dim * (shape.heads + shape.kv_heads)
    return int(shape.n_layers * (attention + shape.matrices * shape.hidden * ffn))


def prompt_seconds(shape: Shape, device: Device, tokens: float) -> float:
    """Return the least time of prompts of so many tokens."""
    return 2 * passed(shape) * tokens / device.flops


def capture_seconds(shape: Shape, device: Device, tokens: float) -> float:
    """Return the least time of capturing so many tokens, where arithmetic is what limits."""
    return 2 * blocks(shape) * tokens / device.flops
