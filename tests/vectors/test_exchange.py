"""Vectors in the formats of other programs, each read back by what the format is for."""

from __future__ import annotations

import hashlib
import json

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open

import traitmill
from tests.conftest import Traitmill
from tests.support import planted
from tests.vectors.helpers import evaluated
from traitmill.engine.errors import UsageError
from traitmill.engine.vectors import load_vectors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("experiments")
    folder = planted.write_trait(root / "exp" / "poem", n_layers=3, signal=(0.0, 4.0, 1.0))
    evaluated(folder, ("mean_diff", "probe"))
    return folder


def text(field: gguf.ReaderField) -> str:
    return bytes(field.parts[field.data[0]]).decode()


def llama_cpp_reads(path) -> dict[int, np.ndarray]:
    """By block after which llama.cpp adds it, as its loader (common_control_vector_load_one) and
    its graph (llama_adapter_cvec) go about it."""
    reader, found = gguf.GGUFReader(path), {}
    for tensor in reader.tensors:
        name, _, number = tensor.name.partition(".")
        block = int(number)
        assert name == "direction"
        assert block != 0, "invalid (zero) direction tensor layer index"
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32, "invalid (non-F32)"
        assert len(tensor.shape) == 1, "invalid (non-1D)"
        found[block] = np.array(tensor.data)
    assert len({len(values) for values in found.values()}) == 1
    return found


def test_gguf_is_read_by_the_rules_of_llama_cpp(folder, tmp_path):
    written = traitmill.export_vectors(folder, tmp_path / "poem.gguf", "gguf", method="probe")
    assert (written.layers, written.left_out) == ((1, 2), (0,))
    vectors = traitmill.load_vectors(folder)
    read = llama_cpp_reads(written.path)
    assert sorted(read) == [1, 2]
    for block, values in read.items():
        np.testing.assert_array_equal(values, vectors.vector("probe", block))
    fields = gguf.GGUFReader(written.path).fields
    assert text(fields["general.architecture"]) == "controlvector"
    assert text(fields["controlvector.model_hint"]) == planted.MODEL
    assert fields["controlvector.layer_count"].contents() == 2
    assert json.loads(text(fields["traitmill.card"]))["method"] == "probe"


def test_persona_vectors_index_their_stack_by_hidden_state(folder, tmp_path):
    written = traitmill.export_vectors(folder, tmp_path / "poem.pt", "persona", method="mean_diff")
    stack = torch.load(written.path, weights_only=True)
    assert stack.shape == (4, 48)
    assert stack.dtype == torch.float32
    vectors = traitmill.load_vectors(folder)
    for layer in range(3):
        np.testing.assert_array_equal(stack[layer + 1], vectors.vector("mean_diff", layer))
    assert not stack[0].any()


def test_embeddings_are_row_0_of_a_stack_and_nowhere_in_a_control_vector(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "poem", n_layers=3)
    metadata = planted.read_metadata(folder)
    planted.write_metadata(folder, {**metadata, "layers": [-1, 0, 1]})
    traitmill.fit_experiment(tmp_path / "exp", methods=["mean_diff"])
    vectors = traitmill.load_vectors(folder)
    traitmill.export_vectors(folder, tmp_path / "v.pt", "persona", method="mean_diff")
    stack = torch.load(tmp_path / "v.pt", weights_only=True)
    assert stack.shape == (3, 48)
    for layer in (-1, 0, 1):
        np.testing.assert_array_equal(stack[layer + 1], vectors.vector("mean_diff", layer))
    written = traitmill.export_vectors(folder, tmp_path / "v.gguf", "gguf", method="mean_diff")
    assert (written.layers, written.left_out) == ((1,), (-1, 0))


def test_a_stack_of_some_layers_has_a_row_for_each_of_the_model(tmp_path):
    """persona_vectors finds the last layer by the stack's length."""
    folder = planted.write_trait(tmp_path / "exp" / "poem", n_layers=4)
    traitmill.fit_experiment(tmp_path / "exp", methods=["mean_diff"], layers=[1, 2])
    traitmill.export_vectors(folder, tmp_path / "v.pt", "persona", method="mean_diff")
    stack = torch.load(tmp_path / "v.pt", weights_only=True)
    assert stack.shape == (5, 48)
    assert [bool(row.any()) for row in stack] == [False, False, True, True, False]


def test_the_card_names_the_adapter_over_the_model(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "poem")
    metadata = planted.read_metadata(folder)
    sampling = metadata["sampling"] | {"adapter": "lora", "adapter_revision": "abc"}
    planted.write_metadata(folder, {**metadata, "sampling": sampling})
    traitmill.fit_experiment(tmp_path / "exp", methods=["mean_diff"])
    to = tmp_path / "v.safetensors"
    written = traitmill.export_vectors(folder, to, "safetensors", method="mean_diff")
    with safe_open(written.path, "pt") as file:
        assert file.metadata()["adapter"] == "lora"
    card = written.card.read_text()
    assert f"mean_diff vectors of {planted.MODEL} + lora" in card
    assert "| adapter_revision | abc |" in card


