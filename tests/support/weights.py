"""Random weights that show a fault: attention decides the words, yet a few words stay likely.

As transformers makes them, weights are so small that attention is uniform and adds next to nothing:
a wrong rotation, scale, mask or window would move no log-probability.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

_LOUD = 8.0
"""Of all embeddings in one place, where the head listens for the words that are liked."""
_QUERIES = (
    "q_proj",
    "k_proj",
    "q_a_proj",
    "q_b_proj",
    "kv_a_proj",
    "qkv",
    "query_key_value",
    "c_attn",
)
_QUERY_NORMS = ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "query_layernorm")
_LAST_NORMS = ("norm", "norm_f", "ln_f", "final_layernorm", "final_layer_norm", "embedding_norm")
_PEAKED, _PLAIN = 2.5, 1.2
_KEPT = ("A_log", "dt_bias", ".D", "conv1d", "conv.conv")
"""Of layers with a state: their makers chose them so that the state neither dies nor grows."""


def decide(model: Any, token_ids: Iterable[int], most: Iterable[int] = ()) -> None:
    """Give a random model weights under which attention decides how likely each liked token is.

    All embeddings are loud in one place, and the head listens there for the liked tokens, for
    `most` above all; elsewhere it tells them apart by what the blocks have made of the text.
    """
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    ends = {head.data_ptr(), embeddings.data_ptr()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.data_ptr() not in ends and not any(part in name for part in _KEPT):
                _fill(name, weight)
        if len(ends) == 1:
            _like_tied(model, embeddings, sorted(set(token_ids)), sorted(set(most)))
        else:
            _like(embeddings, head, sorted(set(token_ids)), sorted(set(most)))


def _fill(name: str, weight: torch.Tensor) -> None:
    queries = any(part in name for part in _QUERIES)
    if weight.ndim >= 2:
        weight.normal_(0, (_PEAKED if queries else _PLAIN) / weight.shape[-1] ** 0.5)
    elif any(part in name for part in _QUERY_NORMS):
        weight.add_(torch.empty_like(weight).uniform_(0.2, 1))
    else:  # norms and biases, which as they are made are all 1 or all 0
        weight.add_(torch.empty_like(weight).uniform_(-0.3, 0.3))


def _like(embeddings: torch.Tensor, head: torch.Tensor, liked: list[int], most: list[int]) -> None:
    embeddings.normal_(0, 1)
    head.normal_(0, 0.1)
    head[liked] = torch.empty_like(head[liked]).normal_(0, 0.3)
    embeddings[:, 0], head[:, 0] = _LOUD, 0
    head[liked, 0], head[most, 0] = 5, 6.2


def _like_tied(model: Any, embeddings: torch.Tensor, liked: list[int], most: list[int]) -> None:
    """The same where the head is the embeddings: the last norm makes the one place loud instead.

    Embeddings are small beside what blocks add, or a token would be followed by itself.
    """
    config = model.config.get_text_config()
    scaled = config.hidden_size**0.5 if config.model_type.startswith("gemma") else 1.0
    scores = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", 0) or 1)
    embeddings.normal_(0, 0.3)
    embeddings[:, 0] = 3
    embeddings[liked, 0], embeddings[most, 0] = 4.5, 4.85
    embeddings.div_(scaled)
    decoder = model.get_decoder()
    [norm] = [getattr(decoder, name).weight for name in _LAST_NORMS if hasattr(decoder, name)]
    zeroed = norm.mean().abs() < 0.5  # Gemma's: one is added to it
    norm.add_(float(zeroed)).mul_(scaled / scores)
    norm[0].mul_(10)
    norm.sub_(float(zeroed))
