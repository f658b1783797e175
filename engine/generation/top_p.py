"""Top-p without sorting the vocabulary, for vLLM on CPU; loaded by name in its worker.

vLLM's CPU sampler sorts all logits of all rows at each step: 49,152 values a row, which at 128
sequences takes longer than a small model's forward. The nucleus is nearly always among the few
largest, so those are found by selection, and only rows whose nucleus is larger are looked at again
(docs/decisions/006-nucleus.md).
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor

NAME = f"{__name__}:Nucleus"
"""What AsyncEngineArgs(logits_processors=[...]) takes."""
_LOOKS = (64, 1024)
"""Candidates: enough for nearly all rows, then for most others; for the rest all are sorted."""


class Nucleus(LogitsProcessor):  # type: ignore[misc]  # vLLM's types are not checked here
    """vLLM's interface around `keep_nucleus`, with one p for the engine, of `additional_config`.

    Requests then carry top_p=1. It runs where vLLM's own would: after temperature, on float32
    logits; greedy requests do not see it.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002 - vLLM's
        self._top_p = float(vllm_config.additional_config["top_p"])

    def is_argmax_invariant(self) -> bool:
        """The likeliest token stays."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """No request has a state."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask `[rows, vocab]` in place."""
        return keep_nucleus(logits, self._top_p)


def keep_nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Set the logits `[rows, vocab]` outside each row's nucleus to -inf, in place.

    A token is kept where the likelier ones together have less than `top_p`, as in vLLM and
    transformers; so the likeliest always is. Tokens as likely as the last one kept are kept too.
    """
    total = logits.logsumexp(-1, keepdim=True)
    least = logits.new_empty(len(logits), 1)
    """Each row's smallest logit in the nucleus."""
    rows, vocab = torch.arange(len(logits)), logits.shape[1]
    for count in (*(look for look in _LOOKS if look < vocab), vocab):
        found = (logits if len(rows) == len(logits) else logits[rows]).topk(count, -1).values
        probabilities = (found - total[rows]).exp()
        before = probabilities.cumsum(-1) - probabilities
        last = ((before < top_p).sum(-1, keepdim=True) - 1).clamp_min(0)
        least[rows] = found.gather(-1, last)
        rows = rows[last[:, 0] == count - 1]  # where the nucleus may reach further
        if not len(rows):
            break
    return logits.masked_fill_(logits < least, -torch.inf)
