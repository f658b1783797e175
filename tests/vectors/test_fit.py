"""Vectors in memory: which layers, and what is asked of them."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.support import planted
from tests.vectors.helpers import cosine
from traitmill.engine.errors import UsageError
from traitmill.engine.outputs import load_activations
from traitmill.engine.vectors import fit_vectors, rows


@pytest.fixture
def activations(tmp_path):
    return load_activations(planted.write_trait(tmp_path / "exp" / "poem", signal=2.0))


def test_layers_out_of_range_are_named_with_those_there_are(activations):
    held = "the activations of poem hold layers 0 to 3"
    with pytest.raises(UsageError, match=f"4, 9 were not captured: {held}"):
        fit_vectors(activations, layers=[1, 9, 4])
    with pytest.raises(UsageError, match=f"`layers` 4 was not captured: {held}"):
        fit_vectors(activations, layers=[4])
    with pytest.raises(UsageError, match="4, 5, 6, 7, 8 and 493 more were not captured"):
        fit_vectors(activations, layers=range(502))
    with pytest.raises(UsageError, match=f"`layers` names none: {held}"):
        fit_vectors(activations, layers=[])


def test_vectors_are_found_by_method_and_layer(activations):
    vectors = fit_vectors(activations, ["pca", "mean_diff"], [2, 0, 2])
    assert vectors.layers == (0, 2)
    assert vectors.values.shape == (2, 2, 48)
    np.testing.assert_array_equal(vectors.vector("mean_diff", 2), vectors.values[1, 1])
    assert vectors.metadata["mean_diff", 2]["layer"] == 2
    for method, layer in (("probe", 0), ("pca", 1)):
        with pytest.raises(UsageError, match="it has pca, mean_diff at layers 0, 2"):
            vectors.vector(method, layer)
    assert "array" not in repr(vectors)


def test_the_adapter_of_the_model_is_told(tmp_path):
    activations = load_activations(planted.write_trait(tmp_path / "poem"))
    facts = fit_vectors(activations, ["mean_diff"], [0]).metadata["mean_diff", 0]
    assert "adapter" not in facts
    added = {"adapter": "lora", "adapter_revision": "abc"}
    sampling = activations.metadata.sampling | added
    metadata = activations.metadata.model_copy(update={"sampling": sampling})
    adapted = replace(activations, metadata=metadata)
    facts = fit_vectors(adapted, ["mean_diff"], [0]).metadata["mean_diff", 0]
    assert {name: facts[name] for name in added} == added


@pytest.mark.parametrize("scale", [1e8, 1e10])
def test_a_probe_of_values_however_large(tmp_path, scale):
    """Rounding hides the smallest eigenvalues of what is solved for them."""
    folder = planted.write_trait(
        tmp_path / "exp" / "poem", signal=6.0, dim=400, n_per_side=70, n_layers=1
    )
    activations = load_activations(folder)
    found = []
    for size in (1e6, scale):
        scaled = replace(activations, values=activations.values * np.float32(size))
        vectors = fit_vectors(scaled, ["probe"])
        assert vectors.metadata["probe", 0]["accuracy"] == 1
        found.append(vectors.vector("probe", 0).astype(float) * size)
    assert cosine(*found) > 0.99


@pytest.mark.parametrize(("n", "dim"), [(16_000, 2304), (1000, 2304)])
def test_layers_side_by_side_are_as_many_as_memory_holds(monkeypatch, n, dim):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    found = []
    for free in (0, 2 << 30, 4 << 30, 1 << 40):
        monkeypatch.setattr(rows, "free_host_memory", lambda free=free: free)
        found.append(rows._workers(n, dim, n > dim))
    assert (found[0], found[-1]) == (1, 64)
    assert 1 < found[1] < found[2] < 64
    assert found[2] * 8 * n * dim < 4 << 30


def test_one_layer_is_fitted_where_memory_is_short(activations, monkeypatch):
    seen, most = [], []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(rows, "free_host_memory", lambda: 0)
    monkeypatch.setattr(rows, "TOGETHER", 1)

    def function(block):
        seen.append(1)
        most.append(len(seen))
        time.sleep(0.05)
        seen.pop()
        return list(block)

    rows.map_layers(function, activations, [0, 1, 2, 3], rows.FIT_TALL)
    assert most == [1, 1, 1, 1]
