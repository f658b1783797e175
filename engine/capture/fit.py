"""Whether a model's blocks hand on the one stream that capture reads, tried before it is loaded."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ..errors import UsageError

_TOKENS = 4
_FAULTS: tuple[type[Exception], ...] = (RuntimeError, ValueError, TypeError)
_FAULTS += (AttributeError, LookupError, AssertionError, ImportError)


def check_blocks(model: Any, path: str | None = None) -> None:
    """Raise UsageError where a model's decoder blocks are not found, or hand on another shape.

    The model is on the meta device, without its weights; `path` is as in `find_blocks`. One that
    cannot be run there is left to its loader: only a shape that was seen refuses.
    """
    import torch

    from .decoder import find_blocks
    from .pooling import Enough, LayerHooks

    blocks = find_blocks(model, path)
    shapes: list[tuple[int, ...]] = []

    def take(_: int, hidden: Any) -> None:
        if isinstance(hidden, torch.Tensor):
            shapes.append(tuple(hidden.shape))

    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    layers = LayerHooks(blocks, range(len(blocks)), take)
    with suppress(Enough, *_FAULTS), torch.inference_mode(), layers:
        model(input_ids=ids, use_cache=True)  # without, masks look at values
    wanted = (1, _TOKENS, int(model.config.get_text_config().hidden_size))
    for shape in shapes:
        if shape != wanted:
            raise UsageError(
                f"the decoder blocks of {type(model).__name__} hand on states of shape "
                f"{_said(shape)} for {_TOKENS} tokens, not {_said(wanted)}, so capture cannot read "
                "them; take another model, or give `extract_activations` False"
            )


def _said(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
