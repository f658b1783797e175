"""Over how many workers a model can be split: vLLM's rules, in words."""

from __future__ import annotations

from typing import Any

import pytest

from traitmill.engine.errors import UsageError
from traitmill.engine.models import ModelRef, Shape, check_split

SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
QWEN3 = SMOLLM2 | {
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
}


def check(config: dict[str, Any], workers: int) -> None:
    check_split(ModelRef("m", "m", "r", config), workers)


@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16])
def test_heads_that_divide_are_taken_key_value_heads_repeated_where_they_are_fewer(
    workers: int,
) -> None:
    check(QWEN3, workers)
    shape = Shape.from_config(QWEN3)
    dealt = shape.kv_bytes_per_token(2) // shape.kv_bytes_of_a_card(2, workers)
    assert dealt == min(4, workers)


@pytest.mark.parametrize("workers", [3, 6, 32])
def test_t16_heads_that_do_not_divide_are_told_with_what_does(workers: int) -> None:
    with pytest.raises(UsageError, match=r"16 attention heads and 4 key-value heads.*use 1 or 2"):
        check(QWEN3, workers)


def test_t16_smollm2_is_split_over_three_or_not_at_all() -> None:
    check(SMOLLM2, 3)
    with pytest.raises(UsageError, match=r"9 attention heads and 3 key.*use 1 or 3$"):
        check(SMOLLM2, 2)
    with pytest.raises(UsageError, match="use 1 or 3$"):
        check(SMOLLM2, 9)  # the feed-forward width of 1,536 is no multiple of 9


def test_a_feed_forward_width_that_does_not_divide_is_told() -> None:
    with pytest.raises(UsageError, match="use 1$"):
        check(QWEN3 | {"intermediate_size": 1001}, 2)
