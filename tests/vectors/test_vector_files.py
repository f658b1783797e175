"""Vectors on disk: as documented, equal again, of the activations that are there."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support import planted
from tests.vectors.helpers import rows_of
from traitmill.engine.errors import UsageError
from traitmill.engine.outputs import load_activations
from traitmill.engine.storage import TraitFolder
from traitmill.engine.vectors import fit_vectors, load_vector, write_vectors


@pytest.fixture
def folder(tmp_path):
    return planted.write_trait(tmp_path / "exp" / "poem", signal=2.0)


@pytest.mark.parametrize(("before", "now"), [("pt", "safetensors"), ("safetensors", "pt")])
def test_a_vector_stands_in_one_file(folder, before, now):
    """Of the same activations: another version of the program may have fitted another vector."""
    activations = load_activations(folder)
    vectors = fit_vectors(activations)
    old = replace(vectors, values=np.zeros_like(vectors.values))
    write_vectors(TraitFolder(folder), old, format=before)
    write_vectors(TraitFolder(folder), vectors, format=now)
    for method in vectors.methods:
        for layer in vectors.layers:
            found, _ = load_vector(folder, method, layer)
            assert np.array_equal(found, vectors.vector(method, layer))
    ends = {path.suffix for path in (folder / "vectors").iterdir()}
    assert ends == ({".safetensors"} if now == "safetensors" else {".pt", ".json"})


def test_files_are_as_documented_and_equal_on_a_second_run(folder):
    activations = load_activations(folder)
    first = write_vectors(TraitFolder(folder), fit_vectors(activations))
    assert len(first) == 4 * 4 * 2
    held = {path: path.read_bytes() for path in first}
    write_vectors(TraitFolder(folder), fit_vectors(load_activations(folder)))
    assert held == {path: path.read_bytes() for path in first}
    tensor = torch.load(folder / "vectors" / "probe_layer2.pt", weights_only=True)
    assert tensor.shape == (48,)
    assert tensor.dtype == torch.float32
    metadata = json.loads((folder / "vectors" / "probe_layer2_metadata.json").read_bytes())
    expected = {
        "trait": "poem",
        "method": "probe",
        "layer": 2,
        "model": planted.MODEL,
        "date": "2026-01-02T03:04:05Z",
    }
    assert expected.items() <= metadata.items()
    assert {
        "norm",
        "accuracy",
        "separation",
        "settings",
        "bias",
        "objective",
        "units",
        "source",
    } <= metadata.keys()
    assert metadata["norm"] == pytest.approx(float(tensor.norm()), rel=1e-5)


def test_accuracy_and_separation_are_those_of_the_stored_vector(folder):
    activations = load_activations(folder)
    write_vectors(TraitFolder(folder), fit_vectors(activations))
    for method in ("mean_diff", "probe", "ica", "gradient"):
        vector, metadata = load_vector(folder, method, 1)
        x, y = rows_of(activations, 1)
        calls = x @ vector + metadata["bias"] > 0
        assert metadata["accuracy"] == pytest.approx((calls[y].mean() + (~calls[~y]).mean()) / 2)
        along = x @ vector / np.linalg.norm(vector)
        assert metadata["separation"] == pytest.approx(along[y].mean() - along[~y].mean(), rel=1e-4)


def test_safetensors_hold_what_pt_files_hold(folder):
    vectors = fit_vectors(load_activations(folder), ["probe"], [1, 3])
    (path,) = write_vectors(TraitFolder(folder), vectors, "safetensors")
    assert path == folder / "vectors" / "probe.safetensors"
    packed = [load_vector(folder, "probe", layer) for layer in (1, 3)]
    write_vectors(TraitFolder(folder), vectors)
    for (values, metadata), layer in zip(packed, (1, 3), strict=True):
        stored, described = load_vector(folder, "probe", layer)
        np.testing.assert_array_equal(values, stored)
        assert metadata == described


def test_vectors_of_other_activations_do_not_stay(folder):
    write_vectors(TraitFolder(folder), fit_vectors(load_activations(folder)))
    for name, content in (
        ("mine_layer2_metadata.json", b'{"norm": 1}'),
        ("odd_layer2_metadata.json", b"[1]"),
    ):
        (folder / "vectors" / name).write_bytes(content)  # somebody's own
    # Nothing tells whose it is, or what it was fitted to; readers pass it over.
    (folder / "vectors" / "mean_diff_layer3_metadata.json").unlink()
    planted.write_trait(folder, signal=2.0, seed=9)
    write_vectors(TraitFolder(folder), fit_vectors(load_activations(folder), ["probe"], [2]))
    left = sorted(path.name for path in (folder / "vectors").iterdir())
    own = ["mean_diff_layer3.pt", "mine_layer2_metadata.json", "odd_layer2_metadata.json"]
    assert left == [*own, "probe_layer2.pt", "probe_layer2_metadata.json"]


def test_packed_vectors_of_other_activations_do_not_stay(tmp_path):
    pools = ("response_mean", "prompt_last")
    folder = TraitFolder(planted.write_trait(tmp_path / "exp" / "poem", pools=pools))
    activations = load_activations(folder)
    write_vectors(folder, fit_vectors(activations, ["probe", "pca"]), "safetensors")
    other_pool = load_activations(folder, "prompt_last")
    write_vectors(folder, fit_vectors(other_pool, ["mean_diff"]), "safetensors")
    (folder.vectors / "mine.safetensors").write_bytes(b"somebody's own")
    planted.write_trait(folder.path, signal=2.0, seed=9, pools=pools)
    write_vectors(folder, fit_vectors(load_activations(folder), ["probe"], [1]), "safetensors")
    left = {path.name for path in folder.vectors.iterdir()}
    assert left == {"probe.safetensors", "mean_diff.prompt_last.safetensors", "mine.safetensors"}
    with pytest.raises(
        UsageError, match=r"probe_layer2\.pt is missing: there are vectors of probe at layers 1;"
    ) as caught:
        load_vector(folder, "probe", 2)
    assert caught.value.step is None  # the last fit's methods and layers would be fitted again
    with pytest.raises(UsageError, match=r"`methods` 'prob' is unknown; did you mean probe\?"):
        load_vector(folder, "prob", 1)


def test_packed_vectors_of_other_methods_stay(folder):
    folder, activations = TraitFolder(folder), load_activations(folder)
    one = fit_vectors(activations, ["probe", "pca"])
    write_vectors(folder, one, "safetensors")
    write_vectors(folder, fit_vectors(activations, ["mean_diff", "pca"], [1]), "safetensors")
    for layer in range(4):
        values, metadata = load_vector(folder, "probe", layer)
        np.testing.assert_array_equal(values, one.vector("probe", layer))
        assert metadata["layer"] == layer
    assert load_vector(folder, "mean_diff", 1)[1]["method"] == "mean_diff"
    with pytest.raises(UsageError, match=r"pca_layer2\.pt is missing"):
        load_vector(folder, "pca", 2)  # the file is that of the last fit


@pytest.mark.parametrize("content", [None, b"{", b"[1]"])
def test_a_vector_without_its_metadata_is_one_clear_line(folder, content):
    write_vectors(TraitFolder(folder), fit_vectors(load_activations(folder), ["probe"], [1]))
    beside = folder / "vectors" / "probe_layer1_metadata.json"
    beside.unlink() if content is None else beside.write_bytes(content)
    with pytest.raises(
        UsageError,
        match=r"probe_layer1_metadata\.json is missing or damaged; make it anew: traitmill.fit_e",
    ):
        load_vector(folder, "probe", 1)


def test_pools_have_files_of_their_own(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "poem", pools=("response_mean", "prompt_last"))
    write_vectors(TraitFolder(folder), fit_vectors(load_activations(folder), ["mean_diff"], [0]))
    write_vectors(
        TraitFolder(folder),
        fit_vectors(load_activations(folder, "prompt_last"), ["mean_diff"], [0]),
    )
    names = {path.name for path in (folder / "vectors").glob("*.pt")}
    assert names == {"mean_diff_layer0.pt", "mean_diff_layer0.prompt_last.pt"}
    assert load_vector(folder, "mean_diff", 0, "prompt_last")[1]["pool"] == "prompt_last"
