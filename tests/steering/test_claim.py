"""What is claimed of a vector, in simulated studies: no better than random ones, and better."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from traitmill.engine.statistics import wilson
from traitmill.engine.steering.conditions import (
    PROMPT,
    RANDOM,
    UNSTEERED,
    Condition,
    ablated,
)
from traitmill.engine.steering.figures import Answers, rows
from traitmill.engine.steering.findings import make_claim
from traitmill.engine.steering.study import Study

STEERED = Condition("steered", "mean_diff", 5, 0.5, "response")
BESIDE = Condition("random", RANDOM, 5, 0.5, "response")
NOISE = 10.0


def simulated(
    rng: np.random.Generator, *, effect: float, apart: float, k: int, n: int, questions: int = 20
) -> Answers:
    """Answers of a vector that is one of `k + 1` random ones, `apart` from each other, and
    moves the score by `effect` more."""
    asked, vectors = np.arange(n) % questions, np.arange(n) % k
    base = (50 + NOISE * rng.standard_normal(questions))[asked]
    own, *others = apart * rng.standard_normal(k + 1)
    means = (base, base + 30, base + effect + own, base + np.array(others)[vectors])
    return Answers(
        conditions=(UNSTEERED, PROMPT, STEERED, BESIDE),
        of=np.repeat(np.arange(4), n),
        questions=np.tile(asked, 4),
        scores=np.concatenate(means) + NOISE * rng.standard_normal(4 * n),
        coherence=np.full(4 * n, 90.0),
        vectors=np.tile(vectors, 4),
    )


def study(*, ablate: bool = False) -> SimpleNamespace:
    target = SimpleNamespace(method="mean_diff", layer=5)
    return SimpleNamespace(
        vectors=SimpleNamespace(targets=(target,)),
        asked=SimpleNamespace(coherence=75, ablate=ablate),
        grid={("mean_diff", 5): (0.5,)},
    )


def claimed(count: int, **how: float) -> float:
    """The share of simulated studies in which the vector is said to steer."""
    rng = np.random.default_rng(2026)
    said = [make_claim(study(), simulated(rng, **how)).has_effect for _ in range(count)]
    return float(np.mean(said))


@pytest.mark.parametrize("k", [2, 5, 20])
@pytest.mark.parametrize("apart", [0.0, 5.0, 10.0])
@pytest.mark.parametrize("n", [20, 100])
def test_a_vector_no_better_than_random_is_claimed_in_5_of_100_at_most(k, apart, n):
    count = 300
    chance = math.sqrt(0.05 * 0.95 / count)
    assert claimed(count, effect=0.0, apart=apart, k=k, n=n) <= 0.05 + 2 * chance


@pytest.mark.parametrize(
    ("k", "apart", "n"), [(5, 5.0, 20), (5, 10.0, 20), (10, 8.0, 20), (20, 5.0, 40)]
)
def test_the_interval_holds_one_more_random_vector_in_95_of_100(k, apart, n):
    """Few answers to each vector make it wider, never too narrow."""
    rng = np.random.default_rng(7)
    count, held = 400, 0
    for _ in range(count):
        answers = simulated(rng, effect=0.0, apart=apart, k=k, n=n)
        beyond, _ = answers.over_random(STEERED)
        held += beyond.low <= 0 <= beyond.high
    assert held / count >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / count)


@pytest.mark.parametrize(("apart", "effect"), [(0.0, 40.0), (5.0, 50.0), (10.0, 80.0)])
def test_a_vector_that_is_clearly_better_is_claimed(apart, effect):
    assert claimed(100, effect=effect, apart=apart, k=5, n=20) >= 0.9


def test_with_one_random_vector_nothing_is_claimed_and_it_is_said_why():
    answers = simulated(np.random.default_rng(0), effect=80.0, apart=0.0, k=1, n=40)
    claim = make_claim(study(), answers)
    assert not claim.has_effect
    assert "how far random vectors lie apart cannot be told" in claim.text
    assert "`n_random`" in claim.text
    assert "inf" not in claim.text


def test_a_direction_taken_out_is_compared_with_one_more_random_direction():
    """Random directions that lie far apart leave the difference from them open."""
    rng = np.random.default_rng(3)
    answers = simulated(rng, effect=40.0, apart=20.0, k=3, n=60)
    without = [ablated("mean_diff", 5), ablated(RANDOM, 5)]
    answers = Answers(
        conditions=(*answers.conditions, *without),
        of=np.concatenate([answers.of, answers.of[-120:] + 2]),
        questions=np.concatenate([answers.questions, answers.questions[-120:]]),
        scores=np.concatenate([answers.scores, answers.scores[-120:]]),
        coherence=np.concatenate([answers.coherence, answers.coherence[-120:]]),
        vectors=np.concatenate([answers.vectors, answers.vectors[-120:]]),
    )
    [*_, said, coherent] = make_claim(study(ablate=True), answers).why
    assert coherent.endswith("is 90, under the pos instruction alone 90 (at least 75 holds)")
    broken = replace(answers, coherence=np.where(answers.of == 4, 16.0, 90.0))
    [*_, told] = make_claim(study(ablate=True), broken).why
    assert told.endswith("the texts break, and their scores say little of the trait")
    beyond, _ = answers.over_random(without[0])
    plain, _ = answers.difference(*without)
    assert beyond.value == plain.value
    assert beyond.high - beyond.low > 2 * (plain.high - plain.low)
    assert f"95 % interval {beyond.low:+.1f} to {beyond.high:+.1f}" in said


def test_the_interval_is_of_one_more_random_vector_and_of_the_scores_themselves():
    """The textbook's prediction interval of the one, and Student's of the other."""
    levels = np.array([1.0, 4.0, 4.0, 11.0])
    of = np.repeat([0, 2, 3], 40)
    vectors, asked = np.tile(np.arange(40) % 4, 3), np.tile(np.arange(40) // 4, 3)
    scores = np.select([of == 0, of == 2], [20 + 2.0 * (asked % 2), 30.0], levels[vectors])
    every = (UNSTEERED, PROMPT, STEERED, BESIDE)
    found, n = Answers(every, of, asked, scores, scores, vectors).over_random(STEERED)
    apart = 3.182446 * levels.std(ddof=1) * math.sqrt(1 + 1 / 4)
    own = 2.262157 * np.tile([0.0, 2.0], 5).std(ddof=1) / math.sqrt(10)
    assert (found.value, n) == (25.0, 10)
    assert found.high - found.value == pytest.approx(math.hypot(apart, own), rel=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_vector_that_turns_some_answers_is_claimed(share: float) -> None:
    """What its answers differ by was taken for what random vectors differ by: never claimed."""
    rng = np.random.default_rng(1)
    asked, vectors, said = np.arange(20), np.arange(20) % 5, []
    for _ in range(60):
        plain = 20 + rng.normal(0, 4, 20)
        turned = np.where(rng.random(20) < share, 65.0, 0.0)
        means = (plain, plain + 50, plain + turned, plain)
        scores = np.clip(np.concatenate(means) + rng.normal(0, 3, 80), 0, 100)
        answers = Answers(
            conditions=(UNSTEERED, PROMPT, STEERED, BESIDE),
            of=np.repeat(np.arange(4), 20),
            questions=np.tile(asked, 4),
            scores=scores,
            coherence=np.full(80, 90.0),
            vectors=np.tile(vectors, 4),
        )
        beyond, _ = answers.over_random(STEERED)
        assert beyond.low >= -100
        assert beyond.high <= 100
        said.append(make_claim(study(), answers).has_effect)
    assert np.mean(said) >= 0.9


def test_a_judge_that_scores_the_other_way_round_is_said_to_do_so() -> None:
    """Its interval excludes 0: it was said not to tell the instruction from unsteered answers."""
    rng = np.random.default_rng(0)
    answers = simulated(rng, effect=0, apart=1, k=5, n=40)
    answers.scores[answers.of == 1] -= 60
    claim = make_claim(study(), answers)
    [said] = [line for line in claim.why if line.startswith("the judge")]
    assert "scores answers under the pos instruction below unsteered ones (-" in said
    assert "does not tell" not in said


def test_the_interval_of_a_mean_score_ends_where_scores_end():
    rng = np.random.default_rng(3)
    answers = simulated(rng, effect=0.0, apart=1.0, k=3, n=8, questions=4)
    near = np.where(rng.random(len(answers.scores)) < 0.7, 100.0, 60.0)
    answers = replace(answers, scores=100 - near, coherence=near)
    beside = SimpleNamespace(side_effects=lambda _condition: None)
    found = [row for row in rows(beside, answers) if row["measure"] in ("trait_score", "coherence")]
    assert len(found) == 2 * len(answers.conditions)
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 100 for row in found)
    assert 0 in {row["low"] for row in found if row["measure"] == "trait_score"}
    assert 100 in {row["high"] for row in found if row["measure"] == "coherence"}


def test_incoherent_unsteered_answers_are_no_fault_of_the_vector() -> None:
    answers = simulated(np.random.default_rng(3), effect=0.0, apart=1.0, k=5, n=20)
    low = replace(answers, coherence=np.where(answers.of == 0, 57.0, 47.0))
    said = make_claim(study(), low).sentence
    assert "unsteered answers have a coherence of 57 themselves, below 75" in said
    assert "smaller" not in said
    broken = replace(answers, coherence=np.where(answers.of == 0, 90.0, 47.0))
    assert "breaks coherence (below 75) at the smallest" in make_claim(study(), broken).sentence


def judged_0_or_100(rng: np.random.Generator, shares: tuple[float, ...], n: int) -> Answers:
    """Answers to n questions that the judge gives 100 to a share of, else 0, by condition."""
    score = 100.0 * (rng.random((len(shares), n)) < np.array(shares)[:, None])
    return plainly(score)


def plainly(scores: np.ndarray, k: int = 5) -> Answers:
    """Answers with scores `[4, n]`, a question each, and `k` random vectors in turn."""
    n = scores.shape[1]
    return Answers(
        conditions=(UNSTEERED, PROMPT, STEERED, BESIDE),
        of=np.repeat(np.arange(4), n),
        questions=np.tile(np.arange(n), 4),
        scores=scores.ravel().astype(float),
        coherence=np.full(4 * n, 90.0),
        vectors=np.tile(np.arange(n) % k, 4),
    )


@pytest.mark.parametrize("n", [10, 20])
@pytest.mark.parametrize("share", [0.03, 0.05, 0.95])
def test_intervals_hold_the_truth_where_scores_are_tied_at_an_end(n, share):
    """Student's has no width where all are equal: with n = 10 it held 5 % in 38 of 100."""
    rng = np.random.default_rng(11)
    runs, held = 400, np.zeros(2)
    rest = share > 0.5
    for _ in range(runs):
        answers = judged_0_or_100(rng, (rest, rest, share, rest), n)
        mean, _ = answers.mean(answers.scores, STEERED)
        gap, _ = answers.difference(STEERED, UNSTEERED)
        held += [
            mean.low <= 100 * share <= mean.high,
            gap.low <= 100 * (share - rest) <= gap.high,
        ]
    assert (held / runs >= 0.93).all(), held / runs


