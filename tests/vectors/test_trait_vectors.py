"""A folder's vectors, read when asked for, with errors that help and scores as evaluated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import traitmill
from tests.support import planted
from tests.vectors.helpers import evaluated, row
from traitmill.engine.errors import UsageError
from traitmill.engine.outputs import load_activations
from traitmill.engine.storage import TraitFolder
from traitmill.engine.vectors import fit_vectors, write_vectors


@pytest.fixture
def folder(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "poem", n_layers=3, signal=(0.0, 4.0, 1.0))
    evaluated(folder, ("mean_diff", "probe"))
    return folder


def test_vectors_of_a_folder_are_those_of_its_files(folder):
    vectors = traitmill.load_vectors(folder)
    assert (vectors.methods, vectors.layers) == (("mean_diff", "probe"), (0, 1, 2))
    assert vectors.model == planted.MODEL
    assert len(list(vectors)) == 6
    for method, layer in vectors:
        stored = torch.load(folder / "vectors" / f"{method}_layer{layer}.pt", weights_only=True)
        np.testing.assert_array_equal(vectors.vector(method, layer), stored.numpy())
        assert vectors.metadata(method, layer)["revision"] == "0123abc"
    assert vectors.recommended is not None
    assert vectors.recommended[1] == 1


def test_both_kinds_of_files_are_found(folder):
    more = fit_vectors(load_activations(folder), ["pca"], [0, 2])
    write_vectors(TraitFolder(folder), more, "safetensors")
    vectors = traitmill.load_vectors(folder)
    assert dict(vectors.available) == {
        "mean_diff": (0, 1, 2),
        "probe": (0, 1, 2),
        "pca": (0, 2),
    }
    np.testing.assert_array_equal(vectors.vector("pca", 2), more.vector("pca", 2))


def test_only_what_is_asked_for_is_read(folder):
    for path in (folder / "vectors").glob("probe_*.pt"):
        path.write_bytes(b"damaged")
    vectors = traitmill.load_vectors(folder)
    assert vectors.vector("mean_diff", 1).shape == (48,)
    with pytest.raises(UsageError, match=r"probe_layer1\.pt is not a plain tensor file"):
        vectors.vector("probe", 1)


@pytest.mark.parametrize("content", [None, b"", b"[1]"])
def test_a_vector_without_metadata_keeps_no_other_from_being_read(folder, content):
    beside = folder / "vectors" / "mean_diff_layer0_metadata.json"
    beside.unlink() if content is None else beside.write_bytes(content)
    vectors = traitmill.load_vectors(folder)
    assert dict(vectors.available) == {"mean_diff": (1, 2), "probe": (0, 1, 2)}
    assert vectors.vector("mean_diff", 1).shape == (48,)
    with pytest.raises(UsageError, match="poem has no mean_diff vector at layer 0"):
        vectors.vector("mean_diff", 0)


def test_a_damaged_first_vector_keeps_no_other_from_being_read(folder):
    (folder / "vectors" / "mean_diff_layer0.pt").write_bytes(b"damaged")
    assert traitmill.load_vectors(folder).vector("probe", 1).shape == (48,)


def test_t09_what_there_is_not_is_said_with_what_there_is(folder):
    (folder / "vectors" / "probe_layer0.pt").unlink()
    for vectors in (traitmill.load_vectors(folder), fit_vectors(load_activations(folder))):
        with pytest.raises(UsageError) as refused:
            vectors.vector("probe", 40)
        assert "poem has no probe vector at layer 40: it has" in str(refused.value)
        with pytest.raises(UsageError, match="did you mean probe"):
            vectors.vector("prob", 1)
    with pytest.raises(UsageError) as refused:
        traitmill.load_vectors(folder).vector("probe", 0)
    said = "it has mean_diff at layers 0 to 2; probe at layers 1 to 2"
    assert str(refused.value).endswith(said)
    with pytest.raises(UsageError, match="holds no vectors of prompt_last"):
        traitmill.load_vectors(folder, "prompt_last")
    with pytest.raises(UsageError, match="`pool` 'mean' is unknown"):
        traitmill.load_vectors(folder, "mean")


def test_scores_are_in_spreads_of_the_training_sides_from_their_midpoint(folder):
    activations = load_activations(folder)
    vectors = traitmill.load_vectors(folder)
    for method, layer in vectors:
        rows, labels = activations.values[:, layer], activations.labels
        scores = vectors.score(rows, method, layer)
        pos, neg = scores[labels], scores[~labels]
        assert pos.mean() + neg.mean() == pytest.approx(0, abs=1e-9)
        assert (pos.var() + neg.var()) / 2 == pytest.approx(1)
        assert pos.mean() > 0


def test_scores_are_the_evaluations_own(folder):
    """Fitted without a fold, vectors score its rows as the evaluation scored them held out."""
    evaluation = evaluated(folder, ("mean_diff",))
    activations, best = load_activations(folder), evaluation.recommendation
    held_out = evaluation.table.filter(measure="held_out_score")
    expected = dict(zip(held_out["other"], held_out["value"], strict=True))
    from traitmill.engine.vectors.splits import make_split

    split = make_split("question", activations.labels, activations.questions, seed=0)
    for test in split.tests():
        rows = activations.values[:, best.layer].astype(np.float64)
        labels = activations.labels
        vector = rows[labels & ~test].mean(0) - rows[~labels & ~test].mean(0)
        sides = [rows[side & ~test] @ vector for side in (labels, ~labels)]
        middle = sum(side.mean() for side in sides) / 2
        spread = np.sqrt(sum(side.var() for side in sides) / 2)
        for index in np.flatnonzero(test):
            score = (rows[index] @ vector - middle) / spread
            assert score == pytest.approx(expected[activations.sample_ids[index]], rel=1e-6)
    assert row(evaluation, "groups", split="question")["value"] == 10


def test_vectors_that_do_not_say_their_spread_are_to_be_fitted_anew(folder):
    path = folder / "vectors" / "probe_layer1_metadata.json"
    path.write_text(path.read_text().replace('"spread"', '"width"'))
    with pytest.raises(UsageError, match="does not say its spread; fit it anew") as refused:
        traitmill.load_vectors(folder).score(np.zeros((1, 48)), "probe", 1)
    assert refused.value.step.name == "vectors"


def test_scores_of_anything_but_rows_of_one_layer_are_refused(folder):
    """All layers at once gave numbers of a shape that looked right."""
    values = np.array(load_activations(folder).values)
    vectors = traitmill.load_vectors(folder)
    right = vectors.score(values[:, 1], "mean_diff", 1)
    lazy = torch.from_numpy(values[:, 1]).requires_grad_()
    assert (vectors.score(lazy, "mean_diff", 1) == right).all()
    for wrong in (values, values[0, 1], values[:, 1, :5], values[:, 1] * np.nan, "rows", None):
        with pytest.raises(UsageError, match=r"`rows` must be finite numbers \[n, 48\]"):
            vectors.score(wrong, "mean_diff", 1)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_stored_vector_with_nan_is_named_before_it_is_used(folder, kind):
    """An export wrote it on, and projecting blamed the model."""
    vectors = fit_vectors(load_activations(folder), ["mean_diff"], [1])
    vectors.values[0, 0, 3] = np.nan
    write_vectors(TraitFolder(folder), vectors, kind)
    with pytest.raises(UsageError, match=r"mean_diff.* holds NaN or infinity.*make it anew"):
        traitmill.load_vectors(folder).vector("mean_diff", 1)


def test_activations_with_nan_are_not_fitted(folder):
    activations = load_activations(folder)
    values = np.array(activations.values)
    values[2, 1, 0] = np.inf
    with pytest.raises(UsageError, match="activations at layer 1 hold NaN or infinity"):
        fit_vectors(replace(activations, values=values), ["mean_diff"])
