"""Shapes of models whose weights are not at hand: a config with random ("dummy") weights runs at
the same speed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from traitmill.engine.generation.vllm_engine import VllmEngine
from traitmill.engine.models.hub import ModelRef, find_model
from traitmill.engine.models.machine import free_host_memory
from traitmill.engine.models.shape import Shape

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs

_GEMMA_2: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "vocab_size": 256_000,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
}
_LLAMA_3: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
    "head_dim": 128,
    "num_key_value_heads": 8,
}


def _sizes(layers: int, hidden: int, ffn: int, heads: int) -> dict[str, int]:
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    return dict(zip(names, (layers, hidden, ffn, heads), strict=True))


SHAPES: dict[str, dict[str, Any]] = {
    "gemma-2-2b": {**_GEMMA_2, **_sizes(26, 2304, 9216, 8), "num_key_value_heads": 4},
    "gemma-2-9b": {**_GEMMA_2, **_sizes(42, 3584, 14336, 16), "num_key_value_heads": 8},
    "llama-8b": {**_LLAMA_3, **_sizes(32, 4096, 14336, 32)},
    "llama-70b": {**_LLAMA_3, **_sizes(80, 8192, 28672, 64)},
}
"""config.json of each, from the models' published sizes; weights in bfloat16."""


class ForcedEngine(VllmEngine):
    """Every response runs to its limit: the end tokens of random weights mean nothing."""

    async def _run(self, prompt_token_ids: Any, parameters: Any) -> Any:
        parameters.ignore_eos = True
        return await super()._run(prompt_token_ids, parameters)


class DummyEngine(ForcedEngine):
    """vLLM's own random weights, with no file to load."""

    def _arguments(self) -> AsyncEngineArgs:
        arguments = super()._arguments()
        arguments.load_format = "dummy"
        return arguments


def check_fits(name: str, gpu_bytes: int) -> None:
    """Raise SystemExit where a shape's weights do not fit: `gpu_bytes` of GPU memory, 0 where there
    is no GPU."""
    need = Shape.from_config(SHAPES[name]).weight_bytes(2)
    have = gpu_bytes or free_host_memory()
    if 1.2 * need > have:
        where = "GPU memory" if gpu_bytes else "memory (and no GPU)"
        raise SystemExit(
            f"{name} needs {need >> 30} GiB for its weights; here is {have >> 30} GiB of {where}"
        )


@contextmanager
def dummy_model(name: str, *, weights: bool = False) -> Iterator[ModelRef]:
    """A model folder with a shape's config and the embedded model's tokenizer (its ids are in
    range).

    Without `weights` vLLM alone can make up a model of it; with them random ones are written, which
    capture reads too.
    """
    from traitmill.engine.models.demo import embedded_folder

    with TemporaryDirectory() as temp:
        folder = Path(temp) / name
        folder.mkdir()
        config: Mapping[str, Any] = {
            **SHAPES[name],
            "dtype": "bfloat16",
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        (folder / "config.json").write_text(json.dumps(config))
        if weights:
            _write_weights(folder)
        for path in embedded_folder().iterdir():
            if "token" in path.name or path.suffix == ".jinja":
                (folder / path.name).symlink_to(path)
        yield find_model(str(folder))


def _write_weights(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder), dtype=torch.bfloat16
        )
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
