"""What is recommended, how good it is said to be, and when that is a claim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.support import planted
from tests.vectors.helpers import evaluated, row, within_folds
from traitmill.engine.outputs import load_activations
from traitmill.engine.statistics import Estimate
from traitmill.engine.vectors import evaluate_vectors, fit_vectors
from traitmill.engine.vectors.recommendation import Nested, _Evidence, choose_nested
from traitmill.engine.vectors.splits import make_split


@pytest.mark.parametrize("kind", ["question", "instruction"])
def test_the_stated_auroc_is_that_of_choosing_without_the_fold(tmp_path, kind):
    """Nested cross-validation written out.

    Choose a layer on the other folds, score the fold, compare within folds.
    """
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
    """Both candidates tell all rows apart; the second does so by the larger gap.

    Inside, that has to decide too.
    """
    labels = np.tile([True, False], 10)
    split = make_split("question", labels, np.arange(20) // 2, 0)
    small = np.where(labels, 1.0, -1.0) + np.random.default_rng(0).uniform(-0.9, 0.9, 20)
    inner = np.stack([small, np.where(labels, 3.0, -3.0) + small])
    own = np.stack([np.where(labels, -1.0, 1.0), np.where(labels, 1.0, -1.0)])
    scores = np.repeat(inner[:, None], 5, axis=1)
    for fold, test in enumerate(split.tests()):
        scores[:, fold, test] = own[:, test]
    assert choose_nested(split, scores[None]).auroc.value == 1


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
    assert best.reason.startswith(f"Use {best.method} at layer 2.")
    assert (
        f"{best.auroc:.2f}, 95 % interval {best.low:.2f} to {best.high:.2f}, for unseen questions"
        in best.text
    )
    other = row(evaluation, "selected_auroc", split="instruction")
    assert (
        "{value:.2f}, 95 % interval {low:.2f} to {high:.2f}, for unseen i".format(**other)
        in best.text
    )
    assert f"{random['value']:.2f} on average" in best.text
    assert f"{random['high']:.2f} at their 97.5th percentile" in best.text
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
    assert best.reason == f"Use {best.method} at layer {best.layer}, for these instructions only."
    assert "for unseen instructions, of which there are only 4\n" in best.text


def test_what_holds_for_its_instructions_only_is_said_to(tmp_path):
    """Each side of each instruction pair shifts its rows its own way.

    That is nothing that unseen instructions would share.
    """
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
        assert best.general or not best.claim or "for these instructions only." in best.text
    assert claims >= 9  # questions do meet these instructions again, and are told apart
    assert general <= 1


@pytest.mark.slow
@pytest.mark.parametrize("n_questions", [4, 10])
def test_questions_that_shift_the_sides_their_own_way_are_no_trait(tmp_path, n_questions):
    """Rows of one question are all alike, so there are as many observations as questions.

    40 rows a side are not 40.
    """
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


def test_what_cannot_be_nested_is_not_stated_as_if_it_were(tmp_path):
    """All pos rows are of two questions: the fold of one can be left out, and not both."""
    folder = planted.write_trait(
        tmp_path / "exp" / "poem", n_per_side=180, n_questions=30, n_pairs=1, n_layers=1
    )
    activations = load_activations(folder)
    kept = ~activations.labels | np.isin(activations.questions, [0, 1])
    ids = [str(i) for i in range(kept.sum())]
    few = replace(
        activations,
        values=activations.values[kept],
        labels=activations.labels[kept],
        questions=activations.questions[kept],
        instructions=activations.instructions[kept],
        metadata=activations.metadata.model_copy(update={"sample_ids": ids}),
    )
    assert few.n_pos >= 10
    evaluation = evaluate_vectors(few, fit_vectors(few, ["mean_diff"]))
    best = evaluation.recommendation
    assert not best.claim
    assert best.auroc is None
    assert row(evaluation, "selected_auroc", split="question")["value"] is None
    assert best.text == (
        "Too few rows for a claim: with two folds left out a side has fewer than 2. mean_diff at "
        "layer 0 is the best of 1 so far."
    )


@pytest.mark.parametrize(
    ("n_per_side", "n_questions", "words"),
    [
        (
            8,
            8,
            "Too few rows and questions for a claim (rows: 8 on the smaller side, 10 are needed",
        ),
        (40, 3, "Too few questions for a claim: 3, 10 are needed."),
        (40, 2, "Too few questions for a claim: 2, 10 are needed."),
    ],
)
def test_t08_what_is_too_few_is_named(
    tmp_path: Path, n_per_side: int, n_questions: int, words: str
) -> None:
    folder = planted.write_trait(
        tmp_path / "exp" / "poem",
        signal=20,
        n_per_side=n_per_side,
        n_questions=n_questions,
        n_pairs=1,
    )
    best = evaluated(folder).recommendation
    assert not best.claim
    assert best.reason.startswith(words)
    assert best.why == (), "of so few, no figure is worth reading"


def test_t08_one_question_is_too_few_questions_not_too_few_instructions(tmp_path: Path) -> None:
    folder = planted.write_trait(
        tmp_path / "exp" / "poem", signal=20, n_per_side=40, n_questions=1, n_pairs=5
    )
    best = evaluated(folder).recommendation
    assert best.reason.startswith("Too few questions for a claim: 1 answered, 10 are needed.")


def test_t08_a_tie_across_layers_is_called_one(tmp_path: Path) -> None:
    """At two of four layers the sides lie apart by far: nothing tells those two layers apart."""
    folder = planted.write_trait(
        tmp_path / "exp" / "poem", signal=(30.0, 0.0, 30.0, 0.0), n_pairs=10, n_per_side=100
    )
    evaluation = evaluated(folder, ("mean_diff",))
    values = evaluation.table.filter(pl.col("measure") == "auroc", pl.col("split") == "question")
    assert values.filter(pl.col("value") == 1.0)["layer"].to_list() == [0, 2]
    assert (
        "a tie: 2 of 4 have the same held-out AUROC of 1.00, at layers 0 to 2"
        in evaluation.recommendation.text
    )
    alone = planted.write_trait(
        tmp_path / "exp" / "other", signal=(0.0, 30.0, 0.5), n_pairs=10, n_per_side=100
    )
    assert "a tie" not in evaluated(alone, ("mean_diff",)).recommendation.text


def test_what_beats_chance_and_not_random_vectors_is_not_said_to_fail_against_chance() -> None:
    """Where one direction is most of all rows, random vectors separate the sides as well."""
    split = make_split("question", np.tile([True, False], 60), np.repeat(np.arange(20), 6), 0)
    found = Nested(split, Estimate(1.0, 0.84, 1.0), np.ones(10))
    for low, chance in ((0.84, "random vectors"), (0.40, "chance")):
        nested = replace(found, auroc=Estimate(1.0, low, 1.0))
        shuffled = np.full(5, 0.52)
        evidence = _Evidence(nested, None, False, Estimate(0.0, -0.1, 0.1), shuffled)
        assert not evidence.claim
        assert evidence.doubt == f"not shown to beat {chance}"
        assert evidence.opening("it", "the best of 4").endswith(f"not shown to beat {chance}.")
