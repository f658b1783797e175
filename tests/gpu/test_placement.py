"""Placement promises what the cards can keep, and takes the cards that are free: no GPU is needed.

The stand-ins are at the boundary: what nvidia-smi prints, and what torch says of the machine.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.models import test_placement as shapes
from tests.support import fakes
from traitmill.engine.errors import ExitCode, ResourceError
from traitmill.engine.models import config, gpus, placement
from traitmill.engine.models.hub import ModelRef
from traitmill.engine.models.machine import GIB
from traitmill.engine.models.placement import Placement, choose_placement
from traitmill.engine.run import Work, loading, models, open_backends
from traitmill.engine.settings import (
    CaptureSettings,
    Execution,
    JudgeLimits,
    JudgeSettings,
    Sampling,
)

LLAMA_8B = shapes.LLAMA_70B | {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "dtype": "bfloat16",
}
LLAMA_70B = shapes.LLAMA_70B | {"dtype": "bfloat16"}


def smi(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Let nvidia-smi print these lines, and torch see as many cards."""
    import torch

    said = SimpleNamespace(stdout="\n".join(lines) + "\n")
    monkeypatch.setattr(gpus.subprocess, "run", lambda *_, **__: said)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(lines))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(placement, "free_host_memory", lambda: 500 * GIB)
    config.computes_bfloat16.cache_clear()
    config.fast_bfloat16.cache_clear()


def card(
    index: int,
    gib: float,
    free: float | None = None,
    capability: str = "9.0",
    mig: str = "[N/A]",
) -> str:
    """Return nvidia-smi's line of a card."""
    left = gib if free is None else free
    sizes = f"{int(gib * 1024)}, {int(left * 1024)}"
    return (
        f"{index}, GPU-abc{index}, NVIDIA A100 80GB PCIe, {sizes}, {capability}, 580.95.05, {mig}"
    )


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    config.computes_bfloat16.cache_clear()
    config.fast_bfloat16.cache_clear()


def chosen(
    raw: dict[str, Any],
    *,
    engine: bool = True,
    capture: bool = True,
    dtype: str = "auto",
    **execution: Any,
) -> Placement:
    run = fakes.settings(
        execution=Execution(**execution),
        sampling=Sampling(model="fake", revision="r0", dtype=dtype),
        capture=CaptureSettings(),
    )
    return choose_placement(
        raw,
        run,
        gpu=True,
        engine=engine,
        capture=capture,
        sequences=256,
        tokens_per_sequence=300,
    )


# --- G4: what cannot fit is refused, with the arithmetic and what would fit ---


def test_g04_a_70b_on_one_card_is_refused_with_the_number_of_cards_that_would_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    smi(monkeypatch, card(0, 80))
    with pytest.raises(ResourceError) as caught:
        chosen(LLAMA_70B)
    said = str(caught.value)
    # 70.55 G weights of 2 bytes are 131.4 GiB.
    assert "131.4 GiB of weights" in said
    assert "80.0 GiB are free" in said
    assert "a machine with at least 2 such GPUs" in said
    assert caught.value.exit_code == ExitCode.RESOURCES


def test_g04_with_more_cards_here_the_smallest_split_that_fits_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    smi(monkeypatch, *(card(index, 40) for index in range(8)))
    with pytest.raises(ResourceError, match="with `tensor_parallel_size` 4$"):
        chosen(LLAMA_70B)
    assert chosen(LLAMA_70B, tensor_parallel_size=4).capture_device.startswith("cuda")


def test_g04_an_8b_on_a_t4_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    smi(monkeypatch, card(0, 14.6, capability="7.5"))
    with pytest.raises(ResourceError, match=r"15\.0 GiB of weights .* 14\.6 GiB are free"):
        chosen(LLAMA_8B)


