"""Sizes against real models, and who gets one machine's memory, cores and GPU."""

import asyncio
import os

import pytest
import torch

from engine import devices
from engine.devices import GIB, Shape, Turns, place_on_gpu, share_cores, token_budget
from tests.oracle import FAMILIES

GEMMA_2B = Shape.from_config(
    {
        "hidden_size": 2304,
        "num_hidden_layers": 26,
        "intermediate_size": 9216,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 256000,
    }
)
GEMMA_9B = Shape.from_config(
    {
        "hidden_size": 3584,
        "num_hidden_layers": 42,
        "intermediate_size": 14336,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "vocab_size": 256000,
    }
)


def place(shape, total_gib, host_gib=256, sequences=256):
    return place_on_gpu(
        shape,
        total=total_gib * GIB,
        host_free=host_gib * GIB,
        itemsize=2,
        capture_itemsize=2,
        sequences=sequences,
        tokens_per_sequence=300,
    )


def test_sizes_of_known_models():
    """Published parameter counts (2.61 and 9.24 billion) and the KV cache's 2 x layers x heads x size."""
    assert GEMMA_2B.parameters == pytest.approx(2.61e9, rel=0.01)
    assert GEMMA_9B.parameters == pytest.approx(9.24e9, rel=0.01)
    assert GEMMA_2B.kv_bytes_per_token(2) == 2 * 26 * 4 * 256 * 2
    assert GEMMA_2B.block_bytes_per_token(2) - 4 * 2304 == pytest.approx(108e3, rel=0.02)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma3", "qwen3_moe"])
def test_parameters_are_counted_as_the_model_has_them(family):
    """Gated families; biases and norms are left out of the formula, so they are left out here."""
    from transformers import AutoModelForCausalLM

    config = FAMILIES[family]()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    named = model.named_parameters()
    counted = sum(p.numel() for name, p in named if p.ndim > 1 and "gate.weight" not in name)
    assert Shape.from_config(config.to_dict()).parameters == counted


def test_the_budget_says_its_arithmetic():
    small = token_budget(GEMMA_2B, 2, 1 * GIB, gpu=True)
    assert small.tokens == int(0.8 * GIB / GEMMA_2B.block_bytes_per_token(2))
    assert "all that fits" in small.line
    assert "untested on GPU" in small.line
    large = token_budget(GEMMA_2B, 2, 500 * GIB, gpu=False)
    assert large.tokens == devices.CPU_TOKENS
    assert "capped" in large.line
    assert "GPU" not in large.line
    assert token_budget(GEMMA_2B, 2, 0, gpu=False).tokens == 1


def test_free_memory_honours_a_container(tmp_path):
    machine = devices.free_host_memory(tmp_path)
    assert machine > 0
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert devices.free_host_memory(tmp_path) == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert devices.free_host_memory(tmp_path) > 600_000


@pytest.mark.parametrize(
    ("shape", "total", "host", "mode"),
    [
        (GEMMA_2B, 80, 256, "co-resident"),
        (GEMMA_2B, 24, 64, "co-resident"),
        (GEMMA_2B, 12, 64, "sleep"),
        (GEMMA_2B, 12, 4, "in turn"),
        (GEMMA_9B, 141, 256, "co-resident"),
        (GEMMA_9B, 40, 64, "sleep"),
        (GEMMA_9B, 40, 16, "in turn"),
        (GEMMA_9B, 22, 256, "in turn"),
    ],
)
def test_one_gpu_policy(shape, total, host, mode):
    placement = place(shape, total, host)
    assert placement.mode == mode
    assert placement.line.endswith("untested on GPU")
    assert placement.capture_tokens >= 1
    assert placement.kv_cache_bytes >= 0
    used = 2 * shape.weight_bytes(2) + devices.ENGINE_OVERHEAD + devices.CONTEXT_OVERHEAD + placement.kv_cache_bytes
    used += placement.capture_tokens * shape.block_bytes_per_token(2)
    assert (used <= 0.95 * total * GIB) == (mode == "co-resident")


class Recorded:
    """An engine and a capture worker that write down what they are told."""

    def __init__(self):
        self.calls = []

    async def sleep(self, level=1):
        self.calls.append(f"sleep {level}")

    async def wake_up(self, tags=None):
        self.calls.append("wake_up")

    def shutdown(self):
        self.calls.append("shutdown")

    async def restore(self):
        self.calls.append("restore")

    async def offload(self):
        self.calls.append("offload")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("co-resident", []),
        ("sleep", ["sleep 1", "restore", "offload", "wake_up", "sleep 1", "restore"]),
    ],
)
async def test_turns_free_the_gpu_before_the_other_takes_it(mode, expected):
    both = Recorded()
    turns = Turns(mode, both, both)
    for step in (turns.to_capture, turns.to_capture, turns.to_generation, turns.to_generation, turns.to_capture):
        await step()
    assert both.calls == expected


async def test_in_turn_generation_does_not_come_back():
    both = Recorded()
    turns = Turns("in turn", both, both)
    await turns.to_generation()
    await turns.to_capture()
    assert both.calls == ["shutdown", "restore"]
    with pytest.raises(RuntimeError, match="shut down"):
        await turns.to_generation()


def test_cores_are_shared_without_overlap():
    assert share_cores([3, 1, 2, 0]) == devices.CpuShare((0, 1, 2), (3,))
    assert share_cores([3, 1, 2, 0]).omp_bind == "0,1,2"
    assert share_cores([5]) == devices.CpuShare((5,), (5,))


def test_pinning_moves_every_thread_and_back():
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    core = {min(before)}
    try:
        devices.pin(sorted(core))
        assert os.sched_getaffinity(0) == core
        assert torch.get_num_threads() == 1
        assert asyncio.run(asyncio.to_thread(os.sched_getaffinity, 0)) == core
    finally:
        devices.pin(sorted(before))
        torch.set_num_threads(threads)
    assert os.sched_getaffinity(0) == before
