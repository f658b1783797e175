"""Which model is meant, and what is said where it cannot be had. The hub's own refusals are met in
tests/faults/test_cli.py, by the commands."""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx2
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import HfHubHTTPError
from safetensors.numpy import save_file

from traitmill.engine.errors import AccessError, ExitCode
from traitmill.engine.models import EMBEDDED, ModelRef, find_model, infer_model
from traitmill.engine.models.fingerprint import fingerprint

CONFIG = {"model_type": "llama", "max_position_embeddings": 2048}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "mine"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(CONFIG))
    return made


@pytest.mark.parametrize(
    ("experiment", "model"),
    [
        ("gemma_2b_cognitive", "google/gemma-2-2b-it"),
        ("big_gemma_9b", "google/gemma-2-9b-it"),
        ("llama_8b", "meta-llama/Llama-3.1-8B-Instruct"),
        ("demo", EMBEDDED),
        ("demo_2", EMBEDDED),
        ("demonstration", None),
        ("my_demo", None),
        ("", None),
    ],
)
def test_an_experiments_name_implies_a_model(experiment: str, model: str | None) -> None:
    assert infer_model(experiment) == model


def test_a_folder_is_named_by_itself_and_known_by_its_files(folder: Path) -> None:
    found = find_model(f"{folder}/../mine")
    assert (found.name, found.source, found.config) == ("mine", str(folder), CONFIG)
    assert found.revision == fingerprint(folder)
    assert found.is_local
    assert found.hub_revision is None
    assert found.context_length == 2048


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"text_config": {"max_position_embeddings": 9}, "max_position_embeddings": 5}, 9),
        ({"max_position_embeddings": None}, 0),
        ({"text_config": None}, 0),
    ],
)
def test_a_context_is_the_text_models(folder: Path, config: dict, length: int) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    assert find_model(str(folder)).context_length == length


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no config.json; give a folder in Hugging Face format"),
        (b"{", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[]", "is not a JSON object"),
    ],
)
def test_f23_a_folder_without_a_config_is_named(
    folder: Path, content: bytes | None, words: str
) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    with pytest.raises(AccessError, match=words) as caught:
        find_model(str(folder))
    assert str(folder) in str(caught.value)
    assert caught.value.exit_code == ExitCode.ACCESS


@pytest.mark.parametrize(
    "name", ["./none", "/none", "~none/x", "a/b/c", "a b", "../x", "a--b", "a" * 300, "a\0b"]
)
def test_f23_what_is_neither_folder_nor_hub_name_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(
        AccessError, match="neither a folder here nor a hub name; check `gen_model`"
    ):
        find_model(name)


def _answers(status: int) -> Exception:
    request = httpx2.Request("GET", "https://hub.example")
    response = httpx2.Response(status, request=request)
    return HfHubHTTPError(f"{status}", response=response)


@pytest.mark.parametrize(
    "error", [httpx2.ConnectError("no route"), _answers(429), _answers(500), _answers(503)]
)
def test_t43_a_hub_that_does_not_answer_is_found_out_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def away(_: object, name: str) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "auth_check", away)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--someone--cached"
    (cached / "snapshots" / commit).mkdir(parents=True)
    (cached / "snapshots" / commit / "config.json").write_text(json.dumps(CONFIG))
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    found = find_model("someone/cached")
    assert (found.revision, found.config) == (commit, CONFIG)
    # Every library here, and every process started from here, is told.
    assert huggingface_hub.is_offline_mode()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(AccessError, match="the hub does not answer: go online once") as caught:
        find_model("someone/away")
    assert f"`gen_model` {EMBEDDED}" in str(caught.value)


def test_a_fingerprint_tells_an_edit_of_any_one_tensor(folder: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"self_attn.o_proj": (128, 128), "mlp.down_proj": (128, 512)}
    tensors = {
        f"model.layers.{layer}.{name}": rng.standard_normal(shape).astype(np.float32)
        for layer in range(24)
        for name, shape in shapes.items()
    }
    path = folder / "model.safetensors"
    save_file(tensors, path)
    seen = {fingerprint(folder)}
    for name, tensor in tensors.items():
        save_file({**tensors, name: 1.01 * tensor}, path)
        seen.add(fingerprint(folder))
    assert len(seen) == 1 + len(tensors)


def test_a_fingerprint_tells_fine_tunes_apart(folder: Path) -> None:
    seen = {fingerprint(folder)}
    large = folder / "model.safetensors"
    large.write_bytes(bytes(3 << 20))
    seen.add(fingerprint(folder))
    with large.open("r+b") as file:  # the same size, other last bytes
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    seen.add(fingerprint(folder))
    (folder / "config.json").write_text(json.dumps(CONFIG | {"a": 1}))
    seen.add(fingerprint(folder))
    (folder / "config.json").rename(folder / "other.json")
    last = fingerprint(folder)
    assert len({*seen, last}) == 5
    (folder / "subfolder").mkdir()
    (folder / "traitmill-complete").touch()
    assert fingerprint(folder) == last


@pytest.mark.parametrize(
    ("config", "tokens"),
    [({"n_positions": 1024}, 1024), ({"max_seq_len": 2048}, 2048), ({}, 0), (CONFIG, 2048)],
)
def test_a_context_is_found_under_each_familys_name(config: dict, tokens: int) -> None:
    assert ModelRef("m", "m", "r", config).context_length == tokens


def test_a_nested_config_has_the_sizes_that_its_kind_has_by_default() -> None:
    """Gemma-3's published config.json names neither its context nor its vocabulary."""
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34}
    ref = ModelRef("m", "m", "r", {"model_type": "gemma3", "text_config": text})
    assert (ref.context_length, ref.vocabulary) == (131_072, 262_208)
    other = ModelRef("m", "m", "r", {"model_type": "new", "text_config": {"model_type": "none"}})
    assert other.context_length == 0
