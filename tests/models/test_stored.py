"""What a model's weights are, counted in its files or in the hub's list of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from traitmill.engine.errors import ResourceError
from traitmill.engine.models import Gpu, ModelRef, Stored, choose_placement, count_weights
from traitmill.engine.models.stored import sized
from traitmill.engine.settings import RunSettings

GIB = 1 << 30
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "dtype": "bfloat16",
}
LLAMA_70B = CONFIG | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4}}


def local(folder: Path, **config: Any) -> ModelRef:
    return ModelRef("m", str(folder), "r", CONFIG | config)


def place(config: dict[str, Any], stored: Stored | None, gib: int) -> Any:
    return choose_placement(
        config,
        RunSettings(),
        gpu=True,
        engine=True,
        capture=False,
        sequences=64,
        tokens_per_sequence=300,
        cards=[Gpu(0, gib * GIB, gib * GIB - GIB // 2, "card", "u", (9, 0))],
        stored=stored,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_headers_tell_the_values_whatever_their_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a.weight": torch.zeros(30, 10, dtype=dtype)}, tmp_path / "m-1.safetensors")
    more = {"b.weight": torch.zeros(7, dtype=dtype), "mtp.0.weight": torch.zeros(50, dtype=dtype)}
    save_file(more, tmp_path / "m-2.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 9999)
    stored = count_weights(local(tmp_path))
    assert stored is not None
    assert stored.values == 307
    assert sized(CONFIG, stored).weight_bytes(2) == 614
    assert sized(CONFIG, stored).weight_bytes(4) == 1228


def test_other_files_hold_values_of_the_configs_dtype(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 1000)
    assert count_weights(local(tmp_path)) == Stored(1000, 500)
    assert count_weights(local(tmp_path, dtype="float32")) == Stored(1000, 250)


def test_the_index_tells_which_files_are_the_models(tmp_path: Path) -> None:
    """Shards of an older split, or an optimiser's state, are none of its weights."""
    for name, size in (("model-1-of-2", 6), ("model-2-of-2", 4), ("model-1-of-3", 5)):
        save_file({f"{name}.weight": torch.zeros(size, 10)}, tmp_path / f"{name}.safetensors")
    mapped = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": mapped}))
    found = count_weights(local(tmp_path))
    assert found is not None
    assert found.values == 100
    index.write_text("[")
    found = count_weights(local(tmp_path))
    assert found is not None
    assert found.values == 150
    other = tmp_path / "other"
    other.mkdir()
    (other / "pytorch_model.bin").write_bytes(b"x" * 1000)
    (other / "optimizer.bin").write_bytes(b"x" * 2000)
    assert count_weights(local(other)) == Stored(1000, 500)


@pytest.mark.parametrize(
    "error", [ValueError("no JSON"), httpx2.TooManyRedirects("on and on"), httpx2.ReadTimeout("")]
)
def test_a_hub_that_lists_nothing_leaves_the_estimate(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    asked = {}

    def model_info(*_: Any, **how: Any) -> None:
        asked.update(how)
        raise error

    api = SimpleNamespace(model_info=model_info)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    assert count_weights(ModelRef("o/m", "o/m", "a" * 40, CONFIG)) is None
    assert asked["timeout"] <= 10


def test_a_folder_without_weights_leaves_the_estimate(tmp_path: Path) -> None:
    assert count_weights(local(tmp_path)) is None
    assert sized(CONFIG, None).values == 0


def test_the_hubs_list_tells_of_what_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"a.safetensors": 600, "b.safetensors": 400, "model.bin": 1000, "x/c.safetensors": 7}
    info = SimpleNamespace(
        siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
    )
    api = SimpleNamespace(model_info=lambda *_, **__: info)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    assert count_weights(ModelRef("o/m", "o/m", "a" * 40, CONFIG)) == Stored(1000, 500)


def test_a_quantised_model_takes_what_its_files_do() -> None:
    shape = sized(LLAMA_70B | AWQ, Stored(37 * GIB, 0))
    assert shape.weight_bytes(2) == shape.weight_bytes(4) == 37 * GIB
    assert place(LLAMA_70B | AWQ, Stored(37 * GIB, 0), 80).shape == shape
    with pytest.raises(ResourceError, match=r"37\.0 GiB of weights"):
        place(LLAMA_70B | AWQ, Stored(37 * GIB, 0), 24)


def test_a_model_is_placed_by_its_weights_and_not_by_an_estimate_of_them() -> None:
    """Zamba-2 shares the weights of its attention: a third of what its sizes make it look."""
    with pytest.raises(ResourceError):
        place(LLAMA_70B, None, 80)
    found = place(LLAMA_70B, Stored(40 * GIB, 20 * GIB), 80)
    assert found.shape.weight_bytes(2) == 40 * GIB
