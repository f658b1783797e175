"""Tiny random models of the families that users bring, each a folder as its makers publish them.

Every one likes a few words, Yes and No among them, so that a local judge has something to read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from .adapters import make_adapter
from .thinker import OPENED, make_thinker
from .weights import decide

LIKED, READ = " the sea is wide old waves sing of stars that fall", " Yes No yes no"
_WIDTH, _HEAD, _CONTEXT = 64, 32, 512
_CHATML = "<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
_REPLY = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PLAIN = "{% for m in messages %}" + _CHATML + "{% endfor %}" + _REPLY
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + PLAIN
)
"""As Gemma's: no system turn."""
DATED = "<|im_start|>system\nToday: {{ strftime_now('%d %b %Y') }}<|im_end|>\n" + PLAIN
"""As Llama-3's: the day stands in it."""
SWITCHED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and '</think>' in m['content'] %}"
    "{{ m['content'].split('</think>')[-1] }}{% else %}" + _CHATML + "{% endif %}{% endfor %}"
    "<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
"""As Qwen-3's: thought can be turned off."""
HARMONY = (
    "<|start|>system<|message|>You are ChatGPT.\nCurrent date: {{ strftime_now('%Y-%m-%d') }}\n\n"
    "Reasoning: {{ reasoning_effort | default('medium') }}\n\n"
    "# Valid channels: analysis, commentary, final.<|end|>"
    "{% for m in messages %}<|start|>{{ m['role'] }}"
    "{% if m['role'] == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ m['content'] }}<|end|>{% endfor %}<|start|>assistant"
)
"""As gpt-oss's: thought and answer are channels of one turn."""
HARMONY_TOKENS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>")


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint, and how a small one is made in a folder."""

    name: str
    kind: str
    """What is particular about it."""
    make: Callable[[Path, Path], Path]
    """Folder to make, folder of the embedded model, whose tokens are taken."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the run, beside the model."""
    adapter: bool = False


def save_tokenizer(
    folder: Path, embedded: Path, template: str | None = PLAIN, added: Iterable[str] = ()
) -> Any:
    """Save the embedded model's tokens with a chat template, and some special tokens more."""
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    if added:
        tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def make(
    config: str,
    template: str | None = PLAIN,
    added: Iterable[str] = (),
    seed: int = 5,
    **sizes: Any,
) -> Callable[[Path, Path], Path]:
    """Return what makes a causal model of a config class, by its name in transformers.

    `seed`: another where chance leaves a local judge no Yes or No to read.
    """

    def build(folder: Path, embedded: Path) -> Path:
        tokenizer = save_tokenizer(folder, embedded, template, added)
        made = getattr(transformers, config)(**_sizes(tokenizer) | sizes)
        _save(folder, made, tokenizer, seed)
        return folder

    return build


def _sizes(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": _WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": _HEAD,
        "max_position_embeddings": _CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
    }


def _save(folder: Path, config: Any, tokenizer: Any, seed: int = 5) -> Any:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float()
    decide(model, *_liked(tokenizer))
    model.save_pretrained(folder)
    return model


