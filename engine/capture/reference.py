"""One row run alone through transformers' own outputs: what the self-check compares with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import SelfCheckError
from .decoder import hidden_of
from .self_check import Reference

_POSITIONS = 128
"""Response tokens whose log-probs are compared, evenly spaced: the logits of more would not be
small."""
_LOGITS_CHUNK = 32


def run_alone(
    model: Any,
    blocks: Sequence[nn.Module],
    before: Sequence[int],
    response: Sequence[int],
    *,
    spans: Mapping[str, tuple[int, int]],
    pools: Sequence[str],
    logprobs: bool,
) -> Reference:
    """Run what stands before the response (prompt, thought) and the response as a batch of one,
    unpadded, with `output_hidden_states`.

    `spans` gives the tokens that each pool is of (`Response.spans`).

    Shares nothing with the bulk pass but the weights: transformers records the states, slices and
    means form the pools. Its last state is after the final norm, so that one comes from a hook on
    the last block. Raises SelfCheckError when transformers reports another number of layers.
    """
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([[*before, *response]], device=device)
    count = min(_POSITIONS, len(response)) if logprobs else 0
    positions = tuple(
        round(step * (len(response) - 1) / max(1, count - 1)) for step in range(count)
    )
    # The token at response position i is predicted one place earlier. On the CPU, since an index
    # may be there wherever the last of several devices is.
    keep = torch.tensor([len(before) + i - 1 for i in positions] or [ids.shape[1] - 1])
    last: list[torch.Tensor] = []
    handle = blocks[-1].register_forward_hook(lambda _m, _a, output: last.append(hidden_of(output)))
    try:
        with torch.inference_mode():
            out = model(
                input_ids=ids, use_cache=False, output_hidden_states=True, logits_to_keep=keep
            )
    finally:
        handle.remove()
    if len(out.hidden_states) != len(blocks) + 1:
        raise SelfCheckError(
            f"self-check: the model has {len(out.hidden_states) - 1} layers by its own account, "
            f"capture found "
            f"{len(blocks)}; check `blocks`"
        )
    states = [_pool(state[0], spans, pools) for state in (*out.hidden_states[:-1], last[0])]
    found = None
    if positions:
        targets = torch.tensor([response[i] for i in positions], device=out.logits.device)
        pieces = zip(out.logits[0].split(_LOGITS_CHUNK), targets.split(_LOGITS_CHUNK), strict=True)
        found = torch.cat(
            [
                logits.float().log_softmax(-1).gather(-1, chosen.to(logits.device)[:, None])[:, 0]
                for logits, chosen in pieces
            ]
        )
    return Reference(
        torch.stack(states, dim=1).numpy(),
        None if found is None else found.float().cpu().numpy(),
        positions,
    )


def _pool(
    state: torch.Tensor, spans: Mapping[str, tuple[int, int]], pools: Sequence[str]
) -> torch.Tensor:
    """`[pools, dim]` float32 on the CPU, of one layer's `[seq, dim]`; 0 for a pool of no token."""
    found = []
    for pool in pools:
        part, how = pool.split("_")
        first, end = spans[part]
        own = state[first:end].float()
        if first == end:
            found.append(torch.zeros_like(state[0], dtype=torch.float32))
        else:
            found.append(own.mean(0) if how == "mean" else own[-1])
    return torch.stack(found).cpu()
