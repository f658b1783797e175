"""Weight files that are read are whole. A damaged one is met in tests/faults/test_cli.py too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    Llama4Config,
    Llama4ForConditionalGeneration,
    MixtralConfig,
    OPTConfig,
)

from tests.support import oracle
from traitmill.engine.errors import AccessError
from traitmill.engine.models import ModelRef, check_weights

INDEX = "model.safetensors.index.json"


def save(path: Path) -> None:
    save_file({path.stem: np.zeros(100, np.float32)}, path)


def check(folder: Path) -> None:
    """Look at the files alone: a quantised model's tensors are not compared with its config."""
    check_weights(
        ModelRef("mine", str(folder), "r", {"quantization_config": {"quant_method": "any"}})
    )


def test_t21_weights_that_only_one_engine_would_read_are_refused(tmp_path: Path) -> None:
    """transformers takes model.safetensors, vLLM what an index lists, else all there are."""
    save(tmp_path / "model.safetensors")
    save(tmp_path / "consolidated.safetensors")
    with pytest.raises(AccessError, match="beside it, consolidated.safetensors: .*move away"):
        check(tmp_path)
    for name in ("gone.safetensors", "model-00001-of-00002.safetensors"):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(AccessError, match=f"model.safetensors and, by .*{name}: .*move away"):
            check(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    save(tmp_path / "old.safetensors")
    check(tmp_path)  # the index keeps vLLM from the copy and from the old file
    (tmp_path / "consolidated.safetensors").unlink()
    (tmp_path / INDEX).unlink()
    with pytest.raises(AccessError, match="beside it, old.safetensors: .*move away"):
        check(tmp_path)
    (tmp_path / "old.safetensors").unlink()
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(AccessError, match=r"model\.safetensors is cut off or damaged"):
        check(tmp_path)


def test_files_without_an_index_are_all_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / f"{name}.safetensors")
    check(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"")
    with pytest.raises(AccessError, match=r"b\.safetensors is cut off or damaged"):
        check(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_f23_a_damaged_index_is_named(tmp_path: Path, index: str) -> None:
    save(tmp_path / "a.safetensors")
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(AccessError, match=r"index\.json is damaged; copy it again"):
        check(tmp_path)


def test_other_formats_and_models_of_the_hub_are_left_to_their_loaders(tmp_path: Path) -> None:
    check_weights(ModelRef("someone/model", "someone/model", "r", {"model_type": "llama"}))
    with pytest.raises(AccessError, match="holds no weights"):
        check(tmp_path)
    (tmp_path / "pytorch_model-00001-of-00002.bin").touch()
    check(tmp_path)


# --- weights against the config ---

OTHERS = {
    "gpt2": lambda: GPT2Config(n_embd=32, n_head=4, n_layer=3, vocab_size=97),
    "opt": lambda: OPTConfig(
        hidden_size=32, ffn_dim=48, num_attention_heads=4, num_hidden_layers=3, vocab_size=97
    ),
    "bloom": lambda: BloomConfig(hidden_size=32, n_head=4, n_layer=3, vocab_size=97),
    "mixtral": lambda: MixtralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=3,
        num_local_experts=4,
        vocab_size=97,
    ),
}


def tiny(family: str, folder: Path) -> tuple[ModelRef, dict[str, np.ndarray]]:
    """Save a tiny model of a family; return it and its tensors as they are stored."""
    if family in OTHERS:
        AutoModelForCausalLM.from_config(OTHERS[family]()).save_pretrained(folder)
    else:
        oracle.build(family, folder)
    config = json.loads((folder / "config.json").read_text())
    return ModelRef("mine", str(folder), "r", config), load_file(folder / "model.safetensors")