def _liked(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens that are liked, and those that a judge reads."""
    words = tokenizer(LIKED + READ, add_special_tokens=False)["input_ids"]
    return [*words, tokenizer.eos_token_id], tokenizer(READ, add_special_tokens=False)["input_ids"]


def _wrapped(config: str, text: str, vision: dict[str, Any], **outer: Any) -> Any:
    """Return what makes a model with a vision part around a text model."""

    def build(folder: Path, embedded: Path) -> Path:
        tokenizer = save_tokenizer(
            folder, embedded, PLAIN, [f"<image_{index}>" for index in range(6)]
        )
        sizes = _sizes(tokenizer)
        inner = sizes | outer.get("text_extra", {})
        tokens = {name: len(tokenizer) - place for name, place in outer["tokens"].items()}
        kind = getattr(transformers, config)
        made = kind(text_config=inner, vision_config=vision, dtype="float32", **tokens)
        torch.manual_seed(5)
        architecture = getattr(transformers, text)
        model = architecture(made).float()
        decide(model, *_liked(tokenizer))
        model.save_pretrained(folder)
        _rename(folder / "model.safetensors", outer.get("renamed", {}))
        return folder

    return build


def _rename(path: Path, prefixes: dict[str, str]) -> None:
    """Name tensors as the published files do, where transformers saves them under other names."""
    weights = load_file(path)
    for old, new in prefixes.items():
        weights = {
            new + name.removeprefix(old) if name.startswith(old) else name: weight
            for name, weight in weights.items()
        }
    save_file(weights, path, metadata={"format": "pt"})


def _tekken(folder: Path, _: Path) -> Path:
    """A Mistral as Mistral publishes it: no tokenizer but tekken.json."""
    folder.mkdir()
    data = files("mistral_common") / "data" / "tekken_240911.json"
    with data.open("rb") as source, (folder / "tekken.json").open("wb") as target:
        shutil.copyfileobj(source, target)
    (folder / "config.json").write_text('{"model_type": "mistral"}')
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sizes = _sizes(tokenizer) | {"vocab_size": 131072, "num_hidden_layers": 2}
    _save(folder, transformers.MistralConfig(**sizes), tokenizer)
    return folder


def _twice(folder: Path, embedded: Path) -> Path:
    """A Mistral with another copy of config and weights in Mistral's own form: here another model's,
    so that it shows which one was read."""
    _tekken(folder, embedded)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    listed = dict.fromkeys(weights, "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": listed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    noise = torch.Generator().manual_seed(6)
    other = {name: torch.randn(each.shape, generator=noise) for name, each in weights.items()}
    save_file(other, folder / "consolidated.safetensors")
    config = json.loads((folder / "config.json").read_bytes())
    params = {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "head_dim": config["head_dim"],
        "hidden_dim": config["intermediate_size"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
        "max_seq_len": _CONTEXT,
    }
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def _mamba(folder: Path, embedded: Path) -> Path:
    tokenizer = save_tokenizer(folder, embedded)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": _WIDTH, "num_hidden_layers": 2}
    _save(folder, transformers.MambaConfig(**sizes, state_size=8), tokenizer)
    return folder


def _bare(folder: Path, embedded: Path) -> Path:
    """A base model: its tokenizer has no chat template."""
    make("LlamaConfig", template=None)(folder, embedded)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


def _quantised(folder: Path, embedded: Path) -> Path:
    """Int8 weights and activations, as compressed-tensors stores them."""
    make("LlamaConfig")(folder, embedded)
    path = folder / "model.safetensors"
    stored: dict[str, torch.Tensor] = {}
    for name, weight in load_file(path).items():
        if name.endswith("_proj.weight"):
            scale = weight.abs().amax(dim=1, keepdim=True) / 127
            stored[name] = (weight / scale).round().clamp(-128, 127).to(torch.int8)
            stored[f"{name.removesuffix('weight')}weight_scale"] = scale
        else:
            stored[name] = weight
    save_file(stored, path, metadata={"format": "pt"})
    _edit_config(folder, quantization_config=_W8A8)
    return folder


_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
_W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": _INT8 | {"strategy": "channel", "dynamic": False},
            "input_activations": _INT8 | {"strategy": "token", "dynamic": True},
        }
    },
}


def _claiming(config: str, how: dict[str, Any], **sizes: Any) -> Callable[[Path, Path], Path]:
    """Return what makes a model whose config says that it is quantised; its weights are not."""

    def build(folder: Path, embedded: Path) -> Path:
        make(config, **sizes)(folder, embedded)
        _edit_config(folder, quantization_config=how)
        return folder

    return build


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _adapted(folder: Path, embedded: Path) -> Path:
    """A base with an adapter in `adapter/` beside it."""
    base = make("Qwen2Config")(folder, embedded)
    make_adapter(folder.with_name(f"{folder.name}-adapter"), base, rank=4, size=0.03)
    return base


def _thinking(folder: Path, embedded: Path) -> Path:
    return make_thinker(folder, embedded, OPENED)


_GEMMA3 = {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "sliding_window": 64,
    "query_pre_attn_scalar": 32,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_THOUGHTFUL = {"thinking": "on", "max_thinking_tokens": 30}
_NO_CAPTURE = {"capture": "none"}
_GPT_OSS = {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 64,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 131072,
    "template": HARMONY,
    "added": HARMONY_TOKENS,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "embed_dim": 32,
    "num_heads": 2,
    "out_hidden_size": _WIDTH,
    "intermediate_size": 32,
    "patch_size": 14,
    "fullatt_block_indexes": [0],
}
_QWEN_TOKENS = {
    "vision_start_token_id": 1,
    "vision_end_token_id": 2,
    "vision_token_id": 3,
    "image_token_id": 4,
    "video_token_id": 5,
}
_QWEN3_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": _WIDTH,
    "num_position_embeddings": 16,
}
_QWEN3_TOKENS = {
    "image_token_id": 1,
    "video_token_id": 2,
    "vision_start_token_id": 3,
    "vision_end_token_id": 4,
}
_GATED_DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 128,  # as published, and all that vLLM's kernel on a CPU takes
    "linear_value_head_dim": 128,
}
_BFLOAT16 = {"dtype": "bfloat16"}
"""vLLM computes gated delta nets on a CPU in no other dtype."""
_LLAMA4 = {
    "intermediate_size_mlp": 64,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "no_rope_layers": [1, 0],
    "layer_types": ["chunked_attention", "full_attention"],
    "attention_chunk_size": 64,
    "floor_scale": 64,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1}
_CONVOLVED = {
    "layer_types": ["conv", "full_attention"],
    # as published; transformers does without these, vLLM does not
    "conv_dim": _WIDTH,
    "block_dim": _WIDTH,
}
_MROPE = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1000000.0,
        "mrope_section": [4, 6, 6],
    }
}

FAMILIES = (
    Family(
        "Llama-3",
        "scaled RoPE, the day in its template",
        make("LlamaConfig", DATED, rope_parameters=_LLAMA3_ROPE),
    ),
    Family("Qwen-2.5", "biases in attention", make("Qwen2Config")),
    Family("Qwen-3", "thought turned off by its template", make("Qwen3Config", SWITCHED)),
    Family("Qwen-3, thinking", "thought opened by its template", _thinking, _THOUGHTFUL),
    Family(
        "Qwen-3-MoE",
        "mixture of experts",
        make("Qwen3MoeConfig", SWITCHED, **_EXPERTS, decoder_sparse_step=1),
    ),
    Family(
        "Gemma-2",
        "soft-caps, no system turn",
        make(
            "Gemma2Config",
            NO_SYSTEM,
            final_logit_softcapping=120.0,  # its own of 30 would level what is liked
            query_pre_attn_scalar=32,
            sliding_window=64,
            layer_types=["sliding_attention", "full_attention"],
        ),
    ),
    Family(
        "Gemma-3, text", "sliding window", make("Gemma3TextConfig", NO_SYSTEM, seed=8, **_GEMMA3)
    ),
    Family(
        "Gemma-3, with vision",
        "wrapper around the text model",
        _wrapped(
            "Gemma3Config",
            "Gemma3ForConditionalGeneration",
            {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
                "vision_use_head": False,
            },
            renamed={"vision_tower.": "vision_tower.vision_model."},
            text_extra=_GEMMA3,
            tokens={"boi_token_index": 1, "eoi_token_index": 2, "image_token_index": 3},
        ),
    ),
    Family(
        "Gemma-4, text",
        "layers of two widths, embeddings of each layer",
        make(
            "Gemma4TextConfig",
            num_hidden_layers=3,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            sliding_window=64,
            global_head_dim=64,
            hidden_size_per_layer_input=16,
            vocab_size_per_layer_input=49152,
        ),
    ),
    Family("Mistral", "tokenizer of Hugging Face", make("MistralConfig", sliding_window=64)),
    Family("Mistral, tekken", "tokenizer of its own", _tekken),
    Family("Mistral, twice", "config and weights in two forms", _twice),
    Family(
        "Mixtral",
        "mixture of experts",
        make("MixtralConfig", num_local_experts=4, num_experts_per_tok=2),
    ),
    Family(
        "OLMoE",
        "mixture of experts",
        make("OlmoeConfig", num_experts=4, num_experts_per_tok=2, num_key_value_heads=2),
    ),
    Family("OLMo-2", "norms after the blocks", make("Olmo2Config", num_key_value_heads=2)),
    Family(
        "Phi-3",
        "RoPE that hangs on the length",
        make(
            "Phi3Config",
            original_max_position_embeddings=256,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 16,
                "long_factor": [2.0] * 16,
                "original_max_position_embeddings": 256,
            },
        ),
    ),
    Family("Granite", "multipliers", make("GraniteConfig", residual_multiplier=0.5)),
    Family(
        "SmolLM-3",
        "layers without RoPE, thought turned off by its template",
        make("SmolLM3Config", SWITCHED, no_rope_layers=[1, 0], layer_types=None),
    ),
    Family(
        "GLM-4",
        "sandwich norms, part of RoPE",
        make("Glm4Config", partial_rotary_factor=0.5, attention_bias=True),
    ),
    Family(
        "Cohere-2",
        "parallel blocks",
        make(
            "Cohere2Config",
            seed=8,
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=64,
            logit_scale=0.5,
        ),
    ),
    Family("Phi-2", "parallel blocks, biases", make("PhiConfig", num_key_value_heads=2)),
    Family(
        "GPT-2",
        "learned positions, a base model",
        make("GPT2Config", None, n_embd=64, n_layer=2, n_head=2, n_positions=_CONTEXT),
    ),
    Family(
        "Pythia",
        "parallel blocks, a base model",
        # transformers has no fewer heads of keys here, and does not look; vLLM does
        make("GPTNeoXConfig", None, num_key_value_heads=2),
    ),
    Family(
        "gpt-oss",
        "channels of harmony, attention sinks",
        make("GptOssConfig", **_GPT_OSS),
        {"thinking": "off"},  # random weights lead from no channel to the next
    ),
    Family(
        "gpt-oss, mxfp4",
        "as it is published",
        _claiming("GptOssConfig", {"quant_method": "mxfp4"}, **_GPT_OSS),
    ),
    Family(
        "DeepSeek-V3",
        "latent attention, experts of two kinds",
        make(
            "DeepseekV3Config",
            num_key_value_heads=2,
            q_lora_rank=32,
            kv_lora_rank=512,
            qk_rope_head_dim=64,
            qk_nope_head_dim=16,
            v_head_dim=32,
            head_dim=64,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            first_k_dense_replace=1,
            n_group=1,
            topk_group=1,
            topk_method="noaux_tc",
            scoring_func="sigmoid",  # as it is published
        ),
    ),
    Family(
        "Qwen-2-VL",
        "wrapper around the text model",
        _wrapped(
            "Qwen2VLConfig",
            "Qwen2VLForConditionalGeneration",
            _QWEN_VISION,
            text_extra=_MROPE,
            tokens=_QWEN_TOKENS,
        ),
    ),
    Family(
        "Qwen-3-VL",
        "wrapper around the text model",
        _wrapped(
            "Qwen3VLConfig",
            "Qwen3VLForConditionalGeneration",
            _QWEN3_VISION | {"deepstack_visual_indexes": [0]},
            text_extra=_MROPE,
            tokens=_QWEN3_TOKENS,
        ),
    ),
    Family(
        "Qwen-3.5, with vision",
        "wrapper around linear attention",
        _wrapped(
            "Qwen3_5Config",
            "Qwen3_5ForConditionalGeneration",
            _QWEN3_VISION,
            text_extra=_GATED_DELTA
            | {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1000000.0,
                    "mrope_section": [2, 1, 1],
                    "partial_rotary_factor": 0.25,
                }
            },
            tokens=_QWEN3_TOKENS,
        ),
        _BFLOAT16,
    ),
    Family(
        "Mistral-3, with vision",
        "wrapper around the text model",
        _wrapped(
            "Mistral3Config",
            "Mistral3ForConditionalGeneration",
            {
                "model_type": "pixtral",
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "head_dim": 16,
                "image_size": 28,
                "patch_size": 14,
            },
            text_extra={"model_type": "mistral"},
            tokens={"image_token_index": 3},
        ),
    ),
    Family(
        "Qwen-2.5-VL",
        "wrapper around the text model",
        _wrapped(
            "Qwen2_5_VLConfig",
            "Qwen2_5_VLForConditionalGeneration",
            _QWEN_VISION,
            text_extra=_MROPE,
            tokens=_QWEN_TOKENS,
        ),
    ),
    Family("Int8, compressed-tensors", "W8A8", _quantised),
    Family("Int8, without capture", "W8A8", _quantised, _NO_CAPTURE),
    Family(
        "fp8",
        "as DeepSeek and Qwen publish",
        _claiming("Qwen3Config", {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    ),
    Family(
        "GPTQ",
        "4 bits",
        _claiming("Qwen2Config", {"quant_method": "gptq", "bits": 4, "group_size": 32}),
    ),
    Family("LoRA adapter", "over a Qwen-2.5", _adapted, adapter=True),
    Family("Base model", "no chat template", _bare),
    Family("Narrow heads", "head_dim 16", make("LlamaConfig", head_dim=16)),
    Family(
        "Qwen-3.5, text",
        "three layers in four of linear attention",
        make("Qwen3_5TextConfig", SWITCHED, **_GATED_DELTA),
        _BFLOAT16,
    ),
    Family(
        "Granite-4",
        "Mamba beside attention",
        make(
            "GraniteMoeHybridConfig",
            layer_types=["mamba", "attention"],
            num_local_experts=0,
            num_experts_per_tok=0,
            shared_intermediate_size=64,
            **_MAMBA2,
            position_embedding_type="rope",
        ),
    ),
    Family(
        "LFM-2",
        "convolutions beside attention",
        make("Lfm2Config", block_auto_adjust_ff_dim=False, **_CONVOLVED),
    ),
    Family(
        "LFM-2-MoE",
        "convolutions beside attention, mixture of experts",
        make("Lfm2MoeConfig", **_CONVOLVED, **_EXPERTS, num_dense_layers=1),
    ),
    Family(
        "Llama-4",
        "attention in chunks, layers without RoPE that scale queries",
        make("Llama4TextConfig", **_LLAMA4),
    ),
    Family(
        "Ministral-3",
        "queries scaled by their position",
        make("Ministral3Config", rope_parameters=_YARN | {"llama_4_scaling_beta": 0.1}),
    ),
    Family(
        "OLMo-3",
        "norms after the blocks, sliding window",
        make("Olmo3Config", num_key_value_heads=2, **_SLIDING),
    ),
    Family("EXAONE-4", "norms after the blocks, sliding window", make("Exaone4Config", **_SLIDING)),
    Family("StarCoder-2", "biases, sliding window", make("Starcoder2Config", sliding_window=64)),
    Family(
        "Falcon-H1",
        "Mamba-2 and attention in each layer",
        make("FalconH1Config", mamba_d_ssm=128, **_MAMBA2),
    ),
    Family("Seed-OSS", "biases in attention", make("SeedOssConfig", SWITCHED)),
    Family("ERNIE-4.5", "pairs of neighbours are rotated", make("Ernie4_5Config", seed=8)),
    Family(
        "ERNIE-4.5-MoE",
        "experts chosen with a bias",
        make(
            "Ernie4_5_MoeConfig",
            moe_num_experts=4,
            moe_k=2,
            moe_intermediate_size=32,
            moe_num_shared_experts=1,
        ),
    ),
    Family("Mamba", "no attention", _mamba),
)
