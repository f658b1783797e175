"""LoRA adapters as peft saves them, with products that are not zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

TARGETS = ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")


def make_adapter(
    folder: Path,
    base: Path | str,
    *,
    rank: int = 4,
    targets: tuple[str, ...] = TARGETS,
    size: float = 0.3,
    **config: Any,
) -> Path:
    """Save an adapter of a model folder; `size` is the spread of its weights."""
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_pretrained(base)
    made = get_peft_model(
        model,
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), **config),
    )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, size)
    made.save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Change what adapter_config.json says."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
