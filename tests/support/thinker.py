"""A tiny Qwen-3 that thinks: random, but for which tokens it likes, tags of a thought among them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

OPENED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n<think>\n"
)
"""The prompt ends in an open thought."""
BEGUN = (
    "{% for m in messages %}<|im_start|>{% if m['role'] != 'assistant' %}{{ m['role'] }}\n{% endif %}"
    "{{ m['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}<|im_start|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
"""The model begins its thought, where it is not told to do without."""
_WORDS = (
    " the sea is wide and old waves sing of stars that fall where no one looks at night but you "
    "Yes No yes no .\n\n\n"
)
_WIDTH = 32


def make_thinker(folder: Path, embedded: Path, template: str) -> Path:
    """Save the model, float32, with the embedded model's tokens and two more.

    It writes words of _WORDS, ends its turn or a thought at about one token in forty, and begins a
    thought behind <|im_start|> more often than not.
    """
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_hidden_layers=3,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    model = Qwen3ForCausalLM(config)
    opening, closing = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    liked = {*tokenizer(_WORDS)["input_ids"], closing, tokenizer.eos_token_id}
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight.normal_(0, 1)
        embeddings[:, 0], embeddings[:, 1] = 8.0, 0.0
        embeddings[tokenizer.convert_tokens_to_ids("<|im_start|>"), 1] = 8.0
        head = model.lm_head.weight.normal_(0, 0.1)
        head[:, :2] = 0.0
        head[sorted(liked), 0] = 3.0
        head[opening, 1] = 6.0
    model.save_pretrained(folder)
    return folder
