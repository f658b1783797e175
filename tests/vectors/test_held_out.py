"""Held-out scores are those of independent refits, and no label leaks into them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from tests.support import planted
from tests.vectors.helpers import cosine, evaluated, row, within_folds
from traitmill.engine.outputs import load_activations
from traitmill.engine.vectors import METHODS, evaluate_vectors, few, fit_vectors, rows
from traitmill.engine.vectors.held_out import held_out, random_directions
from traitmill.engine.vectors.splits import make_split

pytestmark = pytest.mark.usefixtures("space")


@pytest.mark.parametrize("kind", ["question", "instruction"])
def test_held_out_figures_are_those_of_an_independent_refit(tmp_path, kind):
    # 37 rows a side: sets without a fold differ in size.
    folder = planted.write_trait(tmp_path / "exp" / "poem", signal=1.5, n_per_side=37)
    evaluation = evaluated(folder, ("mean_diff", "probe"), [1])
    activations = load_activations(folder)
    x, y = activations.values[:, 1].astype(float), activations.labels
    groups = activations.questions if kind == "question" else activations.instructions
    split = make_split(kind, y, groups, 0)
    for method in ("mean_diff", "probe"):
        scores = np.empty(len(y))
        for test in split.tests():
            assert not set(groups[test]) & set(groups[~test])
            if method == "probe":
                model = LogisticRegression(C=1, tol=1e-10, solver="newton-cholesky").fit(
                    x[~test], y[~test]
                )
                w = model.coef_[0]
            else:
                w = x[~test & y].mean(axis=0) - x[~test & ~y].mean(axis=0)
            along = x @ w
            pos, neg = along[~test & y], along[~test & ~y]
            scores[test] = (along[test] - (pos.mean() + neg.mean()) / 2) / np.sqrt(
                (pos.var() + neg.var()) / 2
            )
        figures = {
            m: row(evaluation, m, split=kind, method=method, layer=1)
            for m in ("auroc", "accuracy", "cohens_d")
        }
        assert figures["auroc"]["value"] == pytest.approx(
            within_folds(scores, y, split.folds), abs=1e-6
        )
        assert figures["accuracy"]["value"] == pytest.approx(
            balanced_accuracy_score(y, scores > 0), abs=1e-6
        )
        spread = np.sqrt((scores[y].var(ddof=1) + scores[~y].var(ddof=1)) / 2)
        assert figures["cohens_d"]["value"] == pytest.approx(
            (scores[y].mean() - scores[~y].mean()) / spread, rel=1e-3
        )
        for figure in figures.values():
            assert figure["low"] <= figure["value"] <= figure["high"]


def test_layers_fitted_together_are_those_fitted_alone(tmp_path, monkeypatch):
    activations = load_activations(
        planted.write_trait(tmp_path / "exp" / "poem", signal=1.5, n_per_side=37, n_layers=5)
    )
    together = fit_vectors(activations, list(METHODS))
    figures = evaluate_vectors(activations, together).table
    monkeypatch.setattr(rows, "TOGETHER", 0)
    monkeypatch.setattr(few, "ENTRIES", 0)
    alone = fit_vectors(activations, list(METHODS))
    np.testing.assert_array_equal(together.values, alone.values)
    assert together.metadata == alone.metadata
    assert evaluate_vectors(activations, alone).table.equals(figures)


def test_labels_of_a_fold_reach_neither_its_scores_nor_its_choice(tmp_path, space):
    activations = load_activations(
        planted.write_trait(tmp_path / "exp" / "poem", signal=1.0, n_layers=1)
    )
    vectors = fit_vectors(activations, list(METHODS))
    split = make_split("question", activations.labels, activations.questions, 0)
    test = split.tests()[2]
    spoiled = activations.labels.copy()
    spoiled[test] = ~spoiled[test]

    def scores(labels):
        changed = replace(activations, labels=labels)
        (found,) = held_out(changed, vectors, [replace(split, labels=labels)], 0)
        return found.own[:, 0], found.scores[:, 0, 2]

    own, without = scores(activations.labels)
    own_spoiled, without_spoiled = scores(spoiled)
    shared = ("probe", "gradient") if space == "width" else ()
    exact = [index for index, name in enumerate(METHODS) if name not in shared]
    np.testing.assert_array_equal(own[exact][:, test], own_spoiled[exact][:, test])
    np.testing.assert_array_equal(without[exact], without_spoiled[exact])
    # In the width their searches share a start: each ends within its precision.
    np.testing.assert_allclose(own[:, test], own_spoiled[:, test], atol=1e-3)
    np.testing.assert_allclose(without, without_spoiled, atol=1e-3)
    assert not np.isnan(without).any()
    assert not np.array_equal(own[:, ~test], own_spoiled[:, ~test])


def test_baselines_do_not_know_the_labels(tmp_path):
    evaluation = evaluated(
        planted.write_trait(tmp_path / "exp" / "poem", signal=9.0, n_layers=6), ("mean_diff",)
    )
    shuffled = evaluation.table.filter(pl.col("measure") == "shuffled_auroc")
    assert (
        abs(shuffled["value"].mean() - 0.5) < 0.12
    )  # of 5 shuffles, each with a standard deviation near 0.08
    assert (shuffled["low"] <= shuffled["value"]).all()


def test_random_vectors_are_unit_and_fixed_by_layer():
    some, more = random_directions(32, 5, 1), random_directions(32, 5, 4)
    np.testing.assert_array_equal(some[0], more[0])
    np.testing.assert_allclose(np.linalg.norm(more, axis=1), 1)
    assert abs(cosine(more[0], random_directions(32, 6, 1)[0])) < 0.9
