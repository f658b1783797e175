"""A model whose blocks hand on another stream is refused without its weights."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3nTextConfig, LongcatFlashConfig

from tests.support import oracle
from traitmill.engine.capture.fit import check_blocks
from traitmill.engine.errors import UsageError

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
GEMMA_3N = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 97,
    "laurel_rank": 8,
    "activation_sparsity_pattern": [0.0] * 4,
}


def on_meta(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_blocks_that_hand_on_several_streams_are_refused() -> None:
    with pytest.raises(UsageError, match="of shape 4x1x4x32 for 4 tokens, not 1x4x32, so capture"):
        check_blocks(on_meta(Gemma3nTextConfig(**SIZES, **GEMMA_3N)))


def test_blocks_that_are_not_found_are_refused() -> None:
    config = LongcatFlashConfig(**SIZES, num_layers=4)
    with pytest.raises(UsageError, match="blocks of LongcatFlashForCausalLM were not found"):
        check_blocks(on_meta(config))


@pytest.mark.parametrize("family", sorted(oracle.FAMILIES | oracle.BY_LENGTH | oracle.WHOLE))
def test_every_family_that_is_captured_passes(family: str) -> None:
    config = (oracle.FAMILIES | oracle.BY_LENGTH | oracle.WHOLE)[family]()
    check_blocks(on_meta(config))


def test_a_model_that_cannot_be_tried_is_left_to_its_loader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = on_meta(Gemma3nTextConfig(**SIZES, **GEMMA_3N))

    def fails(**_: object) -> None:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr(model, "forward", fails)
    check_blocks(model)
