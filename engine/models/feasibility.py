"""Whether the cards hold a model at all: refused, with the arithmetic, before anything is loaded.

What is counted is the least there can be: weights, a context, one sequence or one small batch. More
may still be wanting at the start; less cannot do.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ResourceError
from .gpus import Gpu
from .machine import GIB, LEAST_TOKENS
from .shape import Shape
from .split import divides

CONTEXT_OVERHEAD = 1 * GIB
"""What one more CUDA process takes before its first tensor, libraries included. An assumption."""
_HOST_SPARE = 2 * GIB


def refuse_generation(
    shape: Shape, gpus: Sequence[Gpu], tensor_parallel: int, itemsize: int, least_kv: int, half: str
) -> None:
    """Raise ResourceError where vLLM cannot hold the model on the first `tensor_parallel` cards.

    `least_kv` is the cache of one sequence, in bytes over all cards; `half` a dtype of two bytes
    that the model can have there, if any.
    """
    weights = shape.weight_bytes(itemsize)

    def share(over: int) -> int:
        return (weights + least_kv) // over + CONTEXT_OVERHEAD

    free = [gpu.free for gpu in gpus]
    if share(tensor_parallel) <= min(free[:tensor_parallel]):
        return
    # Not every number of cards can share a model.
    splits = [n for n in range(tensor_parallel + 1, 65) if divides(shape, n)]
    here = [n for n in splits if n <= len(free) and share(n) <= min(free[:n])]
    smallest = min(free[:tensor_parallel])
    halved = (weights + least_kv) // 2 // tensor_parallel + CONTEXT_OVERHEAD
    enough = [n for n in splits if share(n) <= smallest]
    if here:
        remedy = f"split it over {here[0]} GPUs with `tensor_parallel_size` {here[0]}"
    elif half and itemsize == 4 and halved <= smallest:
        remedy = f"halve it with `dtype` {half}"
    elif enough:
        remedy = f"take a machine with at least {enough[0]} such GPUs, or a smaller model"
    else:
        remedy = "take a machine with larger GPUs, or a smaller model"
    each = "" if tensor_parallel == 1 else f" over {tensor_parallel} GPUs"
    added = shape.adapter * itemsize / GIB
    adapters = f" ({added:.1f} of them the adapter's)" if added else ""
    raise ResourceError(
        f"generation does not fit: {weights / GIB:.1f} GiB of weights{adapters} and "
        f"{least_kv / GIB:.1f} GiB of cache for one sequence{each}, with "
        f"{CONTEXT_OVERHEAD / GIB:.1f} GiB of context, are "
        f"{share(tensor_parallel) / GIB:.1f} GiB a GPU, and {smallest / GIB:.1f} GiB are free; "
        f"{remedy}"
    )


def capture_bytes(shape: Shape, itemsize: int, tokens: int) -> int:
    """Return what a card takes that holds the whole capture model and batches of `tokens`."""
    batch = tokens * shape.block_bytes_per_token(itemsize)
    return shape.weight_bytes(itemsize) + CONTEXT_OVERHEAD + batch


def refuse_capture(
    shape: Shape, gpus: Sequence[Gpu], device: str, itemsize: int, free_host: int, half: str
) -> None:
    """Raise ResourceError where `device` cannot hold the capture model and its smallest batch.

    `device` is cpu, cuda (the layers are spread over `gpus`) or cuda:N. `free_host` is in bytes,
    `half` a dtype of two bytes that the model can have on the cards, if any.
    """
    kind, _, index = device.partition(":")
    weights = shape.weight_bytes(itemsize)
    if kind == "cpu":
        if weights + _HOST_SPARE > free_host:
            raise ResourceError(
                f"capture does not fit: {weights / GIB:.1f} GiB of weights, and "
                f"{free_host / GIB:.1f} GiB of host memory are free; take a machine with more, or "
                "a smaller model"
            )
        return
    cards = [gpus[int(index)]] if index else list(gpus)
    context = CONTEXT_OVERHEAD * len(cards)
    needed = capture_bytes(shape, itemsize, LEAST_TOKENS) - CONTEXT_OVERHEAD + context
    free = sum(gpu.free for gpu in cards)
    if needed <= free:
        return
    remedy = "take a machine with more GPU memory, or a smaller model"
    if weights + _HOST_SPARE <= free_host:
        remedy = "use `capture_device` cpu (slow), or take a machine with more GPU memory"
    if half and itemsize == 4 and needed - weights // 2 <= free:
        remedy = f"halve it with `capture_dtype` {half}, or {remedy}"
    if index and any(capture_bytes(shape, itemsize, LEAST_TOKENS) <= gpu.free for gpu in gpus):
        remedy = "leave `capture_device` at auto: another GPU here holds it"
    where = "one GPU" if len(cards) == 1 else f"{len(cards)} GPUs"
    raise ResourceError(
        f"capture does not fit on {where}: {needed / GIB:.1f} GiB with {weights / GIB:.1f} GiB of "
        f"weights, and {free / GIB:.1f} GiB are free there; {remedy}"
    )
