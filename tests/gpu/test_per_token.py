"""G17: token states of a GPU travel while it runs; the devices here are stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.capture.test_model import make_rows
from tests.support.oracle import build
from traitmill.engine.capture import per_token
from traitmill.engine.capture.model import CaptureModel
from traitmill.engine.capture.per_token import write_per_token
from traitmill.engine.settings import CaptureSettings


class OnCard(CaptureModel):
    """Says that it is on a card."""

    @property
    def input_device(self) -> torch.device:
        return torch.device("cuda:0")

    def forward(self, ids: torch.Tensor, layers: Any, take: Any) -> None:
        told.append("forward")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CaptureModel, "input_device", torch.device("cpu"))
            patch.setattr(OnCard, "input_device", torch.device("cpu"))
            super().forward(ids, layers, take)


told: list[str] = []


class Event:
    def synchronize(self) -> None:
        told.append("waited")


def test_g17_states_go_to_pinned_memory_while_the_next_batch_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told.clear()
    folder = build("llama", tmp_path / "model")
    settings = CaptureSettings(layers=(0, 2), dtype="float32")
    plain = CaptureModel(folder, settings, self_check="off", token_budget=32, threads=1)
    card = OnCard(folder, settings, self_check="off", token_budget=32, threads=1)
    pinned: list[bool] = []
    contiguous: list[bool] = []
    empty, copy = torch.empty, torch.Tensor.copy_

    def recorded(*shape: Any, pin_memory: bool = False, **named: Any) -> torch.Tensor:
        pinned.append(pin_memory)
        return empty(*shape, **named)

    def copied(to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if non_blocking and to.dim() == 3 and len(pinned):
            contiguous.append(to.is_contiguous())
        return copy(to, source, non_blocking)

    write_per_token(plain, make_rows(), tmp_path / "plain", revision="r", fault=print)
    monkeypatch.setattr(per_token.torch, "empty", recorded)
    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    monkeypatch.setattr(per_token, "events_of", lambda _: [Event()])
    write_per_token(card, make_rows(), tmp_path / "card", revision="r", fault=print)
    batches = told.count("forward")
    assert batches >= 3
    assert sum(pinned) == batches, "each batch's place, and nothing else"
    assert contiguous
    assert all(contiguous), "a part that is not in one piece is waited for"
    # One batch is read while the next is under way.
    assert told == ["forward", *["forward", "waited"] * (batches - 1), "waited"]
    for path in (tmp_path / "plain").iterdir():
        assert (tmp_path / "card" / path.name).read_bytes() == path.read_bytes()
