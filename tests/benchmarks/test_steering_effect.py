"""The meter of form, and its figures: counted by hand."""

from __future__ import annotations

import math

import pytest

from benchmarks.steering_effect import form, is_verse

VERSE = "The sea is wide,\nthe sea is deep,\n\nit sings the tide,\nit sings to sl"


@pytest.mark.parametrize(
    ("text", "verse"),
    [
        (VERSE, True),
        (VERSE.replace("\n", " "), False),
        ("\n".join(VERSE.split("\n")[:2]), False),
        ("1. The sea\n2. The tide\n3. The deep\n4. The sand", False),
        ("- The sea\n- The tide\n- The deep\n- The sand", False),
        ("\n".join(["This is a paragraph of prose that goes on and on for long."] * 4), False),
        ("", False),
    ],
)
def test_verse_is_short_lines_that_are_no_list(text: str, *, verse: bool) -> None:
    assert is_verse(text) == verse


def test_shares_are_means_over_questions_and_differences_are_taken_question_by_question() -> None:
    def text(kind: str, coefficient: float, question: str, verse: str) -> dict[str, str]:
        return {
            "kind": kind,
            "coefficient": f"{coefficient:g}",
            "question": question,
            "response": VERSE if verse == "v" else "Prose.",
        }

    answers = {("unsteered", 0.0): ("vp", "pp", "pp"), ("steered", 0.5): ("vv", "vp", "pp")}
    texts = [
        text(*condition, f"q{number}", each)
        for condition, questions in answers.items()
        for number, given in enumerate(questions)
        for each in given
    ]
    plain, steered = form(texts)
    assert plain["share"] == pytest.approx(100 * 1 / 6)
    assert (steered["kind"], steered["coefficient"]) == ("steered", 0.5)
    assert steered["share"] == pytest.approx(100 * 3 / 6)
    value, low, high = steered["over_unsteered"]
    assert value == pytest.approx(100 / 3)  # of 50, 50 and 0 points
    half = 4.302653 * math.sqrt(((50 / 3) ** 2 * 2 + (100 / 3) ** 2) / 2 / 3)
    assert (low, high) == pytest.approx((value - half, value + half), rel=1e-5)
