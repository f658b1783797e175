"""Evaluation: held-out figures against independent refits, no leakage, honest intervals, transfer."""

from __future__ import annotations

import numpy as np
import planted
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from engine import evaluate_vectors, fit_vectors, load_activations
from engine.activations import Activations
from engine.directions import METHODS
from engine.errors import UsageError
from engine.evaluation import Evaluation, read_evaluation, write_evaluation
from engine.heldout import held_out
from engine.resampling import accuracy, auroc, cohens_d, interval, make_split, once, wilson
from engine.transfer import evaluate_transfer, evaluated_traits, read_transfer, update_transfer
from engine.vectors import map_layers, write_vectors

FAST = ("mean_diff", "gradient")


def evaluated(folder, methods=FAST, layers=None) -> Evaluation:
    activations = load_activations(folder)
    vectors = fit_vectors(activations, methods, layers)
    evaluation = evaluate_vectors(activations, vectors)
    write_vectors(folder, vectors)
    write_evaluation(folder, evaluation)
    return evaluation


def row(evaluation: Evaluation, measure: str, **where: object) -> dict:
    (found,) = evaluation.table.filter(pl.col("measure") == measure, **where).iter_rows(named=True)
    return found


def within_folds(scores, labels, folds) -> float:
    """AUROC over pairs of one fold, from scikit-learn's per-fold AUROC."""
    parts = [(labels[f == folds], scores[f == folds]) for f in np.unique(folds)]
    pairs = [y.sum() * (~y).sum() for y, _ in parts]
    return float(np.average([roc_auc_score(y, s) for y, s in parts], weights=pairs))


@pytest.mark.parametrize("kind", ["question", "instruction"])
def test_held_out_figures_are_those_of_an_independent_refit(tmp_path, kind):
    folder = planted.write_trait(tmp_path / "exp" / "poem", signal=1.5)
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
                model = LogisticRegression(C=1, tol=1e-10, solver="newton-cholesky").fit(x[~test], y[~test])
                w = model.coef_[0]
            else:
                w = x[~test & y].mean(axis=0) - x[~test & ~y].mean(axis=0)
            along = x @ w
            pos, neg = along[~test & y], along[~test & ~y]
            scores[test] = (along[test] - (pos.mean() + neg.mean()) / 2) / np.sqrt((pos.var() + neg.var()) / 2)
        figures = {m: row(evaluation, m, split=kind, method=method, layer=1) for m in ("auroc", "accuracy", "cohens_d")}
        assert figures["auroc"]["value"] == pytest.approx(within_folds(scores, y, split.folds), abs=1e-6)
        assert figures["accuracy"]["value"] == pytest.approx(balanced_accuracy_score(y, scores > 0), abs=1e-6)
        spread = np.sqrt((scores[y].var(ddof=1) + scores[~y].var(ddof=1)) / 2)
        assert figures["cohens_d"]["value"] == pytest.approx((scores[y].mean() - scores[~y].mean()) / spread, rel=1e-3)
        for figure in figures.values():
            assert figure["low"] <= figure["value"] <= figure["high"]


def test_labels_of_a_fold_reach_neither_its_scores_nor_its_choice(tmp_path):
    activations = load_activations(planted.write_trait(tmp_path / "exp" / "poem", signal=1.0, n_layers=1))
    methods = [name for name, method in METHODS.items() if method.fit is not None]
    split = make_split("question", activations.labels, activations.questions, 0)
    test = split.tests()[2]
    spoiled = activations.labels.copy()
    spoiled[test] = ~spoiled[test]

    def scores(labels):
        changed = Activations(
            activations.trait,
            activations.values,
            labels,
            activations.questions,
            activations.instructions,
            activations.layers,
            activations.pool,
            activations.metadata,
        )
        return map_layers(lambda layer, at: held_out(layer, at, changed, methods, [split], 0), changed, [0])[0]

    one, other = scores(activations.labels), scores(spoiled)
    np.testing.assert_array_equal(one.scores[0][:, test], other.scores[0][:, test])
    np.testing.assert_array_equal(one.nested[:, 2], other.nested[:, 2])
    assert np.isnan(one.nested[:, 2][:, test]).all()
    assert not np.isnan(one.nested[:, 2][:, ~test]).any()
    assert not np.array_equal(one.scores[0][:, ~test], other.scores[0][:, ~test])


@pytest.mark.parametrize("seed", range(5))
def test_no_group_stands_in_two_folds_and_draws_take_whole_groups(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, rng.integers(5, 20), 120)
    split = make_split("question", rng.random(120) < 0.5, groups, seed)
    for group in np.unique(groups):
        assert len(set(split.folds[groups == group])) == 1
        assert (split.draws[:, groups == group][:, 0] == split.draws[:, groups == group].T).all()
    assert len(set(split.folds)) == 5


