"""The shipped trait definitions: they load, and they hold what docs/creating_traits.md asks of a
good definition."""

from __future__ import annotations

import re
import string
from collections import Counter
from pathlib import Path

import pytest

from traitmill.engine.traits import DEFINITION_FILE, Trait, fill, load_traits

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NAMED_BY_THE_GUIDE = {
    "refusal",
    "uncertainty",
    "verbosity",
    "sycophancy",
    "formality",
    "retrieval_construction",
}
# How far apart the two sides of a pair may be, in characters and in words: beyond it, a vector may
# be one of length.
PAIR_RATIO = 1.25
SIDE_RATIO = 1.10


def _shipped(experiment: str) -> list[Trait]:
    folders = sorted(
        path.parent for path in (EXPERIMENTS / experiment).glob(f"*/{DEFINITION_FILE}")
    )
    return load_traits({folder.name: folder for folder in folders})


LIBRARY, DEMO = _shipped("library"), _shipped("demo")
each_trait = pytest.mark.parametrize("trait", [*LIBRARY, *DEMO], ids=lambda trait: trait.name)


def _plain(text: str) -> str:
    """Lower case, without punctuation or repeated blanks: near-copies are seen as copies."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def _copies(texts: list[str]) -> list[str]:
    return [text for text, count in Counter(map(_plain, texts)).items() if count > 1]


def _ratio(one: float, other: float) -> float:
    return max(one, other) / min(one, other)


def test_the_library_holds_the_guides_traits_and_more() -> None:
    names = {trait.name for trait in LIBRARY}
    assert names >= NAMED_BY_THE_GUIDE
    assert len(names) == 24


def test_every_library_trait_has_a_card() -> None:
    page = (EXPERIMENTS.parent / "docs/trait_library.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    assert [row[1].strip(" `") for row in rows] == [trait.name for trait in LIBRARY]
    assert all(cell.strip() for row in rows for cell in row[1:-1])


def test_the_demo_holds_its_two_traits() -> None:
    assert [trait.name for trait in DEMO] == ["fairy_tale", "poem"]


@each_trait
def test_counts(trait: Trait) -> None:
    assert len(trait.instructions) == 5
    assert len(trait.questions) == 20


@each_trait
def test_nothing_is_said_twice(trait: Trait) -> None:
    assert _copies(list(trait.questions)) == []
    assert _copies([text for pair in trait.instructions for text in pair]) == []


def test_library_traits_share_no_question() -> None:
    assert _copies([question for trait in LIBRARY for question in trait.questions]) == []


@each_trait
def test_pairs_are_matched_in_length(trait: Trait) -> None:
    for pos, neg in trait.instructions:
        assert _ratio(len(pos), len(neg)) <= PAIR_RATIO, (pos, neg)
        assert _ratio(len(pos.split()), len(neg.split())) <= PAIR_RATIO, (pos, neg)
    pos_words, neg_words = (
        sum(len(pair[side].split()) for pair in trait.instructions) for side in (0, 1)
    )
    assert _ratio(pos_words, neg_words) <= SIDE_RATIO


@each_trait
def test_questions_do_not_name_the_trait(trait: Trait) -> None:
    # Five letters catch the word's other forms: "uncer" finds uncertain, "empat" finds empathise.
    stems = [word[:5] for word in trait.name.split("_")]
    told = [
        question
        for question in trait.questions
        for stem in stems
        if re.search(rf"\b{stem}", question.lower())
    ]
    assert told == []


@each_trait
def test_texts_are_clean(trait: Trait) -> None:
    texts = [*trait.questions, *(text for pair in trait.instructions for text in pair)]
    for text in texts:
        assert text == " ".join(text.split()), text
        assert "{" not in text, text
        assert text.rstrip('"')[-1] in ".?!", text


@each_trait
def test_judge_prompts_ask_for_one_readable_answer(trait: Trait) -> None:
    assert trait.yes_no_prompt is not None
    for prompt in (trait.eval_prompt, trait.yes_no_prompt):
        assert prompt.count("{question}") == 1
        assert prompt.count("{answer}") == 1
        filled = fill(prompt, question="What is <q>?", answer="It is {question}.")
        assert "What is <q>?" in filled
        assert "It is {question}." in filled
    assert trait.eval_prompt.endswith("Answer with a single integer from 0 to 100.")
    assert trait.yes_no_prompt.endswith("Answer Yes or No.")


@each_trait
def test_eval_prompts_anchor_their_scale(trait: Trait) -> None:
    anchors = [
        int(number) for number in re.findall(r"^(\d+): \S", trait.eval_prompt, flags=re.MULTILINE)
    ]
    assert anchors == [0, 25, 50, 75, 100]
