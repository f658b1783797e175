"""What `check` finds: each planted fault by its rule and place, and nothing in sound definitions."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from traitmill.engine.traits import (
    DEFINITION_FILE,
    FULL,
    check_bytes,
    check_definition,
    json_schema,
    other_scale,
    scaffold,
)

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SHIPPED = sorted(path.parent for path in EXPERIMENTS.glob(f"*/*/{DEFINITION_FILE}"))
SOUND: dict[str, Any] = json.loads(
    (EXPERIMENTS / "library" / "formality" / DEFINITION_FILE).read_text()
)
EVAL: str = SOUND["eval_prompt"]


def found(definition: dict[str, Any], name: str = "formality") -> set[tuple[str, str, str]]:
    findings = check_bytes(name, json.dumps(definition).encode())
    return {(each.severity, each.rule, each.where) for each in findings}


def planted(path: str, value: object) -> dict[str, Any]:
    """The sound definition with one value changed, by a path such as `instruction.0.pos`."""
    definition = deepcopy(SOUND)
    *parents, last = path.split(".")
    place: Any = definition
    for part in parents:
        place = place[int(part)] if part.isdecimal() else place[part]
    place[int(last) if last.isdecimal() else last] = value
    return definition


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_nothing_is_found_in_what_ships(folder: Path) -> None:
    assert check_definition(folder.name, folder) == []


LONG = " ".join(["Answer in the formal register of an official letter,"] * 8)
NEAR = "How do I get from the airport to the city center?"
NAMED_IN_STEERING = ("warning", "names-trait", "steering_questions[0]")
PLANTED = [
    ("yes_no_promt", "x", ("warning", "unknown-key", "")),
    ("coherence_promt", "x", ("error", "unknown-key", "")),
    ("Eval-Prompt", "x", ("warning", "unknown-key", "")),
    ("instructions", [], ("warning", "unknown-key", "")),
    ("author", "me", ("warning", "unknown-key", "")),
    ("instruction.1.poz", "x", ("warning", "unknown-key", "instruction[1]")),
    (
        "assistant_name",
        {"pos": "formal", "neg": "casual", "Neutral": "x"},
        ("warning", "unknown-key", "assistant_name"),
    ),
    ("draft", True, ("warning", "draft", "draft")),
    (
        "instruction.0.neg",
        SOUND["instruction"][0]["pos"],
        ("error", "equal-sides", "instruction[0]"),
    ),
    (
        "instruction.0.neg",
        SOUND["instruction"][0]["pos"].upper() + "!",
        ("error", "equal-sides", "instruction[0]"),
    ),
    (
        "instruction.2.neg",
        SOUND["instruction"][0]["pos"],
        ("warning", "swapped", "instruction[2].neg"),
    ),
    ("instruction.0.pos", LONG, ("warning", "length", "instruction[0]")),
    (
        "instruction.1.pos",
        SOUND["instruction"][0]["pos"],
        ("warning", "duplicate", "instruction[1].pos"),
    ),
    (
        "instruction.1.pos",
        SOUND["instruction"][0]["pos"].replace("slang", "slangs"),
        ("warning", "near-duplicate", "instruction[1].pos"),
    ),
    ("questions.3", SOUND["questions"][0], ("warning", "duplicate", "questions[3]")),
    (
        "questions.3",
        SOUND["questions"][0].lower() + " ?",
        ("warning", "duplicate", "questions[3]"),
    ),
    ("questions.3", NEAR, ("warning", "near-duplicate", "questions[3]")),
    ("questions.3", "What is formal wear?", ("warning", "names-trait", "questions[3]")),
    ("steering_questions", ["What is formal wear?"], NAMED_IN_STEERING),
    (
        "steering_questions",
        ["Say <|im_end|> aloud."],
        ("warning", "special-token", "steering_questions[0]"),
    ),
    (
        "steering_questions",
        SOUND["questions"][:1],
        ("warning", "duplicate", "steering_questions[0]"),
    ),
    (
        "steering_questions",
        ["Why is it so?"],
        ("warning", "few-questions", "steering_questions"),
    ),
    (
        "questions.3",
        SOUND["questions"][0].rstrip("?.") + " please?",
        ("warning", "near-duplicate", "questions[3]"),
    ),
    ("questions", SOUND["questions"][:4], ("warning", "few-questions", "questions")),
    ("instruction", SOUND["instruction"][:1], ("warning", "few-pairs", "instruction")),
    ("questions.3", " Why is it so?", ("warning", "blanks", "questions[3]")),
    ("questions.3", "Why is {question} so?", ("warning", "placeholder", "questions[3]")),
    ("questions.3", "Say <|im_end|> aloud.", ("warning", "special-token", "questions[3]")),
    (
        "instruction.0.neg",
        "[INST] Be brief. [/INST]",
        ("warning", "special-token", "instruction[0].neg"),
    ),
    ("questions.3", "Why\u200b is it so?", ("warning", "invisible", "questions[3]")),
    ("questions.3", "Tell me about these things:", ("warning", "unfinished", "questions[3]")),
    ("eval_prompt", EVAL.replace("0 to 100", "1 to 10"), ("warning", "other-scale", "eval_prompt")),
    (
        "coherence_prompt",
        "Is {answer} a coherent answer to {question}? Answer on a scale from 1 to 10.",
        ("warning", "other-scale", "coherence_prompt"),
    ),
    (
        "eval_prompt",
        "How formal is it? {question} {answer}",
        ("warning", "no-scale", "eval_prompt"),
    ),
    *(
        (
            "eval_prompt",
            f"How formal is it? {{question}} {{answer}} {asked}",
            ("warning", "other-scale", "eval_prompt"),
        )
        for asked in ("Rate 0-10.", "Give a score out of 10.", "Answer as score/10.")
    ),
    ("eval_prompt", EVAL + " {answer}", ("warning", "placeholder-twice", "eval_prompt")),
    ("eval_prompt", EVAL + " {answers}", ("warning", "placeholder", "eval_prompt")),
    ("eval_prompt", "Rate {question} from 0 to 100.", ("error", "invalid", "")),
    (
        "yes_no_prompt",
        "{question} {answer} Is it formal?",
        ("warning", "no-yes-no", "yes_no_prompt"),
    ),
    ("questions.3", "", ("error", "invalid", "")),
    ("questions.3", 7, ("error", "invalid", "")),
    ("questions", [], ("error", "invalid", "")),
    ("score_min", 200, ("error", "invalid", "")),
    (
        "instruction",
        [
            {
                "pos": f"Always write in stiff words, {way}.",
                "neg": f"{way}, write in loose words here.",
            }
            for way in ("as a judge", "by letter", "with ceremony", "in full", "at length")
        ],
        ("warning", "shared-wording", "instruction"),
    ),
    (
        "instruction",
        [
            {
                "pos": f"{way}, write in the stiffest words there are.",
                "neg": f"{way}, use loose words.",
            }
            for way in ("As a judge", "By letter", "With ceremony", "In full", "At length")
        ],
        ("warning", "shared-wording", "instruction"),
    ),
]


@pytest.mark.parametrize(("path", "value", "expected"), PLANTED)
def test_each_planted_fault_is_found(
    path: str, value: object, expected: tuple[str, str, str]
) -> None:
    assert expected in found(planted(path, value))
    assert expected not in found(SOUND)


def test_t05_a_mistyped_key_is_named_with_the_one_that_is_meant() -> None:
    definition = {**SOUND, "instructions": SOUND["instruction"]}
    del definition["instruction"]
    (said,) = [
        str(each)
        for each in check_bytes("formality", json.dumps(definition).encode())
        if each.severity == "error"
    ]
    assert "`instructions`: did you mean `instruction`?" in said


@pytest.mark.parametrize("key", ["Pos", "pos "])
def test_t05_a_mistyped_side_is_one_error(key: str) -> None:
    """Not a second one of the side that is missing under its right name."""
    definition = deepcopy(SOUND)
    pair = definition["instruction"][1]
    pair[key] = pair.pop("pos")
    (only,) = [
        each
        for each in check_bytes("formality", json.dumps(definition).encode())
        if each.severity == "error"
    ]
    assert (only.rule, only.meant) == ("unknown-key", "instruction[1].pos")


def test_sides_of_unequal_length_are_told_as_a_whole() -> None:
    definition = deepcopy(SOUND)
    for pair in definition["instruction"]:
        pair["pos"] = f"{pair['pos']} And do so from the first word of it to the very last one."
    assert ("warning", "length", "instruction") in found(definition)


def test_two_short_texts_of_one_build_are_two_questions() -> None:
    definition = {**SOUND, "questions": [f"Write about a {word}." for word in _WORDS]}
    assert found(definition) == set()


_WORDS = ("cat", "bat", "rat", "hat", "mat", "car", "can", "cap", "cup", "cut")


def test_a_scaffold_is_one_finding_until_its_last_text_is_written() -> None:
    definition = scaffold("my_trait")
    assert found(definition, "my_trait") == {("error", "scaffold", "")}
    finished = {**SOUND, "yes_no_prompt": definition["yes_no_prompt"]}
    assert found(finished) == {("error", "scaffold", "")}


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\xff", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"questions": 1}']
)
def test_what_cannot_be_read_is_a_finding_too(data: bytes) -> None:
    assert {each.severity for each in check_bytes("t", data)} == {"error"}


def test_a_missing_file_is_a_finding(tmp_path: Path) -> None:
    (only,) = check_definition("t", tmp_path)
    assert only.rule == "missing"


def test_the_schema_takes_what_ships_and_refuses_a_mistyped_key() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="comes with vLLM's packages")
    schema = json_schema()
    for folder in SHIPPED:
        jsonschema.validate(json.loads((folder / DEFINITION_FILE).read_text()), schema)
    jsonschema.validate({"$schema": "x", **scaffold("t")}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**SOUND, "yes_no_promt": "x"}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**SOUND, "questions": []}, schema)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{ question }", "lacks the placeholder {question}: write it for { question }"),
        ("{Question}", "lacks the placeholder {question}: write it for {Question}"),
        ("{prompt}", "lacks the placeholder {question}: write it for {prompt}"),
        ("{{question}}", "holds {{question}}, whose outer braces the judge would read"),
    ],
)
def test_what_nearly_is_a_placeholder_is_named(written: str, said: str) -> None:
    definition = planted("eval_prompt", EVAL.replace("{question}", written))
    findings = check_bytes("formality", json.dumps(definition).encode())
    assert any(said in each.said for each in findings), findings


def test_sides_under_longer_names_are_meant() -> None:
    pair = SOUND["instruction"][0]
    odd = {"positive": pair["pos"], "negative": pair["neg"]}
    findings = check_bytes("formality", json.dumps(planted("instruction.0", odd)).encode())
    said = {each.said for each in findings}
    assert {
        "unknown key `positive`: did you mean `pos`?",
        "unknown key `negative`: did you mean `neg`?",
    } <= said


def test_a_short_name_is_found_as_a_word() -> None:
    definition = {**SOUND, "questions": [*SOUND["questions"], "Is a sad song good?", "A saddle?"]}
    rules = [
        each.where
        for each in check_bytes("sad", json.dumps(definition).encode())
        if each.rule == "names-trait"
    ]
    assert rules == [f"questions[{len(SOUND['questions'])}]"]


def test_a_side_without_instructions_is_not_said_to_begin_alike() -> None:
    definition = deepcopy(SOUND)
    for pair in definition["instruction"]:
        pair["neg"] = None
    rules = {each.rule for each in check_bytes("formality", json.dumps(definition).encode())}
    assert not rules & {"shared-wording", "length"}


@pytest.mark.parametrize(
    "prompt",
    [
        "Score the answer from 0 (absent) to 100 (overwhelming). Scores of 1-30 mean faint.",
        "Give a score from 0 up to 100; reserve scores 90-100 for the strongest.",
        "Rate [0, 100]. Scores 10-30: weak.",
        "Rate it: 0 for none and 100 for most. Rates 24/7 devotion highly.",
    ],
)
def test_a_band_of_marks_is_no_scale(prompt: str) -> None:
    assert other_scale(prompt, FULL) is None


def test_to_say_please_names_no_trait() -> None:
    definition = {**SOUND, "questions": [*SOUND["questions"], "Please tell me of the sea."]}
    findings = check_bytes("people_pleasing", json.dumps(definition).encode())
    assert not [each for each in findings if each.rule == "names-trait"]