def test_weighted_figures_are_those_of_repeated_rows():
    rng = np.random.default_rng(1)
    labels, scores = rng.random(50) < 0.5, rng.standard_normal(50).round(1)
    folds, counts = rng.integers(0, 3, 50), rng.integers(0, 4, 50)
    weights = counts[None].astype(np.float32)
    y, s, f = (np.repeat(values, counts) for values in (labels, scores, folds))
    assert auroc(scores, labels, folds, weights)[0] == pytest.approx(within_folds(s, y, f), rel=1e-5)
    assert accuracy(scores, labels, weights)[0] == pytest.approx(balanced_accuracy_score(y, s > 0), rel=1e-5)
    pooled = ((s[y] - s[y].mean()) ** 2).sum() + ((s[~y] - s[~y].mean()) ** 2).sum()
    expected = (s[y].mean() - s[~y].mean()) / np.sqrt(pooled / (len(y) - 2))
    assert cohens_d(scores, labels, weights)[0] == pytest.approx(expected, rel=1e-5)


def test_intervals_hold_their_value_and_wilsons():
    from scipy.stats import binomtest

    oracle = binomtest(17, 20).proportion_ci(method="wilson")
    assert wilson(17 / 20, 20) == pytest.approx((oracle.low, oracle.high))
    assert interval(1.0, np.ones(100), 20)[0] < 0.9
    low, high = interval(0.7, np.linspace(0.75, 0.85, 101))
    assert low == 0.7
    assert high == pytest.approx(0.8475)


def test_a_strong_trait_is_claimed_and_beats_both_baselines(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "poem", signal=(0.0, 1.0, 9.0, 0.5))
    evaluation = evaluated(folder)
    best = evaluation.recommendation
    assert best.claim
    assert best.layer == 2
    assert best.low > row(evaluation, "shuffled_auroc", method=best.method, layer=2)["value"]
    assert best.low > row(evaluation, "random_auroc", layer=2)["value"] > 0
    assert best.reason.startswith(f"Use {best.method} at layer 2")
    assert f"{best.auroc:.2f}, 95 % interval {best.low:.2f} to {best.high:.2f}" in best.reason
    assert not evaluation.notes
    held = evaluation.table.filter(pl.col("measure") == "held_out_score")
    assert held["other"].to_list() == load_activations(folder).sample_ids
    assert set(held["layer"]) == {2}


@pytest.mark.parametrize("seed", range(3))
def test_pure_noise_is_not_claimed(tmp_path, seed):
    folder = planted.write_trait(tmp_path / "exp" / "noise", signal=0, seed=seed + 40)
    best = evaluated(folder).recommendation
    assert not best.claim
    assert best.low <= 0.5 <= best.high
    assert best.reason.startswith("No claim")


def test_choosing_the_best_of_many_does_not_flatter(tmp_path):
    chosen, stated = [], []
    for seed in range(12):
        folder = planted.write_trait(
            tmp_path / str(seed) / "noise", signal=0, seed=seed + 900, n_per_side=20, n_layers=6, question_spread=0.3
        )
        evaluation = evaluated(folder, ("mean_diff",))
        figures = evaluation.table.filter(pl.col("measure") == "auroc", split="question")
        chosen.append(figures["value"].max())
        stated.append(evaluation.recommendation.auroc)
    assert np.mean(chosen) > 0.57  # what stating the best would say of noise
    assert abs(np.mean(stated) - 0.5) < 3 * np.std(stated) / np.sqrt(len(stated))


def test_baselines_do_not_know_the_labels(tmp_path):
    evaluation = evaluated(planted.write_trait(tmp_path / "exp" / "poem", signal=9.0, n_layers=6), ("mean_diff",))
    shuffled = evaluation.table.filter(pl.col("measure") == "shuffled_auroc")
    assert abs(shuffled["value"].mean() - 0.5) < 0.12  # of 5 shuffles, each with a standard deviation near 0.08
    assert (shuffled["low"] <= shuffled["value"]).all()


def test_cosines_are_those_of_the_vectors(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "poem", signal=2.0)
    evaluation, vectors = evaluated(folder), fit_vectors(load_activations(folder), FAST)
    a, b = (vectors.vector(method, 1).astype(float) for method in FAST)
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert row(evaluation, "cosine", method=FAST[0], layer=1, other=FAST[1])["value"] == pytest.approx(expected)
    following = vectors.vector(FAST[0], 2).astype(float)
    expected = a @ following / np.linalg.norm(a) / np.linalg.norm(following)
    assert row(evaluation, "cosine_next_layer", method=FAST[0], layer=1)["value"] == pytest.approx(expected)


def test_one_instruction_pair_is_said(tmp_path):
    evaluation = evaluated(planted.write_trait(tmp_path / "exp" / "poem", n_pairs=1))
    assert evaluation.notes == (
        "held-out figures by instruction are not given: the kept rows have only one instruction",
    )
    assert set(evaluation.table.filter(pl.col("measure") == "auroc")["split"]) == {"question"}


