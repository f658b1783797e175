"""Answers to scores, and the separation of two sides."""

import itertools
import json
import math
import random
import re

import pytest

from traitmill.engine.judging.capabilities import (
    escape_surrogates,
    judge_key,
    local_prompt,
    raw_text,
)
from traitmill.engine.judging.reading import (
    Answer,
    Reading,
    read_expected,
    read_integer,
    splits_number,
    whole_numbers,
)
from traitmill.engine.judging.reply import Reply
from traitmill.engine.models.thought import _PAIRS
from traitmill.engine.settings import JudgeSettings
from traitmill.engine.statistics import auroc, auroc_interval, histogram
from traitmill.engine.traits import Scale
from traitmill.engine.traits.definition import Trait

TRAIT = Trait("t", (("be", "do not be"),), ("q?",), "Rate {question} {answer}", None)


@pytest.mark.parametrize(
    "text", ["0", "7", "85", "100", " 85\n", '{"score": 85}', '{ "score":\n85 }', '{"score": 100}']
)
def test_whole_answers_are_scores(text):
    reading = read_integer(Answer(text))
    assert reading.status == "scored"
    assert reading.score == float("".join(c for c in text if c.isdigit()))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "150",
        "101",
        "-5",
        "+85",
        "085",
        "8 5",
        "٨٥",
        "The score is 85",
        "85 because it fits",
        "1. It fits\n85",
        "[85]",
        '[["score", 85]]',
        "true",
        '{"score": 85.5}',
        '{"score": true}',
        '{"score": 150}',
        '{"score": -1}',
        '{"score": 3, "score": 90}',
        '{"score": 3, "why": "it fits"}',
        '{"rating": 85}',
        '{"score": {"score": 85}}',
        "{" * 5000,
    ],
)
def test_f09_nothing_but_a_whole_answer_is_a_score(text):
    reading = read_integer(Answer(text))
    assert (reading.status, reading.score) == ("unparsable", None)


@pytest.mark.parametrize(
    "answer",
    [
        Answer("REFUSAL"),
        Answer(" refusal."),
        Answer("**Refused**"),
        Answer('{"score": null}'),
        Answer("85", refusal="I cannot rate this."),
        Answer("85", finish_reason="content_filter"),
    ],
)
def test_a_refusal_is_no_score(answer):
    assert read_integer(answer).status == "refused"
    assert read_integer(answer).score is None


@pytest.mark.parametrize("text", ["", "  ", "8", "10", '{"sco', "{"])
def test_f11_a_cut_answer_that_could_become_a_score_is_truncated(text):
    assert read_integer(Answer(text, finish_reason="length")).status == "truncated"


@pytest.mark.parametrize(
    ("text", "status"), [('{"score": 85}', "scored"), ("It is rather", "unparsable")]
)
def test_a_cut_answer_that_more_room_would_not_change_is_read_as_it_stands(text, status):
    assert read_integer(Answer(text, finish_reason="length")).status == status


def test_expected_is_the_expectation_over_integer_tokens():
    top = {
        "80": math.log(0.5),
        " 90": math.log(0.25),
        "The": math.log(0.1),
        "101": math.log(0.1),
        "8.": math.log(0.05),
    }
    assert read_expected(Answer("80", alternatives=top)).score == round(
        (80 * 0.5 + 90 * 0.25) / 0.75, 2
    )


def test_expected_below_a_quarter_of_the_weight_is_no_score():
    assert (
        read_expected(
            Answer("The", alternatives={"80": math.log(0.249), "The": math.log(0.7)})
        ).status
        == "unparsable"
    )
    assert (
        read_expected(
            Answer("80", alternatives={"80": math.log(0.251), "The": math.log(0.7)})
        ).score
        == 80.0
    )
    assert read_expected(Answer("REFUSAL", alternatives={"REF": 0.0})).status == "refused"
    assert read_expected(Answer("80")).status == "unparsable"


@pytest.mark.parametrize(
    "text",
    [
        "85/100",
        "8/10",
        "9 out of 10",
        "1. The answer shows it",
        "2 of 3, so 70",
        "0.85",
        "10-20",
        "150",
        "-5",
        "85%",
        ".9",
    ],
)
def test_f09_a_number_that_goes_on_is_no_score(text):
    first = re.match(r"[-+.]?[0-9]+", text)[0]
    top = {first: math.log(0.9), "7": math.log(0.08)}
    assert read_expected(Answer(text, alternatives=top)).status == "unparsable"
    if text not in ("85%", "85/100"):  # in words, where nothing is measured, it can mean 85 only
        assert read_integer(Answer(text)).status == "unparsable"