def store(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", sorted([*oracle.FAMILIES, *OTHERS]))
def test_t21_a_tensor_that_is_not_there_is_named(family: str, tmp_path: Path) -> None:
    ref, tensors = tiny(family, tmp_path)
    check_weights(ref)
    last = max(name for name in tensors if ".2." in name)
    store(tmp_path, {name: value for name, value in tensors.items() if name != last})
    tail = last.removeprefix("model.").removeprefix("transformer.")
    with pytest.raises(AccessError, match=rf"weights of model mine lack .*{tail}"):
        check_weights(ref)


@pytest.mark.parametrize("nothing", [None, {}])
def test_t21_a_config_that_names_no_quantisation_is_compared(
    nothing: object, tmp_path: Path
) -> None:
    ref, tensors = tiny("llama", tmp_path)
    tensors.pop("model.norm.weight")
    store(tmp_path, tensors)
    ref.config["quantization_config"] = nothing
    with pytest.raises(AccessError, match=r"lack model\.norm\.weight"):
        check_weights(ref)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_t21_a_part_of_an_expert_that_is_not_there_is_named(family: str, tmp_path: Path) -> None:
    ref, tensors = tiny(family, tmp_path)
    last = max(name for name in tensors if "experts.3." in name)
    store(tmp_path, {name: value for name, value in tensors.items() if name != last})
    with pytest.raises(AccessError, match=r"layers\.2\..*experts"):
        check_weights(ref)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_moe", "mixtral"])
def test_t22_a_tensor_of_another_shape_is_named(family: str, tmp_path: Path) -> None:
    ref, tensors = tiny(family, tmp_path)
    name = next(name for name in sorted(tensors) if name.endswith("norm.weight") or "ln_f" in name)
    store(tmp_path, {**tensors, name: np.zeros(7, np.float32)})
    with pytest.raises(AccessError, match=r"against config.json, .*of shape 7 for 32"):
        check_weights(ref)


@pytest.mark.parametrize(("n_layers", "fault"), [(4, "lack .*layers.3"), (2, "hold, .*layers.2")])
def test_t46_another_number_of_layers_is_refused(n_layers: int, fault: str, tmp_path: Path) -> None:
    ref, _ = tiny("llama", tmp_path)
    config = {**ref.config, "num_hidden_layers": n_layers}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(AccessError, match=f"the weights of model mine {fault}"):
        check_weights(ModelRef("mine", str(tmp_path), "r", config))


def test_tensors_that_older_versions_saved_are_no_fault(tmp_path: Path) -> None:
    ref, tensors = tiny("llama", tmp_path)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    store(tmp_path, tensors | extra)
    check_weights(ref)


def test_what_sees_pictures_is_no_fault_of_a_model_that_reads_text_alone(tmp_path: Path) -> None:
    """Llama-4 as it is published: transformers' causal model is of its text part."""
    text = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "intermediate_size_mlp": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_hidden_layers": 2,
        "num_local_experts": 2,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
    }
    made = Llama4Config(text_config=text, vision_config=vision)
    Llama4ForConditionalGeneration(made).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    ref = ModelRef("mine", str(tmp_path), "r", config)
    check_weights(ref)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = "language_model.model.layers.1.input_layernorm.weight"
    store(tmp_path, tensors | {"language_model.model.layers.2.extra.weight": tensors[kept]})
    with pytest.raises(AccessError, match=r"for no part of this model, .*layers\.2\.extra"):
        check_weights(ref)
    store(tmp_path, {name: value for name, value in tensors.items() if name != kept})
    with pytest.raises(AccessError, match=r"lack .*layers\.1\.input_layernorm"):
        check_weights(ref)


def test_t46_an_adapter_beside_its_base_is_refused(tmp_path: Path) -> None:
    ref, _ = tiny("llama", tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(AccessError, match="LoRA adapter .*name that with `adapter`"):
        check_weights(ref)


def test_nothing_of_it_is_on_the_screen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ref, tensors = tiny("llama", tmp_path)
    tensors.popitem()
    store(tmp_path, tensors)
    capfd.readouterr()
    with pytest.raises(AccessError):
        check_weights(ref)
    assert capfd.readouterr() == ("", "")


def test_t23_matrices_of_whole_numbers_without_their_quantisation_are_named(
    tmp_path: Path,
) -> None:
    ref, weights = tiny("llama", tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    store(tmp_path, weights | {name: weights[name].astype(np.int8)})
    with pytest.raises(AccessError, match=f"hold whole numbers in {name}; copy"):
        check_weights(ref)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quantization_config": [1]}, "cannot be loaded: "),
        ({"dtype": "float8_e4m3fn"}, "cannot be loaded: "),
        ({"hidden_act": "swoosh"}, "config.json names 'swoosh', which transformers does not know"),
    ],
)
def test_a_config_that_transformers_stumbles_over_is_one_line(
    tmp_path: Path, config: dict[str, object], words: str
) -> None:
    ref, _ = tiny("llama", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(dict(ref.config) | config))
    with pytest.raises(AccessError, match=words) as said:
        check_weights(ref)
    assert "\n" not in str(said.value)


class _Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("code ran",))


def test_t42_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ref, _ = tiny("llama", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"a": _Runs()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(AccessError, match="holds more than tensors, .* take a copy in safetensors"):
        check_weights(ref)
    assert "code ran" not in capsys.readouterr().out