def test_g04_float32_that_does_not_fit_is_told_to_halve(monkeypatch: pytest.MonkeyPatch) -> None:
    smi(monkeypatch, card(0, 24))
    with pytest.raises(ResourceError, match="halve it with `dtype` bfloat16$"):
        chosen(LLAMA_8B, dtype="float32")
    smi(monkeypatch, card(0, 24, capability="7.5"))
    with pytest.raises(ResourceError, match="halve it with `dtype` float16$"):
        chosen(LLAMA_8B, dtype="float32")


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_model_that_can_have_no_half_precision_on_a_card_is_not_told_to(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(monkeypatch, card(0, 14.6, capability="7.5"))
    with pytest.raises(
        ResourceError, match="take a machine with at least 4 such GPUs, or a smaller model$"
    ):
        chosen(shapes.GEMMA_9B, dtype=dtype)
    smi(monkeypatch, *(card(index, 24, capability="7.5") for index in range(2)))
    with pytest.raises(ResourceError, match="capture does not fit") as told:
        chosen(shapes.GEMMA_9B, dtype=dtype, capture_device="cuda:0", tensor_parallel_size=2)
    assert "halve" not in str(told.value)


def test_g04_a_capture_that_cannot_fit_after_generation_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a T4 `auto` generates in float16, and captures in float32."""
    smi(monkeypatch, card(0, 24, capability="7.5"))
    with pytest.raises(
        ResourceError, match=r"capture does not fit on one GPU: 3\d\.\d GiB"
    ) as told:
        chosen(LLAMA_8B)
    assert "`capture_device` cpu" in str(told.value)
    assert chosen(LLAMA_8B, capture_device="cpu").mode == "apart"
    assert chosen(LLAMA_8B, capture=False).mode == "alone"
    monkeypatch.setattr(placement, "free_host_memory", lambda: 16 * GIB)
    with pytest.raises(ResourceError, match="16.0 GiB of host memory are free"):
        chosen(LLAMA_8B, capture_device="cpu")


def test_g04_a_named_card_that_is_too_small_is_refused_beside_one_that_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    smi(monkeypatch, card(0, 80), card(1, 12))
    with pytest.raises(ResourceError, match="another GPU here holds it"):
        chosen(LLAMA_8B, capture_device="cuda:1")


def test_g04_a_quantised_model_is_not_refused_by_its_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    smi(monkeypatch, card(0, 80))
    quantised = LLAMA_70B | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    assert chosen(quantised, capture=False).gpus[0].index == 0


async def test_g04_nothing_is_asked_of_a_judge_before_the_plan_is_known_to_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(monkeypatch, card(0, 80))
    monkeypatch.setattr(models, "on_gpu", lambda: True)
    opened: list[str] = []

    class Judge(loading.EndpointJudge):
        async def open(self) -> Any:
            opened.append("paid")
            return await super().open()

    monkeypatch.setattr(loading, "EndpointJudge", Judge)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    limits = JudgeLimits(base_url="http://127.0.0.1:9/v1")
    settings = fakes.settings(n_examples=6, judge=JudgeSettings(model="dear"), limits=limits)
    work = Work(
        ref=ModelRef("fake", "fake", "r0", LLAMA_70B),
        settings=settings,
        runs=fakes.open_runs([fakes.make_trait(tmp_path, "one")], settings),
        generates=True,
        judges=True,
        captures=True,
        log=tmp_path / "log",
        notice=lambda _: None,
    )
    with pytest.raises(ResourceError, match="generation does not fit"):
        async with open_backends(work):
            pass
    assert not opened


# --- G3: free memory decides, and the emptiest cards are taken ---


def test_g03_cards_that_others_use_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    smi(monkeypatch, card(0, 80, 2), card(1, 80, 30), card(2, 80), card(3, 80))
    found = chosen(shapes.GEMMA_9B)
    assert [gpu.index for gpu in found.gpus[:2]] == [2, 3]
    assert (found.mode, found.capture_device) == ("apart", "cuda:1")
    assert "generation on GPU 2, capture on GPU 3" in found.line
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "")
    gpus.show_only(found.gpus)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3,1,0"
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_g03_no_more_is_asked_of_a_card_than_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    smi(monkeypatch, card(0, 80, 60))
    alone = chosen(shapes.GEMMA_9B, capture=False)
    # A GiB for vLLM's own context, which is there when it looks at what is free.
    assert alone.gpu_share == pytest.approx((60 - 1) / 80)
    shared = chosen(shapes.GEMMA_2B)
    assert shared.mode == "co-resident"
    assert shared.gpu_share
    assert shared.gpu_share * 80 < 60
    smi(monkeypatch, card(0, 80, 79.5))
    assert chosen(shapes.GEMMA_9B, capture=False).gpu_share is None
    # And one more where cards talk to each other; of small cards two hundredths were too little.
    smi(monkeypatch, card(0, 24, 21), card(1, 24, 24))
    split = chosen(shapes.GEMMA_2B, capture=False, tensor_parallel_size=2)
    assert split.gpu_share == pytest.approx((21 - 2) / 24)


@pytest.mark.parametrize(
    "how",
    [
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
        {"compression_config": {"quant_method": "compressed-tensors", "format": "int-quantized"}},
    ],
)
def test_a_quantised_model_is_not_refused_for_the_size_of_what_it_was_made_from(
    how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(monkeypatch, card(0, 80))
    assert chosen(LLAMA_70B | how, capture=False).mode == "alone"


def test_g03_only_visible_cards_count(monkeypatch: pytest.MonkeyPatch) -> None:
    smi(monkeypatch, card(0, 80), card(1, 40), card(2, 24))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-abc1")
    assert [gpu.index for gpu in gpus.read_gpus()] == [2, 1]


def test_g03_a_card_that_is_named_keeps_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    smi(monkeypatch, card(0, 80, 60), card(1, 80))
    found = chosen(shapes.GEMMA_2B, capture_device="cuda:1")
    assert [gpu.index for gpu in found.gpus] == [0, 1]
    assert (found.mode, found.capture_device) == ("apart", "cuda:1")


@pytest.mark.parametrize("visible", ["MIG-1234", "0", None])
def test_g03_a_slice_of_a_card_is_asked_of_torch(
    visible: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    smi(monkeypatch, card(0, 80, mig="Enabled"))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (9 * GIB, 10 * GIB))
    sliced = SimpleNamespace(name="A100 MIG 1g.10gb", major=8, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: sliced)
    (found,) = gpus.read_gpus()
    assert (found.total, found.free, found.capability) == (10 * GIB, 9 * GIB, (8, 0))
    gpus.show_only([found])
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


def test_cards_that_cannot_be_shown_in_another_order_are_planned_in_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    smi(monkeypatch)
    free = (20 * GIB, 79 * GIB)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free[index], 80 * GIB))
    whole = SimpleNamespace(name="A100", major=8, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: whole)
    found = chosen(LLAMA_8B, capture_device="cpu")
    gpus.show_only(found.gpus)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert [gpu.index for gpu in found.gpus] == [0, 1]  # as vLLM sees them


# --- G12: one card where the model fits ---


def test_g12_a_small_model_is_captured_on_one_card_of_eight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    smi(monkeypatch, *(card(index, 80, 80 if index == 5 else 40) for index in range(8)))
    found = chosen(shapes.GEMMA_2B, engine=False)
    assert (found.capture_device, found.gpus[0].index) == ("cuda:0", 5)
    assert chosen(LLAMA_70B, engine=False).capture_device == "cuda"


def test_g12_after_a_split_generation_a_model_that_fits_one_card_is_not_spread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    smi(monkeypatch, card(0, 24), card(1, 24))
    found = chosen(shapes.GEMMA_9B, tensor_parallel_size=2)
    assert (found.mode, found.capture_device) == ("in turn", "cuda:0")