def test_safetensors_carry_their_card(folder, tmp_path):
    written = traitmill.export_vectors(folder, tmp_path / "v.safetensors", "safetensors")
    vectors = traitmill.load_vectors(folder)
    method, best_layer = vectors.recommended
    assert written.method == method
    with safe_open(written.path, "pt") as file:
        header = file.metadata()
        for layer in (0, 1, 2):
            stored = vectors.vector(method, layer)
            np.testing.assert_array_equal(file.get_tensor(f"layer{layer}").numpy(), stored)
    definition = hashlib.sha256((folder / "trait_definition.json").read_bytes()).hexdigest()
    expected = {
        "model": planted.MODEL,
        "revision": "0123abc",
        "method": method,
        "definition_sha256": definition,
    }
    assert expected.items() <= header.items()
    assert "0-based" in header["layer_convention"]
    card = json.loads(header["card"])
    assert expected.items() <= card.items()
    assert card["recommended_layer"] == best_layer
    assert card["by_layer"]["1"]["spread"] == vectors.metadata(method, 1)["spread"]
    page = written.card.read_text()
    for words in (planted.MODEL, "0123abc", definition, "v.safetensors", "held-out AUROC"):
        assert words in page


def test_vectors_that_nothing_is_claimed_of_are_handed_on_with_a_word(
    tmp_path, traitmill: Traitmill
):
    folder = planted.write_trait(tmp_path / "exp" / "noise", n_layers=2, signal=0.0)
    evaluated(folder, ("mean_diff",))
    vectors = load_vectors(folder)
    assert vectors.doubt == "not shown to beat chance"
    assert repr(vectors).endswith(", response_mean, not shown to beat chance)")
    to = str(tmp_path / "noise.gguf")
    which = ["--experiment", "exp", "--experiments_dir", str(tmp_path), "--trait", "noise"]
    code, said = traitmill("export-vectors", *which, "--format", "gguf", "--to", to)
    assert code == 0, said
    assert "note: no claim is made of these vectors (not shown to beat chance)" in said
    assert "| claim | none: not shown to beat chance |" in (tmp_path / "noise.gguf.md").read_text()


def test_a_path_that_is_no_traits_folder_is_not_advised_to_be_fitted(tmp_path):
    with pytest.raises(UsageError, match="nowhere is no trait's folder; check the path"):
        load_vectors(tmp_path / "nowhere")


def test_what_is_not_there_is_refused_and_nothing_is_written(folder, tmp_path):
    with pytest.raises(UsageError, match="poem has no pca vectors: it has mean_diff, probe"):
        traitmill.export_vectors(folder, tmp_path / "v.gguf", "gguf", method="pca")
    with pytest.raises(UsageError, match="`format` 'onnx' is unknown; choose from gguf"):
        traitmill.export_vectors(folder, tmp_path / "v.onnx", "onnx")
    lone = planted.write_trait(tmp_path / "exp" / "lone", n_layers=1)
    evaluated(lone, ("mean_diff",))
    with pytest.raises(UsageError, match="llama.cpp adds nothing after block 0"):
        traitmill.export_vectors(lone, tmp_path / "v.gguf", "gguf", method="mean_diff")
    assert not list(tmp_path.glob("v.*"))


def test_no_file_but_an_export_is_written_over(folder, tmp_path):
    definition = tmp_path / "trait_definition.json"
    definition.write_text("{}")
    readme = tmp_path / "README.md"
    readme.write_text("# mine")
    for to, said in ((definition, definition), (tmp_path / "README", readme)):
        with pytest.raises(UsageError, match=f"{said} is there already and no export of vectors"):
            traitmill.export_vectors(folder, to, "safetensors", method="mean_diff")
    with pytest.raises(UsageError, match="is a folder; name the file"):
        traitmill.export_vectors(folder, tmp_path, "safetensors", method="mean_diff")
    assert (definition.read_text(), readme.read_text()) == ("{}", "# mine")
    for _ in range(2):
        traitmill.export_vectors(folder, tmp_path / "v", "safetensors", method="mean_diff")
    (tmp_path / "v").unlink()  # as where it was killed behind the card
    traitmill.export_vectors(folder, tmp_path / "v", "safetensors", method="mean_diff")


@pytest.mark.slow
def test_the_command_writes_the_file_and_says_where(folder, tmp_path, traitmill: Traitmill):
    on = ["--experiment", "exp", "--experiments_dir", str(folder.parent.parent)]
    to = tmp_path / "poem.gguf"
    code, said = traitmill(
        "export-vectors", *on, "--trait", "poem", "--format", "gguf", "--to", str(to)
    )
    assert code == 0, said
    assert f"{to}: " in said
    assert "without layer 0: llama.cpp adds nothing there" in said
    assert sorted(llama_cpp_reads(to)) == [1, 2]
    code, said = traitmill(
        "export-vectors", *on, "--traits", "all", "--format", "gguf", "--to", str(to)
    )
    assert (code, "give one with --trait" in said) == (2, True)
