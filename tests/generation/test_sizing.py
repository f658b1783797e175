"""Engine sizes: what is asked of vLLM, and when a model does not fit."""

from __future__ import annotations

import pytest
import torch

from traitmill.engine.errors import ExitCode, ResourceError
from traitmill.engine.generation import EngineSize, size_engine
from traitmill.engine.models import ModelRef, Placement
from traitmill.engine.settings import Execution

GIB = 1 << 30
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "dtype": "bfloat16",
}
KV_BYTES = 2 * 4 * 2 * 8
"""Key and value of 4 layers, 2 heads of 8 each, a token: times the bytes of a value."""


def size(
    longest: int,
    *,
    gpu: bool = False,
    free: int = 64 * GIB,
    batch_size: int | None = None,
    placement: Placement | None = None,
    dtype: str = "bfloat16",
    context: int = 0,
    workers: int = 1,
) -> EngineSize:
    config = CONFIG | {"max_position_embeddings": context}
    return size_engine(
        ModelRef("m", "m", "r", config),
        Execution(batch_size=batch_size, tensor_parallel_size=workers),
        longest,
        on_gpu=gpu,
        free_bytes=free,
        placement=placement,
        dtype=dtype,
    )


@pytest.mark.parametrize(
    ("longest", "context", "length"),
    [(1, 0, 256), (255, 0, 256), (256, 0, 512), (257, 0, 512), (300, 400, 400), (300, 8192, 512)],
)
def test_an_engine_has_room_for_one_token_more_and_no_more_than_the_context(
    longest: int, context: int, length: int
) -> None:
    assert size(longest, context=context).max_model_len == length


@pytest.mark.parametrize(
    ("longest", "length"), [(100, 256), (350, 384), (384, 384), (385, 512), (900, 1024)]
)
def test_an_engines_spare_room_does_not_change_a_models_rope(longest: int, length: int) -> None:
    rope = {"rope_type": "longrope"}
    config = CONFIG | {"max_position_embeddings": 4096, "rope_scaling": rope}
    config["original_max_position_embeddings"] = 384
    ref = ModelRef("m", "m", "r", config)
    found = size_engine(ref, Execution(), longest, on_gpu=True, free_bytes=64 * GIB)
    assert found.max_model_len == length


def test_all_limits_are_set() -> None:
    assert size(300, gpu=True) == EngineSize(512, 8192, 512, None, 0.92)
    on_cpu = size(300)
    assert (on_cpu.max_num_seqs, on_cpu.max_num_batched_tokens) == (128, 4096)
    assert size(300, batch_size=7).max_num_seqs == 7
    # A step holds a whole prompt, since none is cut in two, and a token of each sequence.
    assert size(9000).max_num_batched_tokens == 9216
    assert size(300, batch_size=10_000).max_num_batched_tokens == 10_000


@pytest.mark.parametrize(("dtype", "bytes_of_a_value"), [("bfloat16", 2), ("float32", 4)])
def test_the_cpus_cache_holds_all_sequences_but_no_third_of_the_memory(
    dtype: str, bytes_of_a_value: int
) -> None:
    wanted = 1024 * (2048 + 32) * KV_BYTES * bytes_of_a_value
    assert size(2000, batch_size=1024, dtype=dtype).kv_cache_bytes == wanted
    assert size(2000, batch_size=1024, dtype=dtype, free=GIB // 2).kv_cache_bytes == GIB // 6
    assert size(10, dtype=dtype).kv_cache_bytes == 64 << 20


def test_t16_workers_hold_equal_parts_of_a_cpus_cache_and_of_the_memory() -> None:
    wanted = 1024 * (2048 + 32) * KV_BYTES * 2
    two, eight = (size(2000, batch_size=1024, workers=n).kv_cache_bytes for n in (2, 8))
    assert two == eight == wanted // 2  # of two key-value heads, eight workers hold copies
    assert size(2000, batch_size=1024, workers=2, free=GIB // 2).kv_cache_bytes == GIB // 12


def test_a_cache_that_holds_no_sequence_is_refused() -> None:
    assert size(260_000, batch_size=1, free=GIB // 2).kv_cache_bytes
    with pytest.raises(ResourceError, match="free some, or lower `max_new_tokens`") as caught:
        size(1_000_000, free=GIB // 2)
    assert caught.value.exit_code == ExitCode.RESOURCES
    assert "one sequence of 1000192 tokens needs 0.2 GiB of cache, but only 0.5" in str(
        caught.value
    )


def test_g07_on_a_shared_gpu_vllm_measures_what_its_share_leaves_to_the_cache() -> None:
    shared = Placement("co-resident", "", "cuda", kv_cache_bytes=5 * GIB, gpu_share=0.4)
    found = size(300, gpu=True, placement=shared)
    assert (found.kv_cache_bytes, found.gpu_share) == (None, 0.4)
    assert str(found) == "512 sequences of up to 512 tokens"
    alone = size(300, gpu=True, placement=Placement("in turn", "", "cuda"))
    assert (alone.kv_cache_bytes, alone.gpu_share) == (None, 0.92)
    assert str(alone) == "512 sequences of up to 512 tokens"


@pytest.mark.parametrize("accelerated", [True, False])
def test_on_some_processors_vllm_keeps_states_in_float32(
    monkeypatch: pytest.MonkeyPatch, accelerated: bool
) -> None:
    """One whose states were counted in bfloat16 did not start there: its cache was too small."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: accelerated)

    def cache(**named: str) -> int:
        config = {
            "model_type": "qwen3_next",
            "hidden_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "dtype": "bfloat16",
            **named,
        }
        found = size_engine(
            ModelRef("m", "m", "r", config),
            Execution(batch_size=8),
            100,
            on_gpu=False,
            free_bytes=64 * GIB,
            dtype="bfloat16",
        )
        return found.kv_cache_bytes or 0

    wide = cache(mamba_ssm_dtype="float32")
    assert (cache() == wide) == accelerated
    assert cache() <= wide