@pytest.mark.parametrize(
    "text",
    [
        "Score: 85",
        "score = 85",
        "Rating: **85**",
        "**85**",
        "`85`",
        '"85"',
        "85.",
        "85.0",
        "85%",
        "85/100",
        "85 / 100",
        "85 out of 100",
        '```json\n{"score": 85}\n```',
        "```\n85\n```",
        "<think>20? No, more.</think>\n85",
        "<thinking>It says 3 things.</thinking> Score: 85",
    ],
)
def test_r14_r17_what_can_mean_one_number_only_is_read_at_once(text):
    assert read_integer(Answer(text)) == Reading("scored", 85.0)


@pytest.mark.parametrize(
    "text",
    [
        "8/10",
        "85/10",
        "0.85",
        "85.5",
        "There are 5 reasons, so 9",
        "eighty-five",
        "I can't help with that",
        "Score: 85 of 90",
        "<think>It is 85",
        "<think>85</think>",
        "Score: 150",
    ],
)
def test_r14_r17_what_can_mean_another_number_is_no_score(text):
    assert read_integer(Answer(text)).score is None


def test_t34_a_number_in_several_tokens_is_not_measured_by_its_first():
    top = {"8": math.log(0.9), "9": math.log(0.1)}
    assert read_expected(Answer("85", tokens=("8", "5"), alternatives=top)).score is None
    whole = {"85": math.log(0.9), "95": math.log(0.1)}
    assert read_expected(Answer("85", tokens=("85",), alternatives=whole)).score == 86.0


def test_f10_a_refusal_is_none_whatever_else_was_likely():
    top = {"REF": math.log(0.6), "0": math.log(0.4)}
    assert read_expected(Answer("REFUSAL", alternatives=top)) == Reading("refused")


def test_expected_stays_inside_the_scale_when_probabilities_round_up():
    assert read_expected(Answer("100", alternatives={"100": 1e-7, " 100": -20.0})).score == 100.0


@pytest.mark.parametrize(
    ("tokens", "whole"),
    [
        (["0", " ", "7", " ", "42", " ", "100"], True),
        (["0", " 7", " 42", " 100", "</s>"], True),
        (["0", " ", "7", " ", "42", " ", "10", "0"], False),
        (["0", " ", "7", " ", "4", "2", " ", "1", "0", "0"], False),
        ([], False),
    ],
)
def test_whole_numbers(tokens, whole):
    assert whole_numbers("0 7 42 100", tokens) is whole
    assert not whole_numbers(
        "0 7 42", ["0", " ", "7", " ", "42"]
    )  # 100 was not written, so nothing is known of it


def test_judge_key_follows_model_mode_and_prompt_only():
    base = judge_key(JudgeSettings(model="m"), TRAIT)
    assert len(base) == 16
    assert int(base, 16) >= 0
    assert base == judge_key(
        JudgeSettings(model="m"), Trait("other", (("a", "b"),), ("c",), TRAIT.eval_prompt, "x")
    )
    others = [
        judge_key(JudgeSettings(model="n"), TRAIT),
        judge_key(JudgeSettings(model="m", mode="integer"), TRAIT),
        judge_key(
            JudgeSettings(model="m"),
            Trait("t", TRAIT.instructions, TRAIT.questions, "R {question} {answer}"),
        ),
        judge_key(JudgeSettings(model="local"), TRAIT),
    ]
    assert len({base, *others}) == 5
    assert judge_key(JudgeSettings(model="local"), TRAIT) != judge_key(
        JudgeSettings(model="local"),
        Trait("t", TRAIT.instructions, TRAIT.questions, TRAIT.eval_prompt, "Is it? {answer}"),
    )
    assert local_prompt(TRAIT).startswith(TRAIT.eval_prompt + "\n\nInstead of a number")


def test_f17_lone_surrogates_in_judge_text_are_escaped():
    assert escape_surrogates("a\ud800b😀") == "a\\ud800b😀"
    assert raw_text("\udfff" * 5000).encode().startswith(b"\\udfff")
    assert len(raw_text("x" * 100_000)) < 4100


# --- separation ---


