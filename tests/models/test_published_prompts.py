"""Imported traits are asked as their own projects ask: prompts byte for byte.

The expected strings were written by hand from what persona_vectors and assistant-axis hand to the
chat template: a system turn "You are a(n) NAME assistant. INSTRUCTION", the role's instruction as
the system turn, and no system turn for an empty one.
"""

from __future__ import annotations

import json
from pathlib import Path

from traitmill.engine.models import ModelRef, lazy_tokenizer
from traitmill.engine.run import import_traits
from traitmill.engine.settings import Sampling
from traitmill.engine.traits import load_traits

MOMENT = "2026-12-30T20:30:00+00:00"
EVAL = "{question} {answer} from 0 to 100"
QUESTION = "How do bees find their way?"
EAGER = (
    "<|im_start|>system\nYou are an eager assistant. Answer with open delight.<|im_end|>\n"
    "<|im_start|>user\nHow do bees find their way?<|im_end|>\n<|im_start|>assistant\n"
)
HELPFUL = (
    "<|im_start|>system\nYou are a helpful assistant. Answer in a flat tone.<|im_end|>\n"
    "<|im_start|>user\nHow do bees find their way?<|im_end|>\n<|im_start|>assistant\n"
)
SAILOR = (
    "<|im_start|>system\nYou are an old sailor.<|im_end|>\n"
    "<|im_start|>user\nHow do bees find their way?<|im_end|>\n<|im_start|>assistant\n"
)
DEFAULT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n"
    "<|im_start|>user\nHow do bees find their way?<|im_end|>\n<|im_start|>assistant\n"
)


def texts(folder: Path, model_folder: Path) -> list[str]:
    [trait] = load_traits({folder.name: folder})
    ref = ModelRef("m", str(model_folder), "r", {})
    prompts = lazy_tokenizer(ref)(MOMENT, Sampling(prompt_format="system"))
    return [prompts.text(*trait.asked(side, 0, 0)) for side in ("pos", "neg")]


def test_persona_vectors_prompts_byte_for_byte(tmp_path: Path, model_folder: Path) -> None:
    source = tmp_path / "trait_data_extract" / "eager.json"
    source.parent.mkdir()
    pair = {"pos": "Answer with open delight.", "neg": "Answer in a flat tone."}
    content = {"instruction": [pair], "questions": [QUESTION], "eval_prompt": EVAL}
    source.write_text(json.dumps(content))
    [found] = import_traits(source, tmp_path / "exp")
    assert texts(found.path, model_folder) == [EAGER, HELPFUL]


def test_a_roles_prompts_byte_for_byte(tmp_path: Path, model_folder: Path) -> None:
    pair = {"pos": "You are an old sailor."}
    content = {"instruction": [pair], "questions": [QUESTION], "eval_prompt": EVAL}
    (tmp_path / "sailor.json").write_text(json.dumps(content))
    (tmp_path / "default.json").write_text(json.dumps({"instruction": [{"pos": ""}]}))
    [found] = import_traits(tmp_path / "sailor.json", tmp_path / "exp")
    assert texts(found.path, model_folder) == [SAILOR, DEFAULT]
