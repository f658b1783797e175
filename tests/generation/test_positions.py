"""What a model does by position alone, both engines do: scales, rotation, windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.agreement import BAR, apart
from tests.support.families import make
from traitmill.engine.generation import on_gpu
from traitmill.engine.run.watchdog import tie_children

LLAMA4 = {
    "intermediate_size_mlp": 64,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "no_rope_layers": [1, 0],
    "layer_types": ["chunked_attention", "full_attention"],
    "attention_chunk_size": 64,
    "floor_scale": 64,
}
MINISTRAL3 = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
}
COHERE2 = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 64,
    "logit_scale": 0.5,
}
LFM2 = {
    "layer_types": ["conv", "full_attention"],
    "block_auto_adjust_ff_dim": False,
    "conv_dim": 64,
    "block_dim": 64,
}
LFM2_MOE = {
    "layer_types": ["full_attention", "conv"],
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "num_dense_layers": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ("Llama4TextConfig", LLAMA4),
        ("Ministral3Config", MINISTRAL3),
        ("Cohere2Config", COHERE2),
        ("Lfm2Config", LFM2),
        ("Lfm2MoeConfig", LFM2_MOE),
    ],
)
async def test_positions_count_alike_in_both_engines(
    config: str, sizes: dict[str, Any], tmp_path: Path, model_folder: Path
) -> None:
    """vLLM took two scales of queries from no config.json, 0.9 and 1.3 nats from the 65th token on,
    and turned LFM-2's heads wrongly on a CPU, by 5 to 39 nats; Cohere-2's window held one token
    less where it was captured, up to 7 nats."""
    if on_gpu():
        pytest.skip("of vLLM on a CPU, in float32")
    tie_children()
    found = await apart(make(config, **sizes)(tmp_path / "model", model_folder))
    assert max(found.read, found.written) < BAR, found