def test_ten_answers_without_the_trait_leave_room_for_one_in_four():
    answers = plainly(np.zeros((4, 10)))
    _, high = wilson(0, 10)
    mean, _ = answers.mean(answers.scores, STEERED)
    assert (mean.value, mean.low, mean.high) == (0, 0, pytest.approx(100 * high))
    for found, _ in (answers.difference(STEERED, UNSTEERED), answers.over_random(STEERED)):
        assert found.value == 0
        assert found.low == pytest.approx(-found.high)
        assert found.high > 20
    assert "(+0.0, 95 % interval -27.8 to +27.8)" in make_claim(study(), answers).text


@pytest.mark.parametrize(
    ("questions", "k", "said"),
    [
        (2, 2, "2 questions have scores both steered and unsteered, 5 are needed"),
        (3, 5, "3 random vectors have scores"),
        (20, 4, "4 random vectors have scores"),
    ],
)
def test_of_too_few_answers_nothing_is_claimed_and_it_is_said_which(questions, k, said):
    scores = np.zeros((4, questions))
    scores[2] = 60 + np.arange(questions) % 3
    claim = make_claim(study(), plainly(scores, k))
    assert not claim.has_effect
    assert claim.sentence.startswith("Too few answers for a claim: mean_diff at layer 5")
    assert said in claim.text
    enough = np.zeros((4, 20))
    enough[2] = 60 + np.arange(20) % 3
    assert make_claim(study(), plainly(enough)).has_effect