def test_one_question_and_one_instruction_leave_nothing_to_hold_out(tmp_path):
    evaluation = evaluated(planted.write_trait(tmp_path / "exp" / "poem", n_pairs=1, n_questions=1))
    assert evaluation.recommendation is None
    assert len(evaluation.notes) == 2


@pytest.mark.parametrize(("n_per_side", "n_questions"), [(8, 8), (40, 3), (40, 2)])
def test_too_few_rows_are_said_however_well_they_separate(tmp_path, n_per_side, n_questions):
    folder = planted.write_trait(
        tmp_path / "exp" / "poem", signal=20, n_per_side=n_per_side, n_questions=n_questions, n_pairs=1
    )
    best = evaluated(folder).recommendation
    assert not best.claim
    assert best.reason.startswith(
        f"Too few rows for a claim: {n_per_side} on the smaller side and {n_questions} questions"
    )


def test_an_evaluation_survives_its_file_and_is_the_same_again(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "poem")
    evaluation = evaluated(folder)
    content = (folder / "evaluation.parquet").read_bytes()
    again = read_evaluation(folder, planted.read_metadata(folder))
    assert again.table.equals(evaluation.table)
    assert again.recommendation == evaluation.recommendation
    assert again.notes == evaluation.notes
    evaluated(folder)
    assert (folder / "evaluation.parquet").read_bytes() == content


def test_stale_missing_and_damaged_evaluations_name_the_command(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "poem")
    with pytest.raises(UsageError, match="missing; make it with: traitmill vectors --experiment exp --trait poem"):
        read_evaluation(folder, planted.read_metadata(folder))
    evaluated(folder)
    planted.write_trait(folder, seed=5)
    with pytest.raises(UsageError, match="is of other activations than"):
        read_evaluation(folder, planted.read_metadata(folder))
    (folder / "evaluation.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UsageError, match="cannot be read"):
        read_evaluation(folder, planted.read_metadata(folder))


# --- transfer ----------------------------------------------------------------------------------------------


@pytest.fixture
def experiment(tmp_path):
    root = tmp_path / "exp"
    for name, signal, seed, direction in (("a", 8, 0, 0), ("b", 8, 1, 0), ("c", 8, 2, 3)):
        evaluated(planted.write_trait(root / name, signal=signal, seed=seed, direction=direction, n_layers=2))
    return root


def test_a_vector_transfers_to_the_trait_that_shares_its_direction_only(experiment):
    assert update_transfer(experiment, pytest.fail) == experiment / "evaluation.parquet"
    table = read_transfer(experiment)
    value = {(r["trait"], r["target"]): r["value"] for r in table.iter_rows(named=True)}
    assert len(value) == 9
    assert value["a", "b"] > 0.95
    assert value["b", "a"] > 0.95
    assert 0.1 < value["a", "c"] < 0.9
    metadata = planted.read_metadata(experiment / "a")
    assert value["a", "a"] == read_evaluation(experiment / "a", metadata).recommendation.auroc


def test_transfer_is_scikit_learns_auroc_of_the_stored_vector(experiment):
    import torch

    table = evaluate_transfer(evaluated_traits(experiment))
    (found,) = table.filter(trait="a", target="c").iter_rows(named=True)
    vector = torch.load(experiment / "a" / "vectors" / f"{found['method']}_layer{found['layer']}.pt", weights_only=True)
    target = load_activations(experiment / "c")
    expected = roc_auc_score(target.labels, target.values[:, found["layer"]] @ vector.numpy())
    assert found["value"] == pytest.approx(expected, abs=1e-3)
    assert found["low"] <= found["value"] <= found["high"]


def test_pairs_that_cannot_be_measured_say_why(experiment):
    metadata = planted.read_metadata(experiment / "b")
    planted.write_metadata(experiment / "b", {**metadata, "model": "another/model"})
    table = evaluate_transfer(evaluated_traits(experiment))
    (found,) = table.filter(trait="a", target="b").iter_rows(named=True)
    assert found["value"] is None
    assert found["note"] == "the two traits are of different models"


def test_a_trait_that_cannot_be_read_is_left_out_with_a_notice(experiment):
    (experiment / "b" / "activations" / "metadata.json").unlink()
    notices: list[str] = []
    update_transfer(experiment, notices.append)
    assert set(read_transfer(experiment)["trait"]) == {"a", "c"}
    assert notices[0].startswith("b is left out of the transfer table: ")
    (experiment / "c" / "evaluation.parquet").unlink()
    assert update_transfer(experiment, notices.append) is None
    assert read_transfer(experiment) is None


def test_once_counts_every_row():
    assert once(4).tolist() == [[1, 1, 1, 1]]
