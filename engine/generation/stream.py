"""A vLLM model's decoder blocks, and what each hands on: the sum of a pair, or its first alone.

Most blocks return `(hidden, residual)`, and the next adds the two up. Some (Cohere, Granite-4,
StableLM) return such a pair too, but `hidden` holds the residual already and the next block never
looks at the other, a state from before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import nn

_UNUSABLE = object()
"""Stands in a residual's place: whatever is done with it fails."""
_FAILS = (TypeError, AttributeError, ValueError, RuntimeError, AssertionError, LookupError)


def find_blocks(model: nn.Module, config: Any) -> list[nn.Module] | str:
    """Return a vLLM model's decoder blocks in order, or why they are not found in words.

    They are the one list of as many modules as the config has layers, nearest the top.
    """
    n_layers = int(config.num_hidden_layers)
    found = [
        (name.count("."), module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    depth = min((depth for depth, _ in found), default=0)
    nearest = [module for own, module in found if own == depth]
    if len(nearest) != 1:
        return f"the decoder blocks of vLLM's {type(model).__name__} were not found"
    return list(nearest[0])


def stream_is_sum(blocks: Sequence[nn.Module], run: Callable[[], Any]) -> bool | str:
    """Return whether the stream is the sum of what blocks return, or in words why nobody can tell.

    It is tried out: in a trial `run` of the model each block is first called without the second
    part of what the one before returned, and then, where it fails so, with it.
    """
    trial = _Trial()
    for block in blocks:
        block.forward = trial.of(block.forward)
    try:
        run()
    except _FAILS as error:
        return f"a trial run of it failed ({type(error).__name__})"
    finally:
        for block in blocks:
            del block.forward
    if not trial.pairs:
        return False
    if trial.remade or len(trial.needed) != 1:
        return "whether its state is the sum of what a block returns could not be told"
    return trial.needed.pop()


class _Trial:
    def __init__(self) -> None:
        self.needed: set[bool] = set()
        """Whether blocks needed the second part of the pair before them."""
        self.pairs = False
        self.remade = False
        """Whether a block was handed another residual than the one before had returned."""
        self._second: torch.Tensor | None = None

    def of(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def tried(*arguments: Any, **named: Any) -> Any:
            output = self._tried(forward, arguments, named)
            pair = isinstance(output, tuple) and len(output) > 1
            self._second = output[1] if pair and isinstance(output[1], torch.Tensor) else None
            self.pairs |= self._second is not None
            return output

        return tried

    def _tried(self, forward: Callable[..., Any], arguments: Any, named: dict[str, Any]) -> Any:
        if self._second is None:
            return forward(*arguments, **named)
        if not any(each is self._second for each in (*arguments, *named.values())):
            self.remade |= "residual" in signature(forward).parameters
            self.needed.add(False)
            return forward(*arguments, **named)
        # Under a failed trial some of the arguments may have been written over: nobody reads them.
        try:
            output = forward(
                *map(self._without, arguments),
                **{name: self._without(value) for name, value in named.items()},
            )
        except _FAILS:
            self.needed.add(True)
            return forward(*arguments, **named)
        self.needed.add(False)
        return output

    def _without(self, argument: Any) -> Any:
        return _UNUSABLE if argument is self._second else argument
