"""Hooks and pools on one device and on two, with every byte counted: fake tensors, no card.

PyTorch's CPU build does not even pretend to have CUDA devices, so the two are `cpu` and `meta`: fake
tensors of both refuse, as two cards would, to meet in an operation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from tests.support.rows import response_row
from traitmill.engine.capture import model as capture
from traitmill.engine.capture.batching import Batch
from traitmill.engine.capture.model import CaptureModel
from traitmill.engine.capture.pooling import Pooler
from traitmill.engine.capture.spread import devices_of
from traitmill.engine.models import Shape

ROWS, PROMPT, RESPONSE = 4, 40, 88
WIDTH = PROMPT + RESPONSE
SIZES = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, attn_implementation="eager"),
    "gemma2": Gemma2Config(**SIZES, attn_implementation="eager"),
}
DEVICES = [torch.device("cpu"), torch.device("meta")]
MATRIX = {"mm", "bmm", "addmm", "baddbmm"}


class Counted(TorchDispatchMode):
    """Bytes of each device at their highest, and those read and written outside matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int, torch.device]] = {}
        self.peak: Counter[str] = Counter()
        self.moved = 0
        self.between: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        known = {leaf.untyped_storage()._cdata for leaf in given}
        self.live = {key: held for key, held in self.live.items() if not held[0].expired()}
        fresh = [leaf for leaf in made if leaf.untyped_storage()._cdata not in known]
        for leaf in fresh:
            storage = leaf.untyped_storage()
            self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes(), leaf.device)
        now: Counter[str] = Counter()
        for _, size, device in self.live.values():
            now[str(device)] += size
        for device, size in now.items():
            self.peak[device] = max(self.peak[device], size)
        if fresh and func._opname not in MATRIX:
            self.moved += sum(leaf.nbytes for leaf in (*given, *fresh))
        if given and made and given[0].device != made[0].device:
            self.between[str(given[0].device), str(made[0].device)] += made[0].nbytes
        return out


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeTensorMode, list[Pooler]]]:
    """Devices that compute nothing, and the poolers that were made on them."""
    made: list[Pooler] = []

    def pooler(*arguments: Any) -> Pooler:
        made.append(Pooler(*arguments))
        return made[-1]

    monkeypatch.setattr(capture, "Pooler", pooler)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.inference_mode():
        yield mode, made


def put(mode: FakeTensorMode, module: torch.nn.Module, device: torch.device) -> None:
    """Give a module's weights a device."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    bare = torch.empty_like(tensor, device="meta")
                    held[name] = FakeTensor(mode, bare, device)


def bare(family: str) -> Any:
    """A model without weights."""
    with torch.device("meta"):
        config = CONFIGS[family]
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def build(decoder: Any, mode: FakeTensorMode, devices: list[torch.device]) -> CaptureModel:
    """A model of fake weights, its blocks dealt out in equal runs, as accelerate deals them."""
    config = decoder.config
    put(mode, decoder, devices[0])
    blocks = decoder.model.layers
    for place in range(len(blocks)):
        device = devices[place * len(devices) // len(blocks)]
        put(mode, blocks[place], device)

        def arriving(_: Any, args: Any, device: torch.device = device) -> Any:
            return (args[0].to(device), *args[1:])

        blocks[place].register_forward_pre_hook(arriving)
    made = object.__new__(CaptureModel)
    made._model, made._blocks = decoder, list(blocks)
    made._devices = devices_of(made._blocks)
    made.pools, made.layers = ("response_mean", "prompt_last"), (-1, 0, 1, 2, 3)
    made.hidden_dim = config.hidden_size
    return made


def launch(made: CaptureModel) -> Any:
    rows = [
        response_row(f"{i:032x}", range(PROMPT), range(RESPONSE), RESPONSE) for i in range(ROWS)
    ]
    return made._launch(rows, Batch(tuple(range(ROWS)), WIDTH))


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_batchs_bytes_stay_within_the_budgets_estimate(
    family: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = DEVICES[:count]
    decoder = bare(family)
    with counted(monkeypatch) as (mode, _):
        made = build(decoder, mode, devices)
        with Counted() as seen:
            launch(made)
        shape = Shape.from_config(CONFIGS[family])
        growth = shape.score_growth(2)
        estimate = ROWS * WIDTH * (1 + growth * WIDTH) * shape.block_bytes_per_token(2)
        pools = ROWS * 2 * 5 * SIZES["hidden_size"] * 4
        for device in devices:
            assert 0.25 * estimate < seen.peak[str(device)] < estimate + 2 * pools


@pytest.mark.parametrize("family", CONFIGS)
def test_two_devices_exchange_the_states_and_what_all_blocks_share_once(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = bare(family)
    with counted(monkeypatch) as (mode, poolers):
        made = build(decoder, mode, DEVICES)
        with Counted() as seen:
            launch(made)
        [pooler] = poolers
        [(slots, pooled)] = pooler.elsewhere()
        assert pooler.pooled.device == DEVICES[0]
        assert (slots, pooled.device) == ([3, 4], DEVICES[1]), "they stay until they go home"
    states = ROWS * WIDTH * SIZES["hidden_size"] * 2
    rotary = 2 * WIDTH * SIZES["head_dim"] * 2
    weights = ROWS * 2 * WIDTH * 4
    mask = ROWS * WIDTH * WIDTH * 2
    crossed = seen.between["cpu", "meta"]
    assert states + rotary + weights <= crossed < states + 2 * (rotary + weights + mask)
    assert seen.between["meta", "cpu"] == 0


@pytest.mark.parametrize(("family", "figure"), [("llama", 91_300), ("gemma2", 128_800)])
def test_g11_bytes_a_layer_outside_matrix_products(
    family: str, figure: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fused norms and attention would save: a figure to come down, never up."""
    decoder = bare(family)
    with counted(monkeypatch) as (mode, _):
        made = build(decoder, mode, DEVICES[:1])
        with Counted() as seen:
            launch(made)
    a_token = seen.moved / (SIZES["num_hidden_layers"] * ROWS * WIDTH)
    assert round(a_token) <= figure, a_token
