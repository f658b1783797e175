"""What is loaded outside a run's own models takes the card that is free, too: stand-ins for cards."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.gpu.test_placement import LLAMA_70B, card, smi
from tests.models.test_placement import GEMMA_2B, Recorded
from tests.support import fakes
from traitmill.engine.capture import model as capture_model
from traitmill.engine.errors import ResourceError
from traitmill.engine.models import ModelRef, config, device_here
from traitmill.engine.projection.reading import Reader
from traitmill.engine.run import models, per_token
from traitmill.engine.run.models import LocalModels, ModelsWanted
from traitmill.engine.settings import CaptureSettings, Execution

REF = ModelRef("fake", "fake", "r0", GEMMA_2B)


@pytest.fixture(autouse=True)
def two_cards(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The second by the bus is free; CUDA, which counts the fastest first, has it as its first."""
    smi(monkeypatch, card(0, 80, 1), card(1, 80))
    order = ["abc1", "abc0"]

    def properties(number: int) -> Any:
        return SimpleNamespace(uuid=order[number])

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):  # put back afterwards
        monkeypatch.setenv(name, "0,1")
    yield
    config.computes_bfloat16.cache_clear()
    config.fast_bfloat16.cache_clear()


def test_a_model_of_this_process_gets_the_free_card_by_its_number_here() -> None:
    assert device_here(REF, fakes.settings()) == "cuda:0"
    for asked in ("cpu", "cuda:1"):
        run = fakes.settings(execution=Execution(capture_device=asked))
        assert device_here(REF, run) == asked
    with pytest.raises(ResourceError, match="capture does not fit on 2 GPUs"):
        device_here(replace(REF, config=LLAMA_70B), fakes.settings())


def test_without_a_card_nothing_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_here(replace(REF, config={}), fakes.settings()) == "auto"


class LoadedError(Exception):
    """Ends a test once the model would be loaded."""


@pytest.mark.parametrize("command", ["project", "per_token"])
def test_what_projects_and_what_captures_every_token_take_the_free_card(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def load(*_: object, device: str, **__: object) -> None:
        told.append(device)
        raise LoadedError

    monkeypatch.setattr(capture_model, "CaptureModel", load)
    run = fakes.settings()
    with pytest.raises(LoadedError):
        if command == "project":
            parts = {"ref": REF, "_settings": run, "_capture": CaptureSettings()}
            Reader.__dict__["_model"].func(SimpleNamespace(**parts))
        else:
            per_token._write([], run, REF, {}, print)
    assert told == ["cuda:0"]


async def test_a_judge_of_its_own_is_placed_as_a_runs_engine_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = Recorded(monkeypatch)
    smi(monkeypatch, card(0, 80, 1), card(1, 80, 60))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(models, "on_gpu", lambda: True)
    wanted = ModelsWanted(
        ref=REF,
        settings=fakes.settings(execution=Execution(batch_size=3)),
        engine=False,
        captures=False,
        longest=300,
    )
    home = LocalModels(wanted, notice=lambda _: None, last_error=lambda: "")
    await home.prepare()
    engine: Any = await home.start_judging(ModelRef("judge", "judge", "r0", GEMMA_2B))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,0"
    assert told.calls[0] == "engine gpu=True kv=False share=0.74"
    assert engine.size.max_num_seqs > 3
    await home.close()
