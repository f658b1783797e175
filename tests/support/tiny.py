"""A tiny random model that both engines load, with a real tokenizer: for what needs many engines."""

from __future__ import annotations

import shutil
from pathlib import Path

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)


def tiny_qwen3(folder: Path, tokenizer: Path) -> Path:
    """Save a Qwen3 of two blocks, 4 heads and 2 key-value heads, with a model folder's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config

    source = AutoConfig.from_pretrained(tokenizer)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=source.vocab_size,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        bos_token_id=source.bos_token_id,
        eos_token_id=source.eos_token_id,
        tie_word_embeddings=True,
        initializer_range=0.3,  # logits that differ, so that comparing them says something
        dtype="float32",
    )
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    for name in _TOKENIZER:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder / name)
    return folder
