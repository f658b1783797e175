"""A first look: answers side by side, neither judged nor stored; and the command's own words."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest

from tests.conftest import Traitmill
from tests.support import fakes
from tests.support.toy import make_toy
from traitmill.engine.steering import glimpse


async def test_a_glimpse_shows_each_question_at_each_coefficient(tmp_path: Path) -> None:
    toy = await make_toy(tmp_path)
    with patch("traitmill.engine.steering.glimpse.lazy_tokenizer", lambda _: fakes.tokenizers):
        found = await glimpse(
            tmp_path / "exp",
            "trait",
            coefficients=[2.0, 0.5],
            n_questions=3,
            backends=toy.backends,
        )
    assert [question for question, _ in found] == ["Question 0?", "Question 1?", "Question 2?"]
    for _, (plain, half, broken) in found:
        assert set(plain.split()) <= {"A", "B"} >= set(half.split())
        assert set(broken.split()) <= {"C", "D"}
    counts = [sum(answers[i].split().count("A") for _, answers in found) for i in (0, 1)]
    assert counts[1] > counts[0], "the vector is added, and it does what the toy's does"
    assert toy.works[0].judges is False
    assert not list((toy.folder / "steering").rglob("part-*.parquet"))
    assert not (toy.folder / "steering.parquet").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--coefficients", "a,b"), "--coefficients 'a,b': write numbers with commas"),
        (("--layers", "all"), "--layers all is too much"),
        (("--positions", "last"), "Invalid value for '--positions'"),
        ((), "exp does not exist"),
    ],
)
def test_what_is_typed_wrong_is_one_clear_line(
    traitmill: Traitmill, given: tuple[str, ...], words: str
) -> None:
    code, said = traitmill("steer", "--experiment", "exp", "--trait", "t", *given)
    assert code == 2
    assert words in said
