"""The families' random weights show faults of attention, and still like what a judge reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.agreement import BAR
from tests.support.families import FAMILIES, READ


def scaled(model: Any) -> None:
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), float):
            module.scaling *= 1.1


def turned(model: Any) -> None:
    for name, angles in model.named_buffers():
        if name.endswith("inv_freq"):
            angles.mul_(1.05)


def without_window(model: Any) -> None:
    model.config.sliding_window = 4096


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Mistral", "Gemma-2", "Gemma-3, text", "gpt-oss", "Cohere-2"])
def test_a_fault_of_attention_is_far_beyond_the_bar(
    name: str, tmp_path: Path, model_folder: Path
) -> None:
    """A tenth more of the scale, a twentieth more of the angles, no window."""
    [family] = [each for each in FAMILIES if each.name == name]
    folder = family.make(tmp_path / "model", model_folder)
    ids = torch.randint(20, 40_000, (1, 400), generator=torch.Generator().manual_seed(1))

    def scores(fault: Callable[[Any], None] | None) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        if fault is not None:
            fault(model)
        with torch.inference_mode():
            return model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)

    right = scores(None)
    tokens = AutoTokenizer.from_pretrained(folder)(READ, add_special_tokens=False)["input_ids"]
    assert right.exp()[:, tokens].sum(-1).median() > 0.02
    for fault in (scaled, turned, without_window):
        off = (scores(fault) - right)[:-1].gather(-1, ids[0, 1:, None]).abs()
        assert off.max() > 10 * BAR, fault.__name__
