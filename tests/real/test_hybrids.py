"""vLLM starts on a CPU with hybrid models whose states are as large as those of published ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.families import Family, make
from traitmill.engine.generation import VllmEngine, on_gpu, size_engine
from traitmill.engine.models import find_model, free_host_memory
from traitmill.engine.records import Sample
from traitmill.engine.settings import Execution, Sampling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(on_gpu(), reason="of the CPU's engine"),
]
HYBRIDS = (
    Family(
        "falcon-h1",
        "attention and Mamba-2 in each layer",
        make(
            "FalconH1Config",
            num_hidden_layers=36,
            mamba_d_ssm=1536,
            mamba_n_heads=24,
            mamba_d_head=64,
            mamba_d_state=128,
            mamba_n_groups=1,
        ),
    ),
    Family(
        "qwen3-next",
        "a gated delta net in three of four layers",
        make(
            "Qwen3NextConfig",
            num_hidden_layers=48,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=64,
            shared_expert_intermediate_size=64,
        ),
    ),
)


@pytest.mark.parametrize(
    ("family", "dtype", "batch_size"),
    [
        (HYBRIDS[0], "float32", 1),
        (HYBRIDS[0], "float32", None),
        (HYBRIDS[1], "auto", 1),  # bfloat16, in which alone vLLM computes it on a CPU
    ],
    ids=["falcon-h1-1", "falcon-h1-auto", "qwen3-next-1"],
)
def test_it_starts_and_answers(
    tmp_path: Path, model_folder: Path, family: Family, dtype: str, batch_size: int | None
) -> None:
    ref = find_model(str(family.make(tmp_path, model_folder)))
    execution = Execution(batch_size=batch_size)
    size = size_engine(
        ref, execution, 200, on_gpu=False, free_bytes=free_host_memory(), dtype=dtype
    )
    sampling = Sampling(model=ref.name, max_new_tokens=8, dtype=dtype)
    sample = Sample("t", "0" * 32, "pos", 0, 0, 0, "", "", "", tuple(range(20, 60)), 1)

    async def answer() -> tuple[int, ...]:
        engine = VllmEngine(ref, sampling, execution, size, on_gpu=False)
        try:
            await asyncio.to_thread(engine.start)
            return (await engine.generate(sample)).response_token_ids
        finally:
            await engine.close()

    assert asyncio.run(answer())
