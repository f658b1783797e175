"""What a model does by position alone, both engines do: scales, rotation, windows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.agreement import BAR, apart
from tests.support.families import FAMILIES
from traitmill.engine.generation import on_gpu
from traitmill.engine.run.watchdog import tie_children


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["Llama-4", "Ministral-3", "Cohere-2", "LFM-2", "LFM-2-MoE", "Gemma-3, text"]
)
async def test_positions_count_alike_in_both_engines(
    name: str, tmp_path: Path, model_folder: Path
) -> None:
    """vLLM took two scales of queries from no config.json, 0.9 and 1.3 nats from the 65th token on,
    and turned LFM-2's heads wrongly on a CPU, by 5 to 39 nats; Cohere-2's window held one token
    less where it was captured, up to 7 nats."""
    if on_gpu():
        pytest.skip("of vLLM on a CPU, in float32")
    tie_children()
    [family] = [each for each in FAMILIES if each.name == name]
    found = await apart(family.make(tmp_path / "model", model_folder))
    assert max(found.read, found.written) < BAR, found
