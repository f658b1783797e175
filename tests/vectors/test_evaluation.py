"""Evaluation: held-out figures against independent refits, no leakage, honest intervals, transfer."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from tests.support import planted
from traitmill.engine.errors import UsageError
from traitmill.engine.outputs.load import Activations, load_activations
from traitmill.engine.vectors.evaluation import (
    Evaluation,
    evaluate_vectors,
    read_evaluation,
    write_evaluation,
)
from traitmill.engine.vectors.fit import fit_vectors, map_layers, write_vectors
from traitmill.engine.vectors.held_out import held_out
from traitmill.engine.vectors.methods import METHODS
from traitmill.engine.vectors.recommendation import choose_nested
from traitmill.engine.vectors.splits import (
    accuracy,
    auroc,
    cohens_d,
    effective_groups,
    interval,
    make_split,
    once,
    wilson,
)
from traitmill.engine.vectors.transfer import (
    evaluate_transfer,
    evaluated_traits,
    read_transfer,
    update_transfer,
)

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


def test_labels_of_a_fold_reach_neither_its_scores_nor_its_choice(tmp_path):
    activations = load_activations(
        planted.write_trait(tmp_path / "exp" / "poem", signal=1.0, n_layers=1)
    )
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
        return map_layers(
            lambda layer, at: held_out(layer, at, changed, methods, [split], 0), changed, [0]
        )[0]

    one, other = scores(activations.labels), scores(spoiled)
    np.testing.assert_array_equal(one.scores[0][:, test], other.scores[0][:, test])
    np.testing.assert_array_equal(one.nested[0][:, 2], other.nested[0][:, 2])
    assert np.isnan(one.nested[0][:, 2][:, test]).all()
    assert not np.isnan(one.nested[0][:, 2][:, ~test]).any()
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
    assert auroc(scores, labels, folds, weights)[0] == pytest.approx(
        within_folds(s, y, f), rel=1e-5
    )
    assert accuracy(scores, labels, weights)[0] == pytest.approx(
        balanced_accuracy_score(y, s > 0), rel=1e-5
    )
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


@pytest.mark.parametrize("kind", ["question", "instruction"])
def test_the_stated_auroc_is_that_of_choosing_without_the_fold(tmp_path, kind):
    """Nested cross-validation written out: choose a layer on the other folds, score the fold,
    compare within folds."""
    folder = planted.write_trait(
        tmp_path / "exp" / "poem", signal=1.2, n_layers=5, n_pairs=6, dim=24
    )
    evaluation = evaluated(folder, ("mean_diff",))
    activations = load_activations(folder)
    x, y = activations.values.astype(float), activations.labels
    groups = activations.questions if kind == "question" else activations.instructions
    split = make_split(kind, y, groups, 0)

    def scores(layer, test, without):
        train = ~without
        pos, neg = x[train & y, layer].mean(axis=0), x[train & ~y, layer].mean(axis=0)
        return x[test, layer] @ (pos - neg)

    stated = np.empty(len(y))
    for test in split.tests():
        inner = []
        for layer in range(5):
            found = np.full(len(y), np.nan)
            for other in split.tests():
                if not np.array_equal(other, test):
                    found[other] = scores(layer, other, test | other)
            inner.append(within_folds(found[~test], y[~test], split.folds[~test]))
        stated[test] = scores(int(np.argmax(inner)), test, test)
    found = row(evaluation, "selected_auroc", split=kind)
    assert found["value"] == pytest.approx(within_folds(stated, y, split.folds), abs=1e-6)
    assert found["low"] < found["value"] < found["high"]


def test_a_tie_is_broken_alike_inside_and_out():
    """Both candidates tell all rows apart; the second does so by the larger gap, and inside that
    has to decide too."""
    labels = np.tile([True, False], 10)
    split = make_split("question", labels, np.arange(20) // 2, 0)
    inner = np.where(labels, 1.0, -1.0) + np.random.default_rng(0).uniform(-0.9, 0.9, 20)
    both = np.stack(
        [np.repeat(inner[None], 5, 0), np.repeat(np.where(labels, 3.0, -3.0)[None] + inner, 5, 0)]
    )
    outer = np.stack([np.where(labels, -1.0, 1.0), np.where(labels, 1.0, -1.0)])
    assert choose_nested(split, outer, both).value == 1


def test_a_strong_trait_is_claimed_and_beats_both_baselines(tmp_path):
    folder = planted.write_trait(
        tmp_path / "exp" / "poem", signal=(0.0, 1.0, 9.0, 0.5), n_pairs=10, n_per_side=100
    )
    evaluation = evaluated(folder)
    best = evaluation.recommendation
    assert best.claim
    assert best.general
    assert best.layer == 2
    assert best.low > row(evaluation, "shuffled_auroc", method=best.method, layer=2)["value"]
    random = row(evaluation, "random_auroc", layer=2, split="question")
    margin = row(evaluation, "over_random")
    assert margin["low"] > 0
    assert margin["value"] == pytest.approx(best.auroc - random["value"])
    assert best.reason.startswith(f"Use {best.method} at layer 2")
    assert (
        f"{best.auroc:.2f}, 95 % interval {best.low:.2f} to {best.high:.2f}, for unseen questions"
        in best.reason
    )
    other = row(evaluation, "selected_auroc", split="instruction")
    assert (
        f"{other['value']:.2f}, 95 % interval {other['low']:.2f} to {other['high']:.2f}, for "
        f"unseen i" in best.reason
    )
    assert f"{random['value']:.2f} on average" in best.reason
    assert f"{random['high']:.2f} at their 97.5th percentile" in best.reason
    assert not evaluation.notes
    held = evaluation.table.filter(pl.col("measure") == "held_out_score")
    assert held["other"].to_list() == load_activations(folder).sample_ids
    assert set(held["layer"]) == {2}


def test_few_instructions_are_said_and_fewer_bear_no_claim(tmp_path):
    evaluation = evaluated(planted.write_trait(tmp_path / "exp" / "poem", signal=9.0, n_pairs=4))
    best = evaluation.recommendation
    assert evaluation.notes == ("there are few instructions: what is said of unseen ones is rough",)
    assert best.claim
    assert not best.general
    assert ", for these instructions only: " in best.reason
    assert "for unseen instructions, of which there are only 4;" in best.reason


def test_what_holds_for_its_instructions_only_is_said_to(tmp_path):
    """Each side of each instruction pair shifts its rows its own way: nothing that unseen
    instructions would share."""
    claims = general = 0
    for seed in range(10):
        folder = planted.write_trait(
            tmp_path / str(seed) / "poem",
            signal=0,
            side_spread=1.0,
            side_by="instruction",
            n_pairs=5,
            n_per_side=50,
            seed=seed,
            n_layers=2,
        )
        best = evaluated(folder, ("mean_diff",)).recommendation
        claims += best.claim
        general += best.general
        assert best.general or not best.claim or "for these instructions only: " in best.reason
    assert claims >= 9  # questions do meet these instructions again, and are told apart
    assert general <= 1


@pytest.mark.slow
@pytest.mark.parametrize("n_questions", [4, 10])
def test_questions_that_shift_the_sides_their_own_way_are_no_trait(tmp_path, n_questions):
    """Rows of one question are all alike, so there are as many observations as questions: 40 rows a
    side are not 40."""
    held = claims = 0
    for seed in range(30):
        folder = planted.write_trait(
            tmp_path / str(seed) / "null",
            signal=0,
            side_spread=1.0,
            n_questions=n_questions,
            n_layers=2,
            seed=seed,
            n_pairs=1,
        )
        best = evaluated(folder, ("mean_diff",)).recommendation
        held += best.low <= 0.5 <= best.high
        claims += best.claim
    assert held >= 27  # of 30, where 95 % are promised
    assert claims <= 2


@pytest.mark.parametrize("seed", range(3))
def test_pure_noise_is_not_claimed(tmp_path, seed):
    folder = planted.write_trait(tmp_path / "exp" / "noise", signal=0, seed=seed + 40)
    best = evaluated(folder).recommendation
    assert not best.claim
    assert best.low <= 0.5 <= best.high
    assert best.reason.startswith("No claim")


@pytest.mark.slow
def test_choosing_the_best_of_many_does_not_flatter(tmp_path):
    chosen, stated = [], []
    for seed in range(12):
        folder = planted.write_trait(
            tmp_path / str(seed) / "noise",
            signal=0,
            seed=seed + 900,
            n_per_side=20,
            n_layers=6,
            question_spread=0.3,
        )
        evaluation = evaluated(folder, ("mean_diff",))
        figures = evaluation.table.filter(pl.col("measure") == "auroc", split="question")
        chosen.append(figures["value"].max())
        stated.append(evaluation.recommendation.auroc)
    assert np.mean(chosen) > 0.57  # what stating the best would say of noise
    assert abs(np.mean(stated) - 0.5) < 3 * np.std(stated) / np.sqrt(len(stated))


def test_baselines_do_not_know_the_labels(tmp_path):
    evaluation = evaluated(
        planted.write_trait(tmp_path / "exp" / "poem", signal=9.0, n_layers=6), ("mean_diff",)
    )
    shuffled = evaluation.table.filter(pl.col("measure") == "shuffled_auroc")
    assert (
        abs(shuffled["value"].mean() - 0.5) < 0.12
    )  # of 5 shuffles, each with a standard deviation near 0.08
    assert (shuffled["low"] <= shuffled["value"]).all()


def test_cosines_are_those_of_the_vectors(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "poem", signal=2.0)
    evaluation, vectors = evaluated(folder), fit_vectors(load_activations(folder), FAST)
    a, b = (vectors.vector(method, 1).astype(float) for method in FAST)
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert row(evaluation, "cosine", method=FAST[0], layer=1, other=FAST[1])[
        "value"
    ] == pytest.approx(expected)
    following = vectors.vector(FAST[0], 2).astype(float)
    expected = a @ following / np.linalg.norm(a) / np.linalg.norm(following)
    assert row(evaluation, "cosine_next_layer", method=FAST[0], layer=1)["value"] == pytest.approx(
        expected
    )


def test_one_instruction_pair_is_said(tmp_path):
    evaluation = evaluated(planted.write_trait(tmp_path / "exp" / "poem", n_pairs=1))
    assert evaluation.notes == (
        "held-out figures by instruction are not given: the kept rows have only one instruction",
    )
    assert (
        "for unseen questions, unseen instructions not tested;" in evaluation.recommendation.reason
    )
    assert not evaluation.recommendation.general
    assert set(evaluation.table.filter(pl.col("measure") == "auroc")["split"]) == {"question"}


def test_one_question_and_one_instruction_leave_nothing_to_hold_out(tmp_path):
    evaluation = evaluated(planted.write_trait(tmp_path / "exp" / "poem", n_pairs=1, n_questions=1))
    assert evaluation.recommendation is None
    assert len(evaluation.notes) == 2


def test_only_random_vectors_leave_nothing_to_recommend(tmp_path):
    evaluation = evaluated(planted.write_trait(tmp_path / "exp" / "poem", n_pairs=10), ("random",))
    assert evaluation.recommendation is None
    assert evaluation.notes == (
        "random vectors are a baseline; there is no fitted method to recommend",
    )
    assert row(evaluation, "auroc", method="random", layer=0, split="question")["value"] > 0


def test_what_cannot_be_nested_is_not_stated_as_if_it_were(tmp_path):
    """12 rows a side in 10 questions, where two folds hold all pos rows: one can be left out, and
    not both."""
    folder = planted.write_trait(tmp_path / "exp" / "poem", signal=6, n_pairs=1, n_layers=1)
    activations = load_activations(folder)
    split = make_split("question", activations.labels, activations.questions, 0)
    kept = ~activations.labels | np.isin(split.folds, [0, 1])
    few = Activations(
        activations.trait,
        activations.values[kept],
        activations.labels[kept],
        activations.questions[kept],
        activations.instructions[kept],
        activations.layers,
        activations.pool,
        activations.metadata | {"sample_ids": [str(i) for i in range(kept.sum())]},
    )
    assert few.n_pos >= 10
    evaluation = evaluate_vectors(few, fit_vectors(few, ["mean_diff"]))
    best = evaluation.recommendation
    assert not best.claim
    assert best.auroc is None
    assert row(evaluation, "selected_auroc", split="question")["value"] is None
    plain = row(evaluation, "auroc", split="question")["value"]
    assert best.reason == (
        "Too few rows for a claim: with two folds left out a side has fewer than 2 rows; mean_diff "
        "at layer 0, the "
        f"best of 1, has held-out AUROC {plain:.2f} for unseen questions, not corrected for "
        f"choosing it."
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_per_side", [2, 3, 4, 5])
def test_very_few_rows_give_nulls_and_no_nan(tmp_path, n_per_side):
    folder = planted.write_trait(
        tmp_path / "exp" / "poem", n_per_side=n_per_side, n_pairs=2, n_questions=3, n_layers=1
    )
    evaluation = evaluated(folder)
    for column in ("value", "low", "high"):
        assert not evaluation.table[column].is_nan().any()
    missing = evaluation.table.filter(pl.col("measure") == "shuffled_auroc")["value"].null_count()
    assert bool(missing) == any(
        note.startswith("shuffled labels are not measured") for note in evaluation.notes
    )


@pytest.mark.parametrize(("n_per_side", "n_questions"), [(8, 8), (40, 3), (40, 2)])
def test_too_few_rows_are_said_however_well_they_separate(tmp_path, n_per_side, n_questions):
    folder = planted.write_trait(
        tmp_path / "exp" / "poem",
        signal=20,
        n_per_side=n_per_side,
        n_questions=n_questions,
        n_pairs=1,
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
    with pytest.raises(
        UsageError, match="missing; make it with: traitmill vectors --experiment exp --trait poem"
    ):
        read_evaluation(folder, planted.read_metadata(folder))
    evaluated(folder)
    planted.write_trait(folder, seed=5)
    with pytest.raises(UsageError, match="is of other activations than"):
        read_evaluation(folder, planted.read_metadata(folder))
    (folder / "evaluation.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UsageError, match="cannot be read"):
        read_evaluation(folder, planted.read_metadata(folder))


# --- transfer ---


@pytest.fixture
def experiment(tmp_path):
    root = tmp_path / "exp"
    for name, signal, seed, direction in (("a", 8, 0, 0), ("b", 8, 1, 0), ("c", 8, 2, 3)):
        evaluated(
            planted.write_trait(
                root / name, signal=signal, seed=seed, direction=direction, n_layers=2
            )
        )
    return root


def test_a_vector_transfers_to_the_trait_that_shares_its_direction_only(experiment):
    assert update_transfer(experiment, pytest.fail) == experiment / "evaluation.parquet"
    table = read_transfer(experiment, pytest.fail)
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
    vector = torch.load(
        experiment / "a" / "vectors" / f"{found['method']}_layer{found['layer']}.pt",
        weights_only=True,
    )
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


def test_a_missing_vector_of_another_trait_is_a_note(experiment):
    expected = "its vector is missing or of other activations; make it with: traitmill vectors --experiment exp --trait"
    for path in (experiment / "b" / "vectors").iterdir():
        path.unlink()
    write_vectors(experiment / "c", fit_vectors(load_activations(experiment / "c"), FAST))
    stale = experiment / "c" / "vectors"
    for path in stale.glob("*.json"):
        path.write_text(
            path.read_text().replace('"activations_sha256": "', '"activations_sha256": "0')
        )
    update_transfer(experiment, pytest.fail)
    for row in read_transfer(experiment, pytest.fail).iter_rows(named=True):
        lost = row["trait"] in ("b", "c") and row["target"] != row["trait"]
        assert (row["value"] is None) == lost
        assert row["note"] == (f"{expected} {row['trait']}" if lost else "")


def test_a_stale_transfer_table_is_not_shown_as_current(experiment):
    update_transfer(experiment, pytest.fail)
    planted.write_trait(experiment / "b", signal=8, seed=11, n_layers=2)
    notices: list[str] = []
    table = read_transfer(experiment, notices.append)
    assert set(table["trait"]) == set(table["target"]) == {"a", "c"}
    (notice,) = notices
    assert notice.startswith(
        "the transfer table is of earlier activations of b, which are left out; make it anew with: "
    )
    for name in ("a", "c"):
        (experiment / name / "activations" / "metadata.json").unlink()
    assert read_transfer(experiment, notices.append) is None


def test_a_damaged_transfer_table_is_one_clear_line(experiment):
    path = update_transfer(experiment, pytest.fail)
    for content in (b"PAR1 not really", (experiment / "a" / "evaluation.parquet").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(
            UsageError,
            match=r"cannot be read; make it anew with: traitmill vectors .* --traits all$",
        ):
            read_transfer(experiment, pytest.fail)


def test_a_trait_that_cannot_be_read_is_left_out_with_a_notice(experiment):
    (experiment / "b" / "activations" / "metadata.json").unlink()
    notices: list[str] = []
    update_transfer(experiment, notices.append)
    assert set(read_transfer(experiment, pytest.fail)["trait"]) == {"a", "c"}
    assert notices[0].startswith("b is left out of the transfer table: ")
    (experiment / "c" / "evaluation.parquet").unlink()
    assert update_transfer(experiment, notices.append) is None
    assert read_transfer(experiment, pytest.fail) is None


def test_groups_of_unequal_size_count_for_fewer():
    labels = np.repeat([True, False], [6, 4])
    assert (
        effective_groups(labels, np.array([0, 0, 0, 1, 1, 1, 0, 1, 2, 3])) == 2
    )  # pos: two of three rows each
    assert effective_groups(~labels, np.array([0, 0, 0, 0, 0, 1, 0, 1, 2, 3])) == pytest.approx(
        36 / 26
    )


def test_once_counts_every_row():
    assert once(4).tolist() == [[1, 1, 1, 1]]
