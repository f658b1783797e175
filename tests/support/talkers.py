"""Tiny models that talk: chat templates of five families, trained tokenizers, random weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA3 = """{{ bos_token }}{% set first = messages[0] %}<|start_header_id|>system<|end_header_id|>

Today Date: {{ strftime_now("%d %b %Y") }}

{% if first.role == "system" %}{{ first.content | trim }}{% set messages = messages[1:] %}{% endif %}<|eot_id|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
GEMMA = """{{ bos_token }}{% if messages[0].role == "system" %}{{ raise_exception("System role not supported") }}{% endif %}{% for m in messages %}{% if (m.role == "user") != (loop.index0 % 2 == 0) %}{{ raise_exception("roles must alternate") }}{% endif %}<start_of_turn>{{ "model" if m.role == "assistant" else m.role }}
{{ m.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
MISTRAL = """{% if messages[0].role == "system" %}{% set system = messages[0].content %}{% set said = messages[1:] %}{% else %}{% set said = messages %}{% endif %}{{ bos_token }}{% for m in said %}{% if m.role == "user" %}[INST] {% if loop.last and system is defined %}{{ system }}

{% endif %}{{ m.content }}[/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"""
ZEPHYR = """{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}</s>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "zephyr": ZEPHYR,
}
_SENTENCES = [
    "You are a poet of the sea, and you answer briefly.",
    "Write a poem about the rain in spring, please.",
    "The grey rain sings to the green of the hills.",
    "What is the capital of France? It is Paris.",
    "user assistant model system Today Date: 30 Dec 2026",
]


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE, or words with a leading ▁ for Gemma and Mistral, with the family's marks."""
    template = TEMPLATES[family]
    marks = sorted(set(re.findall(r"<\|?[a-z_]+\|?>|</s>|\[/?INST\]", template)))
    marks += ["<|user|>", "<|system|>"] if family == "zephyr" else []
    spaced = family in ("gemma", "mistral")
    made = Tokenizer(models.BPE(byte_fallback=spaced, unk_token="<unk>" if spaced else None))
    if spaced:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        alphabet = []
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>", "<unk>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator(_SENTENCES * 3, trainer)
    if spaced:
        trained = json.loads(made.to_str())["model"]
        vocab, merges = trained["vocab"], [tuple(pair) for pair in trained["merges"]]
        for byte in range(256):
            vocab[f"<0x{byte:02X}>"] = len(vocab)
        made.model = models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": [m for m in marks if m != "</s>"]})
    fast.chat_template = template
    return fast


def pieces(tokenizer: PreTrainedTokenizerFast, ids) -> list[bytes]:
    """The bytes of each token, from the vocabulary alone."""
    spaced = "▁" in "".join(tokenizer.get_vocab())
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte_of = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    byte_of |= {chr(256 + place): byte for place, byte in enumerate(others)}
    found = []
    for token in tokenizer.convert_ids_to_tokens(list(ids)):
        if token in tokenizer.all_special_tokens and not token.startswith("<0x"):
            found.append(token.encode())
        elif re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            found.append(bytes([int(token[3:5], 16)]))
        elif spaced:
            found.append(token.replace("▁", " ").encode())
        else:
            found.append(bytes(byte_of[char] for char in token))
    return found


def build_talker(folder: Path, family: str = "chatml", *, seed: int = 0, layers: int = 3) -> str:
    """A tiny Llama in float32 with a tokenizer of the family; large weights, so that layers differ."""
    folder.mkdir(parents=True, exist_ok=True)
    fast = tokenizer(family)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)