def test_auroc_is_the_share_of_ordered_pairs():
    rng = random.Random(0)
    for _ in range(50):
        pos = [rng.randint(0, 8) for _ in range(rng.randint(1, 12))]
        neg = [rng.randint(0, 8) for _ in range(rng.randint(1, 12))]
        pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(pos, neg)]
        assert auroc(pos, neg) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


@pytest.mark.parametrize(
    ("pos", "neg"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0]), ([1.0], [math.nan])]
)
def test_auroc_refuses_what_has_none(pos, neg):
    with pytest.raises(ValueError, match="AUROC"):
        auroc(pos, neg)


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_auroc_interval_keeps_its_width_at_perfect_separation(n):
    estimate, low, high = auroc_interval([90.0] * n, [10.0] * n)
    assert (estimate, high) == (1.0, 1.0)
    assert low < 0.96
    mirrored, low_end, high_end = auroc_interval([10.0] * n, [90.0] * n)
    assert (mirrored, low_end) == (0.0, 0.0)
    assert high_end == pytest.approx(1 - low)


def test_auroc_interval_satisfies_its_defining_equation():
    pos, neg = [3.0, 5.0, 8.0, 9.0, 9.5], [1.0, 2.0, 4.0, 6.0]
    estimate, *ends = auroc_interval(pos, neg)
    m, n = len(pos), len(neg)
    spread = (m + n) / 2 - 1
    for t in ends:
        variance = t * (1 - t) / (m * n) * (1 + spread * (1 - t) / (2 - t) + spread * t / (1 + t))
        assert abs(estimate - t) == pytest.approx(1.959963985 * math.sqrt(variance), rel=1e-6)


@pytest.mark.parametrize(("shift", "n"), [(0.0, 20), (1.2, 20), (2.5, 40)])
def test_auroc_interval_covers_the_truth_as_often_as_it_says(shift, n):
    rng = random.Random(1)
    truth = 0.5 * (1 + math.erf(shift / 2))  # P(N(shift, 1) > N(0, 1))
    trials, covered = 400, 0
    for _ in range(trials):
        _, low, high = auroc_interval(
            [rng.gauss(shift, 1) for _ in range(n)], [rng.gauss(0, 1) for _ in range(n)]
        )
        covered += low <= truth <= high
    assert 0.92 <= covered / trials <= 0.985


def test_histogram_has_ten_bins_and_100_in_the_last():
    assert histogram([0, 9.99, 10, 55.5, 89.99, 90, 99, 100]) == [2, 1, 0, 0, 0, 1, 0, 0, 1, 3]


@pytest.mark.parametrize(("opening", "closing"), _PAIRS)
def test_r17_every_thought_that_responses_may_have_is_taken_off(opening, closing):
    for said in (f"{opening}20?{closing}85", f"{opening}\n20?\n{closing}\n\n85"):
        assert read_integer(Answer(said)) == Reading("scored", 85.0), said
    assert read_integer(Answer(f"{opening}20")).score is None
    said = "<|START_THINKING|>20?<|END_THINKING|><|START_RESPONSE|>85<|END_RESPONSE|>"
    assert read_integer(Answer(said)) == Reading("scored", 85.0)


def test_t34_on_a_scale_beyond_999_the_number_itself_is_the_score():
    """Of 1000 the first token is 100."""
    likely = {"950": math.log(0.6), "100": math.log(0.4)}
    answer = Answer("950", tokens=("950",), alternatives=likely)
    assert read_expected(answer, Scale(0, 1000)) == Reading("scored", 95.0)
    whole = Answer("1000", tokens=("100", "0"), alternatives={"100": 0.0})
    assert read_expected(whole, Scale(0, 1000)) == Reading("scored", 100.0)
    assert not splits_number(whole)
    assert read_expected(Answer("999", alternatives={"999": 0.0}), Scale(0, 999)).score == 100.0


@pytest.mark.parametrize(
    "choice",
    [
        {"finish_reason": "content_filter: PROHIBITED_CONTENT", "message": {}},
        {"finish_reason": "content_filter: RECITATION"},
        {"finish_reason": "content_filter"},
        {"finish_reason": "SAFETY", "message": {"content": None}},
    ],
)
def test_f10_an_answer_that_was_held_back_is_a_refusal_in_every_form(choice):
    answer, _ = Reply(200, {}, json.dumps({"choices": [choice]})).completion()
    assert read_integer(answer) == Reading("refused")
