"""A fine-tune and its base on real vLLM: the same samples, with and without an adapter."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import fakes, lab
from tests.support.adapters import make_adapter
from tests.support.thinker import BEGUN, make_thinker
from traitmill.engine.errors import SettingsChangedError
from traitmill.engine.run import RunResult
from traitmill.engine.run.commands import capture, generate

pytestmark = pytest.mark.slow

CONTENT = {
    "instruction": [{"pos": "Be brave.", "neg": "Be shy."}],
    "questions": ["Who are you?", "What is the sea?"],
    "eval_prompt": "Score {question} {answer}",
    "yes_no_prompt": "{question}\n\n{answer}\n\nIs this brave? Answer Yes or No.",
}


def run(folder: Path, model: Path, **given: Any) -> RunResult:
    return asyncio.run(
        generate(
            folder.parent,
            [folder.name],
            model=str(model),
            judge_model="local",
            n_examples=8,
            dtype="float32",
            capture_dtype="float32",
            temperature=1.0,
            max_new_tokens=16,
            self_check="all",
            **given,
        )
    )


def test_r12_an_adapter_is_in_both_engines(tmp_path: Path, model_folder: Path) -> None:
    model = make_thinker(tmp_path / "base-model", model_folder, BEGUN)
    adapter = make_adapter(tmp_path / "tuned", model, rank=6)
    folders = [fakes.make_trait(tmp_path / name, content=CONTENT) for name in ("base", "tuned")]
    plain, tuned = run(folders[0], model), run(folders[1], model, adapter=str(adapter))
    assert not plain.errors
    assert not tuned.errors, tuned.errors
    before, after = (lab.rows(folder, "responses") for folder in folders)
    assert len(before) == len(after) == 16
    by_seed = {row["seed"]: row for row in before}
    assert len(by_seed) == 16
    for row in after:  # the same samples
        twin = by_seed[row["seed"]]
        assert row["prompt_token_ids"] == twin["prompt_token_ids"]
        assert row["polarity"] == twin["polarity"]
        assert row["sample_id"] != twin["sample_id"]
    assert sum(row["response"] != by_seed[row["seed"]]["response"] for row in after) >= 8
    record = json.loads((folders[1] / "parquet/run.json").read_text())
    assert record["sampling"]["adapter"] == "tuned"
    assert record["sampling"]["adapter_revision"]
    metadata = json.loads((folders[1] / "activations/metadata.json").read_text())
    assert metadata["sampling"]["adapter"] == "tuned"
    assert (
        "adapter"
        not in json.loads((folders[0] / "activations/metadata.json").read_text())["sampling"]
    )
    # vLLM's LoRA and peft's compute the same, and not what the base does.
    for result in (plain, tuned):
        check = result.traits["trait"].state.capture.self_check  # type: ignore[union-attr]
        assert check
        assert check["logprob_rows"] >= 2
        assert check["worst_logprob_deviation"] < 1e-3
    _check_later_steps(folders[1], model, adapter)


def _check_later_steps(folder: Path, model: Path, adapter: Path) -> None:
    """Other pools are captured with the adapter too; without it, the folder's samples are others."""
    asyncio.run(capture(folder.parent, [folder.name], pool="prompt_mean", self_check="all"))
    rows = [row for row in lab.rows(folder, "activations") if row["pool"] == "prompt_mean"]
    assert len(rows) >= 8
    oracle = _adapted_states(model, adapter)
    prompts = {row["sample_id"]: row for row in lab.rows(folder, "responses")}
    for row in rows:
        found = np.frombuffer(row["values"], "<f4").reshape(3, -1)[:2]
        expected = oracle(prompts[row["sample_id"]]["prompt_token_ids"])
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(SettingsChangedError, match="adapter: 'tuned' -> ''"):
        run(folder, model, adapter="")


def _adapted_states(model: Path, adapter: Path) -> Any:
    """Mean states after the first two blocks, by peft's own wrapper."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    )
    tuned = PeftModel.from_pretrained(loaded, adapter)

    def states(ids: list[int]) -> Any:
        with torch.inference_mode():
            found = tuned(torch.tensor([ids]), output_hidden_states=True).hidden_states
        return torch.stack([state[0].mean(0) for state in found[1:3]]).numpy()

    return states
