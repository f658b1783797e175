"""Who gets which device: generation and capture of one model on one machine, as arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from ..settings import RunSettings
from .config import choose_dtype, dtype_on, half_dtype, itemsize, read_config
from .feasibility import CONTEXT_OVERHEAD, capture_bytes, refuse_capture, refuse_generation
from .gpus import Gpu, emptiest_first, read_gpus
from .machine import (
    CPU_TOKENS,
    GIB,
    GPU_TOKENS,
    check_device,
    choose_device,
    free_host_memory,
)
from .overhead import (
    GPU_BATCHED_TOKENS,
    EngineLimits,
    choose_limits,
    engine_overhead,
    least_cache,
)
from .shape import Shape
from .stored import Stored, sized
from .support import quantised

_USABLE = 0.95
_DEFAULT_SHARE = 0.92
"""vLLM's own gpu_memory_utilization."""
_SHARE_SPARE = 0.02

Mode = Literal["alone", "apart", "co-resident", "in turn"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where capture runs beside vLLM, which has the first of `gpus`, and what each may take."""

    mode: Mode
    """alone: one of the two is loaded, not both. apart: capture has a device to itself.
    co-resident: both are loaded and run side by side. in turn: generation ends and leaves before
    capture is loaded."""
    line: str
    capture_device: str
    """cpu, cuda (spread over `gpus`) or cuda:N, the N-th of `gpus`."""
    kv_cache_bytes: int | None = None
    """Of each GPU, expected within `gpu_share` where it is shared at the same time; None: not."""
    gpu_share: float | None = None
    """Of each GPU, what vLLM may ask to be free at its start, cache included; None: its default."""
    capture_tokens: int | None = None
    """Of a batch, where vLLM is loaded too; None lets capture see what is free."""
    gpus: tuple[Gpu, ...] = ()
    """The cards in the order in which the run's processes are to see them; none: no GPU is used."""
    limits: EngineLimits | None = None
    """Of vLLM's step, on GPUs."""
    shape: Shape | None = None
    """What was counted of the model, on GPUs."""
    capture_itemsize: int = 2
    """Bytes of a value in capture, on GPUs."""


def place_on_gpus(
    shape: Shape,
    *,
    gpus: Sequence[Gpu],
    tensor_parallel: int,
    capture_device: str,
    itemsize: int,
    capture_itemsize: int,
    sequences: int,
    tokens_per_sequence: int,
    batched_tokens: int = GPU_BATCHED_TOKENS,
) -> Placement:
    """Decide how the free memory of `gpus` serves generation and capture of a model.

    vLLM splits weights and KV cache over the first `tensor_parallel`. `sequences` of
    `tokens_per_sequence` (prompt and response) are wanted in flight; a quarter of them is the least
    that co-residence is worth. What neither needs of a shared GPU goes to capture batches. Under
    `auto` capture takes a GPU of its own, else one that holds the model, else all of them.
    """
    place = partial(
        _place_beside,
        shape,
        gpus=gpus,
        tensor_parallel=tensor_parallel,
        itemsize=itemsize,
        capture_itemsize=capture_itemsize,
        sequences=sequences,
        tokens_per_sequence=tokens_per_sequence,
        batched_tokens=batched_tokens,
    )
    if capture_device != "auto":
        return place(capture_device=capture_device)
    needed = capture_bytes(shape, capture_itemsize, CPU_TOKENS)
    spare = _first_that_holds(gpus, needed, after=tensor_parallel)
    if spare is not None:
        return place(capture_device=f"cuda:{spare}")
    devices = ["cuda"]
    # Spread over several, one card at a time would work.
    single = _first_that_holds(gpus, needed)
    if single is not None and len(gpus) > 1:
        devices.insert(0, f"cuda:{single}")
    found = [place(capture_device=device) for device in devices]
    return next((each for each in found if each.mode == "co-resident"), found[0])


def _place_beside(
    shape: Shape,
    *,
    gpus: Sequence[Gpu],
    tensor_parallel: int,
    capture_device: str,
    itemsize: int,
    capture_itemsize: int,
    sequences: int,
    tokens_per_sequence: int,
    batched_tokens: int = GPU_BATCHED_TOKENS,
) -> Placement:
    """Return the placement with capture on one device, cpu, cuda or cuda:N."""
    per_token = shape.block_bytes_per_token(capture_itemsize)
    least_batch = CPU_TOKENS * per_token
    kind, _, index = capture_device.partition(":")
    engines = gpus[:tensor_parallel]
    generation = f"generation on {_named(engines)}"
    share = own_share(engines)
    if kind != "cuda" or (index and int(index) >= tensor_parallel):
        where = _named([gpus[int(index)]]) if index else capture_device
        line = f"{generation}, capture on {where} beside it; untested on GPU"
        return Placement("apart", line, capture_device, gpu_share=share, gpus=tuple(gpus))
    captures = [gpus[int(index)]] if index else gpus
    usable = int(min(gpu.free for gpu in (*engines, *captures)) * _USABLE)
    weights = shape.weight_bytes(itemsize) // tensor_parallel
    capture_weights = shape.weight_bytes(capture_itemsize) // len(captures)
    each = shape.cache_bytes(itemsize, tokens_per_sequence, tensor_parallel)
    least_kv = least_cache(shape, itemsize, tokens_per_sequence, tensor_parallel, sequences)
    kv = max(sequences * each, least_kv)
    overhead = engine_overhead(shape, sequences, tensor_parallel, itemsize, batched_tokens)
    engine, capture = weights + overhead, capture_weights + CONTEXT_OVERHEAD + least_batch
    sums = (
        f"{usable / GIB:.1f} GiB usable a GPU; {generation}: {weights / GIB:.1f} weights + "
        f"{overhead / GIB:.1f} engine + {kv / GIB:.1f} KV; capture on {_named(captures)}: "
        f"{capture_weights / GIB:.1f} weights + {CONTEXT_OVERHEAD / GIB:.1f} context + "
        f"{least_batch / GIB:.1f} batch; untested on GPU"
    )
    room = usable - engine - capture
    if room < max(kv // 4, least_kv):
        line = f"generation first, capture after it: {sums}"
        return Placement("in turn", line, capture_device, gpu_share=share, gpus=tuple(gpus))
    # Batches of eight times the least, as long as the cache keeps half of what it wants.
    roomy = min(7 * least_batch, max(0, room - max(kv // 2, least_kv)))
    kv_given = min(kv, room - roomy)
    return Placement(
        "co-resident",
        f"co-resident: {sums}",
        capture_device,
        kv_cache_bytes=kv_given,
        gpu_share=(engine + kv_given) / min(gpu.total for gpu in engines),
        capture_tokens=min(GPU_TOKENS, CPU_TOKENS + (room - kv_given) // per_token),
        gpus=tuple(gpus),
    )


def own_share(gpus: Sequence[Gpu]) -> float | None:
    """Return what vLLM may ask of cards it has to itself; None where its default of 0.92 is free.

    It does not start where less is free than it asks for, which it looks at when its own context
    and what cards talk to each other with are there already.
    """
    if min(gpu.free / gpu.total for gpu in gpus) - _SHARE_SPARE >= _DEFAULT_SHARE:
        return None
    taken = CONTEXT_OVERHEAD + (GIB if len(gpus) > 1 else 0)
    return min(_DEFAULT_SHARE, *((gpu.free - taken) / gpu.total for gpu in gpus))


def _first_that_holds(gpus: Sequence[Gpu], needed: int, after: int = 0) -> int | None:
    """Return the place of the first card from `after` on with `needed` bytes to use."""
    for place, gpu in enumerate(gpus):
        if place >= after and needed <= int(gpu.free * _USABLE):
            return place
    return None


def _named(gpus: Sequence[Gpu]) -> str:
    return f"GPU{'s' * (len(gpus) > 1)} {', '.join(str(gpu.index) for gpu in gpus)}"


def choose_placement(
    config: Mapping[str, Any],
    settings: RunSettings,
    *,
    gpu: bool,
    engine: bool,
    sequences: int,
    tokens_per_sequence: int,
    capture: bool = True,
    cards: Sequence[Gpu] | None = None,
    stored: Stored | None = None,
) -> Placement:
    """Return which devices a run uses, and how much of them.

    `config` is config.json, `stored` its weights, None where they can but be estimated; `gpu` says
    whether there is one, `engine` and `capture` what is loaded of the model. `cards` are those of
    another machine; None: this one's. Raise UsageError for a model, dtype or device that cannot
    work, ResourceError where devices cannot hold what they load.
    """
    asked = settings.execution
    device, tensor_parallel = asked.capture_device, asked.tensor_parallel_size
    if not gpu:
        if not engine:
            return Placement("alone", "", device)
        # Sharing the cores gains nothing.
        return Placement("in turn", "generation on all cores first, capture after it", device)
    read = read_config(config)
    shape = sized(config, stored)
    gpus, kind, free_host = _machine(device, cards)
    engines = gpus[:tensor_parallel]
    value = generation_itemsize(read, settings.sampling.dtype, engines)
    half = "" if shape.packed else half_dtype(read, bfloat16=_all_bfloat16(engines))
    capture_value = _capture_itemsize(read, settings.capture.dtype, kind, gpus)
    counted = shape.packed or not quantised(config)  # else its weights are not in its shape
    if engine and counted:
        least = least_cache(shape, value, tokens_per_sequence)
        refuse_generation(shape, gpus, tensor_parallel, value, least, half)
    sizes = (shape, engines, value, tokens_per_sequence, sequences)
    limits = choose_limits(*sizes, fixed=asked.batch_size is not None) if engine else None
    if not capture:
        found = Placement("alone", "", device, gpu_share=own_share(engines), gpus=tuple(gpus))
        return replace(found, limits=limits, shape=shape)
    if limits is not None:
        found = place_on_gpus(
            shape,
            gpus=gpus,
            tensor_parallel=tensor_parallel,
            capture_device=device,
            itemsize=value,
            capture_itemsize=capture_value,
            sequences=limits.sequences,
            tokens_per_sequence=tokens_per_sequence,
            batched_tokens=limits.batched_tokens,
        )
    else:
        only = _alone_on(shape, gpus, device, capture_value)
        found = Placement("alone", "", only, gpus=tuple(gpus))
    if counted:
        refuse_capture(shape, gpus, found.capture_device, capture_value, free_host, half)
    return replace(found, limits=limits, shape=shape, capture_itemsize=capture_value)


def _capture_itemsize(config: Any, asked: str, kind: str, gpus: Sequence[Gpu]) -> int:
    """Return the bytes of a value of capture, on a kind of device."""
    if kind == "cuda":
        return itemsize(choose_dtype(config, asked, bfloat16=_all_bfloat16(gpus)))
    return itemsize(dtype_on(config, asked, kind))


def _machine(device: str, cards: Sequence[Gpu] | None) -> tuple[list[Gpu], str, int]:
    """Return the cards, the kind of device that captures (cpu or cuda) and the free host memory.

    The emptiest card is first, but where one is named by its number, which it keeps. The host of
    other cards is taken to have as much memory as they.
    """
    gpus = list(read_gpus() if cards is None else cards)
    ordered = gpus if ":" in device else emptiest_first(gpus)
    check_device(device, len(gpus))
    if cards is None:
        return ordered, choose_device(device).partition(":")[0], free_host_memory()
    return ordered, "cpu" if device == "cpu" else "cuda", sum(gpu.total for gpu in cards)


def _alone_on(shape: Shape, gpus: Sequence[Gpu], device: str, itemsize: int) -> str:
    """Return the device of a capture that nothing runs beside: one card where the model fits."""
    if device != "auto":
        return device
    single = _first_that_holds(gpus, capture_bytes(shape, itemsize, CPU_TOKENS))
    return "cuda" if single is None or len(gpus) == 1 else f"cuda:{single}"


def generation_itemsize(config: Any, dtype: str, gpus: Sequence[Gpu]) -> int:
    """Return the bytes of a value in vLLM on some cards; `auto` is half precision where it is safe.

    Elsewhere it is float32.
    """
    if dtype == "auto" and not half_dtype(config, bfloat16=_all_bfloat16(gpus)):
        return 4
    return itemsize(dtype)


def _all_bfloat16(gpus: Sequence[Gpu]) -> bool:
    """Return whether all cards have bfloat16 arithmetic, as Ampere and newer do."""
    return all(gpu.capability >= (8, 0) for gpu in gpus)
