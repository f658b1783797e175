"""A model with latent attention (DeepSeek) on a CPU: what vLLM computes is what transformers does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, DeepseekV3Config, PreTrainedTokenizerFast

from traitmill.engine.generation import EngineSize, SteeredEngine, on_gpu
from traitmill.engine.models import find_model
from traitmill.engine.run.watchdog import tie_children
from traitmill.engine.settings import Execution, Sampling

VOCAB = 300
PROMPT, RESPONSE = tuple(range(3, 40)), tuple(range(50, 130))


def build(folder: Path) -> Path:
    """Save a small model whose attention decides its words, as that of a trained one does."""
    torch.manual_seed(3)
    config = DeepseekV3Config(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        first_k_dense_replace=2,  # without experts
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=32,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        qk_nope_head_dim=128,
        v_head_dim=128,
        head_dim=64,
        max_position_embeddings=256,
        scoring_func="sigmoid",
        dtype="float32",
    )
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                loud = 2.0 if "q_b_proj" in name or "kv_a_proj" in name else 1.2
                weight.normal_(0, loud / weight.shape[1] ** 0.5)
    model.save_pretrained(folder)
    words = {f"w{token}": token for token in range(VOCAB)}
    tokens = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="w1").save_pretrained(folder)
    return folder


@pytest.mark.slow
async def test_log_probabilities_are_those_of_transformers(tmp_path: Path) -> None:
    """vLLM's own rotation on a CPU put them 1 to 9 nats apart."""
    if on_gpu():
        pytest.skip("of vLLM on a CPU")
    folder = build(tmp_path / "model")
    tie_children()
    ref = find_model(str(folder))
    how = Sampling(model=ref.name, max_new_tokens=4, dtype="float32")
    size = EngineSize(2, 256, 256, 64 << 20)
    engine = SteeredEngine(ref, how, Execution(), size, on_gpu=False)
    await asyncio.to_thread(engine.start)
    try:
        found = await engine.logprobs(PROMPT, RESPONSE, None)
    finally:
        await engine.close()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[*PROMPT, *RESPONSE]])
    with torch.no_grad():
        scores = model(input_ids=ids).logits[0].log_softmax(-1)
    expected = scores[:-1].gather(-1, ids[0, 1:, None])[len(PROMPT) - 1 :, 0].numpy()
    assert expected.std() > 0.5, "the words differ"
    np.testing.assert_allclose(np.array(found), expected, atol=1e-3)