@pytest.mark.parametrize(("k", "n"), [(2, 20), (3, 20), (5, 2), (5, 3), (5, 20)])
def test_a_vector_that_acts_as_often_as_random_ones_is_hardly_ever_claimed(k, n):
    """Three of ten random vectors act, and so may this one: their effects are not normal."""
    rng = np.random.default_rng(5)
    runs, claims = 400, 0
    for _ in range(runs):
        acts = 60.0 * (rng.random(k + 1) < 0.3)
        scores = 20 + 5 * rng.standard_normal((4, n))
        scores[2] += acts[0]
        scores[3] += acts[1:][np.arange(n) % k]
        claims += make_claim(study(), plainly(scores.clip(0, 100), k)).has_effect
    assert claims / runs <= 0.07


def test_copies_of_a_question_count_as_one_in_side_effects_and_in_the_grid_too():
    """Four listed questions of two texts: the grid looked for the break where the claim saw
    none."""
    first = np.array([0, 1, 0, 0])
    values = [-1.0, -3.0, -1.2, -1.1]
    sampled = [SimpleNamespace(sample=SimpleNamespace(question_index=at)) for at in range(4)]
    beside = SimpleNamespace(
        side_effects=lambda _condition: values, answers=lambda: sampled, first=first
    )
    answers = plainly(np.full((4, 4), 50.0) + np.arange(4))
    [found, *_] = [row for row in rows(beside, answers) if row["measure"] == "own_logprob"]
    means = np.array([np.mean([-1.0, -1.2, -1.1]), -3.0])
    half = 12.706 * means.std(ddof=1) / math.sqrt(2)
    assert found["value"] == pytest.approx(means.mean())
    assert found["high"] - found["value"] == pytest.approx(half, rel=1e-3)
    plan = SimpleNamespace(of=lambda _condition: np.arange(4), question_index=np.arange(4))
    part = SimpleNamespace(plan=plan, first=first)
    coherence = Study._mean_coherence(part, STEERED, np.array([60.0, 90.0, 60.0, 60.0]))
    assert coherence == pytest.approx(75.0)


def test_few_random_vectors_at_the_floor_say_less_than_many() -> None:
    asked, widths = np.arange(20), []
    for k in (2, 5):
        answers = Answers(
            conditions=(UNSTEERED, PROMPT, STEERED, BESIDE),
            of=np.repeat(np.arange(4), 20),
            questions=np.tile(asked, 4),
            scores=np.concatenate([np.zeros(20), np.full(20, 50.0), 5.0 + asked % 2, np.zeros(20)]),
            coherence=np.full(80, 90.0),
            vectors=np.tile(asked % k, 4),
        )
        beyond, _ = answers.over_random(STEERED)
        assert beyond.low < 0
        widths.append(beyond.high - beyond.low)
    assert widths[0] > widths[1]
