"""A model over several devices: devices that are fakes, but refuse what two real ones would refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support import oracle
from traitmill.engine.capture import model as capture
from traitmill.engine.capture.model import CaptureModel
from traitmill.engine.capture.pooling import Pooler, pool_weights
from traitmill.engine.capture.spread import Pending, SharedOnce, devices_of
from traitmill.engine.records import Response, Sample
from traitmill.engine.settings import CaptureSettings

FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")


class On(torch.Tensor):
    """A tensor that says it is on some device. Two devices' tensors do not meet in one operation."""

    copies: list[tuple[torch.device, torch.device]] = []

    @property
    def device(self) -> torch.device:
        return self.__dict__["where"]

    def to(self, device: torch.device, **_: object) -> On:
        On.copies.append((self.device, device))
        return on(self, device)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = {part.where for part in _tensors([*args, *(kwargs or {}).values()])}
        if len(found) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device, not {found}")
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and found:
            return on(result, *found)
        return result


def _tensors(values: Any) -> Any:
    for value in values:
        if isinstance(value, On):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def on(tensor: torch.Tensor, device: torch.device) -> On:
    with torch._C.DisableTorchFunctionSubclass():
        found = tensor.as_subclass(On)
        if found is tensor:
            found = (
                tensor.alias().as_subclass(On)
                if hasattr(tensor, "alias")
                else tensor.view_as(tensor).as_subclass(On)
            )
    found.__dict__["where"] = device
    return found


@pytest.fixture(autouse=True)
def _no_copies() -> None:
    On.copies.clear()


class Block(nn.Module):
    """Adds a rotary table to the states, as a block that turns queries would use it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.weight = device

    def forward(self, states: Any, *, table: Any, masks: Any, past: Any = None) -> Any:
        assert past is None
        return states + table + masks[0] * masks[1]


def run(blocks: list[Block], devices: list[torch.device], *, shared: bool) -> torch.Tensor:
    """One forward as accelerate does it: states go to each block's device, and what is not there."""
    table, masks = on(torch.ones(2, 3), FIRST), (on(torch.ones(2, 3), FIRST),) * 2
    states: Any = on(torch.zeros(2, 3), FIRST)
    hooks = SharedOnce(blocks, devices if shared else [FIRST] * len(blocks))
    with hooks:
        for block, device in zip(blocks, devices, strict=True):
            if states.device != device:
                states = states.to(device)
            states = block(states, table=table, masks=masks)
    assert not any(block._forward_pre_hooks for block in blocks)
    return states


def test_what_blocks_share_goes_to_each_device_once() -> None:
    devices = [FIRST, FIRST, SECOND, SECOND, SECOND]
    blocks = [Block(device) for device in devices]
    with pytest.raises(RuntimeError, match="same device"):
        run(blocks, devices, shared=False)  # the fakes do refuse it
    On.copies.clear()
    states = run(blocks, devices, shared=True)
    assert states.device == SECOND
    with torch._C.DisableTorchFunctionSubclass():
        assert states.tolist() == [[10.0] * 3] * 2
    # The states, the table, and the one mask that stands twice: not once more for each block.
    assert On.copies == [(FIRST, SECOND)] * 3


def test_blocks_on_one_device_are_left_alone() -> None:
    blocks = [Block(FIRST), Block(FIRST)]
    with SharedOnce(blocks, [FIRST, FIRST]):
        assert not any(block._forward_pre_hooks for block in blocks)


def test_pools_are_formed_and_kept_where_their_block_is() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 2, 5, 4, generator=generator)  # layers, rows, width, dim
    spans = [{"prompt": (0, 2), "response": (2, 5)}, {"prompt": (0, 1), "response": (1, 3)}]
    plain = pool_weights(("response_mean", "prompt_last"), spans, 5)
    pooler = Pooler(on(plain, torch.device("cpu")), 3, 4, torch.device("cpu"))
    pooler.take(0, hidden[0])
    for slot in (1, 2):
        pooler.take(slot, on(hidden[slot], SECOND))
    assert On.copies == [(torch.device("cpu"), torch.device("cpu")), (torch.device("cpu"), SECOND)]
    [(slots, part)] = pooler.elsewhere()
    assert (slots, part.device) == ([1, 2], SECOND)
    right = np.einsum("rpw,lrwd->rpld", plain.numpy(), hidden.numpy())
    with torch._C.DisableTorchFunctionSubclass():
        np.testing.assert_allclose(pooler.pooled[:, :, 0].numpy(), right[:, :, 0], rtol=1e-5)
        np.testing.assert_allclose(part.numpy(), right[:, :, 1:], rtol=1e-5)


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_as_many_batches_are_under_way_as_there_are_devices(
    devices: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = CaptureModel(
        oracle.build("llama", tmp_path), CaptureSettings(dtype="float32"), token_budget=16
    )
    assert made._devices == [torch.device("cpu")] * 3 == devices_of(made._blocks)
    right, under_way, most = Pending.wait, 0, 0
    launch = made._launch

    def launched(*arguments: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        return launch(*arguments)

    def arrived(pending: Any) -> Any:
        nonlocal under_way
        under_way -= 1
        return right(pending)

    monkeypatch.setattr(made, "_launch", launched)
    monkeypatch.setattr(Pending, "wait", arrived)
    made._devices = [torch.device("cuda", place) for place in range(devices)]
    monkeypatch.setattr(
        capture, "SharedOnce", lambda blocks, _: SharedOnce(blocks, devices_of(blocks))
    )
    rows = [Response(sample(place), "ok", "t", (5, 6, 7, 8), "length") for place in range(12)]
    found = made.capture(rows)
    assert [result.sample_id for result in found] == [row.sample.id for row in rows]
    assert not any(result.error for result in found)
    assert most == devices + 1


def sample(place: int) -> Any:
    return Sample(
        "t", f"{place:032x}", "pos", 0, 0, place, "i", "q", "p", tuple(range(3, 10)), place
    )


def test_pools_of_other_devices_take_their_places(tmp_path: Any) -> None:
    class Passed:
        def synchronize(self) -> None:
            waited.append(self)

    waited: list[Passed] = []
    events = [Passed(), Passed()]
    main = torch.full((2, 1, 3, 4), -1.0)
    main[:, :, 0] = 0.0
    parts = (
        ([1], torch.full((2, 1, 1, 4), 1.0), events[0]),
        ([2], torch.full((2, 1, 1, 4), 2.0), events[1]),
    )
    _, pooled = Pending(capture.Batch((0, 1), 5), main, None, parts).wait()
    assert waited == events
    assert pooled[:, 0, :, 0].tolist() == [[0.0, 1.0, 2.0]] * 2
