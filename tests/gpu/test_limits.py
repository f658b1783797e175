"""What vLLM takes beside the weights, and how many sequences it is asked to run on a card."""

from __future__ import annotations

import pytest

from tests.gpu.test_placement import LLAMA_8B
from tests.models.test_placement import GEMMA_2B, GEMMA_9B, cards
from traitmill.engine.generation import size_engine
from traitmill.engine.models import ModelRef, Placement, Shape
from traitmill.engine.models.machine import GIB
from traitmill.engine.models.overhead import EngineLimits, choose_limits, engine_overhead
from traitmill.engine.models.placement import place_on_gpus
from traitmill.engine.settings import Execution


def limits(raw: dict[str, object], total: float, *, sequences: int = 512, fixed: bool = False):
    shape = Shape.from_config(raw)
    return choose_limits(shape, cards(total), 2, 300, sequences, fixed=fixed)


def test_g07_the_counts_of_all_words_and_a_prompts_logprobs_are_part_of_the_engine() -> None:
    shape = Shape.from_config(GEMMA_2B)
    counts = 512 * 256_000 * 4
    assert counts / GIB == pytest.approx(0.49, abs=0.005)
    few, many = (engine_overhead(shape, n, 1, 2) for n in (1, 513))
    assert many - few == counts
    no_words = engine_overhead(Shape.from_config(GEMMA_2B | {"vocab_size": 1}), 1, 1, 2)
    assert (few - no_words) / GIB == pytest.approx(1.5, abs=0.05)


def test_g15_a_large_card_runs_512_sequences_of_8192_tokens() -> None:
    assert limits(GEMMA_2B, 80) == EngineLimits(512, 8192)
    assert limits(LLAMA_8B, 80) == EngineLimits(512, 8192)


def test_g15_a_9b_on_24_gib_gets_more_sequences_of_cache_with_smaller_limits() -> None:
    found = limits(GEMMA_9B, 24)
    assert found == EngineLimits(64, 2048)
    shape = Shape.from_config(GEMMA_9B)
    taken = [engine_overhead(shape, n, 1, 2, tokens) for n, tokens in ((512, 8192), (64, 2048))]
    # The difference goes to the cache: sequences of 300 tokens, 336 KiB a token.
    assert (taken[0] - taken[1]) // (300 * shape.kv_bytes_per_token(2)) >= 10


def test_g15_what_the_user_sets_is_kept() -> None:
    assert limits(GEMMA_9B, 24, sequences=100, fixed=True) == EngineLimits(100, 2048)
    assert limits(GEMMA_9B, 80, sequences=100, fixed=True) == EngineLimits(100, 8192)


def test_g15_the_engine_is_sized_by_its_limits() -> None:
    placed = Placement("in turn", "", "cuda", limits=EngineLimits(64, 2048))
    ref = ModelRef("m", "m", "r", GEMMA_9B)
    size = size_engine(ref, Execution(), 300, on_gpu=True, free_bytes=0, placement=placed)
    assert (size.max_num_seqs, size.max_num_batched_tokens) == (64, 2048)


def test_a_card_has_whole_heads_of_the_cache() -> None:
    """Seen with vLLM's CUDA build: four key-value heads on eight cards are kept twice."""
    shape = Shape.from_config(GEMMA_2B)
    whole = 26 * 2 * 4 * 256 * 2
    assert shape.kv_bytes_of_a_card(2, 1) == whole
    assert shape.kv_bytes_of_a_card(2, 2) == whole // 2
    assert shape.kv_bytes_of_a_card(2, 8) == whole // 4
    each = {
        "itemsize": 2,
        "capture_itemsize": 2,
        "sequences": 512,
        "tokens_per_sequence": 248,
        "capture_device": "auto",
    }
    eight = place_on_gpus(shape, gpus=cards(*[80] * 8), tensor_parallel=8, **each)
    four = place_on_gpus(shape, gpus=cards(*[80] * 4), tensor_parallel=4, **each)
    assert eight.kv_cache_bytes == four.kv_cache_bytes == 512 * 248 * whole // 4
