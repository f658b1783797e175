"""What is refused in a trait_definition.json, word for word, and what is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from traitmill.engine.errors import DefinitionError, ExitCode
from traitmill.engine.traits.definition import (
    DEFINITION_FILE,
    Trait,
    build_prompt,
    fill,
    load_traits,
    parse_definition,
)

SOUND: dict[str, Any] = {
    "instruction": [{"pos": "p", "neg": "n"}],
    "questions": ["q?"],
    "eval_prompt": "{question} {answer}",
}
PAIRS = 'a list of {"pos": ..., "neg": ...}'
SURROGATE = "holds a lone surrogate (a broken \\ud... escape), which no text file can carry"
LACKS_BOTH = ["lacks the placeholder {question}", "lacks the placeholder {answer}"]


def file(**changes: object) -> bytes:
    return json.dumps(SOUND | changes).encode()


def faults(data: bytes) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        parse_definition("t", data, "F")
    assert caught.value.exit_code == ExitCode.USAGE
    assert all(fault.startswith("F: ") for fault in caught.value.faults)
    return [fault.removeprefix("F: ") for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbf" + file(), ["starts with a byte order mark; save it as plain UTF-8"]),
        (b"\xff{}", ["is not UTF-8 (byte 0)"]),
        (b"{,}", ["line 1 column 2: Expecting property name enclosed in double quotes"]),
        (b"", ["line 1 column 1: Expecting value"]),
        (b"[1]", ["must be a JSON object"]),
        (b"null", ["must be a JSON object"]),
        (b"[" * 100_000, ["is nested too deeply"]),
        (file()[:-1] + b', "questions": ["b?"]}', ["questions: appears 2 times in one object"]),
        (
            file().replace(b'"neg": "n"', b'"neg": "n", "pos": "x", "pos": "y"'),
            ["pos: appears 3 times in one object"],
        ),
    ],
)
def test_f14_what_is_no_json_object_of_its_own_keys(data: bytes, expected: list[str]) -> None:
    assert faults(data) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "instruction: is empty; give at least one pair"),
        ("x", f"instruction: must be {PAIRS}, not a string"),
        (None, f"instruction: must be {PAIRS}, not missing"),
        ({}, f"instruction: must be {PAIRS}, not an object"),
        (10**400, f"instruction: must be {PAIRS}, not a number"),
        ([["a", "b"]], 'instruction[0]: must be {"pos": ..., "neg": ...}, not a list'),
        ([True], 'instruction[0]: must be {"pos": ..., "neg": ...}, not a boolean'),
        ([{"pos": "x"}], "instruction[0].neg: must be a string, not missing"),
        ([{"pos": 1, "neg": "y"}], "instruction[0].pos: must be a string, not a number"),
        ([{"pos": "x", "neg": " "}], "instruction[0].neg: is empty"),
    ],
)
def test_f14_instructions(value: object, expected: str) -> None:
    assert faults(file(instruction=value)) == [expected]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], ["questions: is empty; give at least one"]),
        ("a?", ["questions: must be a list of strings, not a string"]),
        (["a?", " \n", "b?"], ["questions[1]: is empty"]),
        (["\ud800?"], [f"questions[0]: {SURROGATE}"]),
        (
            [3, True, None, [], {}],
            [
                "questions[0]: must be a string, not a number",
                "questions[1]: must be a string, not a boolean",
                "questions[2]: must be a string, not missing",
                "questions[3]: must be a string, not a list",
                "questions[4]: must be a string, not an object",
            ],
        ),
    ],
)
def test_f14_questions(value: object, expected: list[str]) -> None:
    assert faults(file(questions=value)) == expected


@pytest.mark.parametrize("key", ["eval_prompt", "yes_no_prompt"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("none", LACKS_BOTH),
        ("{question} { answer }", [f"{LACKS_BOTH[1]}: write it for {{ answer }}"]),
        ("{answer}", LACKS_BOTH[:1]),
        (" ", ["is empty", *LACKS_BOTH]),
        ("\udfff", [SURROGATE, *LACKS_BOTH]),
        (4.5, ["must be a string, not a number"]),
    ],
)
def test_f15_prompts_of_the_judge(key: str, value: object, expected: list[str]) -> None:
    assert faults(file(**{key: value})) == [f"{key}: {fault}" for fault in expected]


def test_f14_all_faults_come_at_once_in_the_files_order() -> None:
    several = {"instruction": [], "questions": ["", 1], "eval_prompt": "no placeholders"}
    assert faults(b"\xef\xbb\xbf" + json.dumps(several).encode()) == [
        "starts with a byte order mark; save it as plain UTF-8",
        "instruction: is empty; give at least one pair",
        "questions[0]: is empty",
        "questions[1]: must be a string, not a number",
        "eval_prompt: lacks the placeholder {question}",
        "eval_prompt: lacks the placeholder {answer}",
    ]
    assert [fault.partition(":")[0] for fault in faults(b"{}")] == [
        "instruction",
        "questions",
        "eval_prompt",
    ]


def test_f14_files_that_are_not_there_or_closed_are_in_the_same_report(tmp_path: Path) -> None:
    for name, data in (("sound", file()), ("broken", file(questions=[]))):
        (tmp_path / name).mkdir()
        (tmp_path / name / DEFINITION_FILE).write_bytes(data)
    (tmp_path / "folder" / DEFINITION_FILE).mkdir(parents=True)
    folders = {name: tmp_path / name for name in ("missing", "folder", "sound", "broken")}
    with pytest.raises(DefinitionError) as caught:
        load_traits(folders)
    missing, closed, broken = caught.value.faults
    assert missing.startswith(f"{tmp_path}/missing/{DEFINITION_FILE}: missing; write it")
    assert closed == f"{tmp_path}/folder/{DEFINITION_FILE}: cannot be read: Is a directory"
    assert broken.endswith(f"broken/{DEFINITION_FILE}: questions: is empty; give at least one")
    [trait] = load_traits({"sound": tmp_path / "sound"})
    assert trait == Trait("sound", (("p", "n"),), ("q?",), "{question} {answer}")


@pytest.mark.parametrize("extra", [{}, {"yes_no_prompt": "{question} {answer} Yes?"}])
def test_a_definition_comes_back_as_its_file_holds_it(extra: dict[str, str]) -> None:
    trait = parse_definition("t", file(note="ours", **extra), "F")
    assert trait.as_json() == SOUND | extra
    assert parse_definition("t", file(yes_no_prompt=None), "F").yes_no_prompt is None
    assert (trait.asked("pos", 0, 0), trait.asked("neg", 0, 0)) == (("p", "q?"), ("n", "q?"))


def test_f16_placeholders_are_filled_once_and_other_braces_stay() -> None:
    template = '{"score": {0}} {{question}} {answer!r} A={answer}'
    filled = fill(template, question="{answer}", answer=r"{question} \1")
    assert filled == r'{"score": {0}} {{answer}} {answer!r} A={question} \1'
    assert build_prompt("Do {answer}.", "Why?") == "Do {answer}.\n\nWhy?"


@pytest.mark.parametrize(("name", "article"), [("eager", "an"), ("Ugly", "an"), ("calm", "a")])
def test_an_assistants_name_stands_before_its_instruction(name: str, article: str) -> None:
    names = {"pos": name, "neg": "helpful"}
    trait = parse_definition("t", file(assistant_name=names), "F")
    assert trait.asked("pos", 0, 0) == (f"You are {article} {name} assistant. p", "q?")
    assert trait.asked("neg", 0, 0) == ("You are a helpful assistant. n", "q?")
    assert trait.as_json() == SOUND | {"assistant_name": names}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x", 'assistant_name: must be {"pos": ..., "neg": ...}, not a string'),
        ({"pos": "x"}, "assistant_name.neg: must be a string, not missing"),
        ({"pos": " ", "neg": "y"}, "assistant_name.pos: is empty"),
    ],
)
def test_an_assistants_name_is_one_of_each_side(value: object, expected: str) -> None:
    assert faults(file(assistant_name=value)) == [expected]


def test_null_is_a_side_without_instruction_and_prompts_without_questions() -> None:
    trait = parse_definition("t", file(instruction=[{"pos": "p", "neg": None}]), "F")
    assert trait.asked("neg", 0, 0) == ("", "q?")
    assert build_prompt(*trait.asked("neg", 0, 0)) == "q?"
    assert trait.as_json()["instruction"] == [{"pos": "p", "neg": None}]
    whole = parse_definition("t", file(questions=None), "F")
    assert whole.asked("pos", 0, 0) == ("", "p")
    assert whole.as_json() == SOUND | {"questions": None}
    assert whole.longest_question() in ("p", "n")


def test_steering_questions_are_read_kept_and_checked() -> None:
    trait = parse_definition("t", file(steering_questions=["One?", "Two?"]), "F")
    assert trait.steering_questions == ("One?", "Two?")
    assert trait.as_json()["steering_questions"] == ["One?", "Two?"]
    assert "steering_questions" not in parse_definition("t", file(), "F").as_json()
    for wrong, words in (
        ([], "steering_questions: is empty; give at least one"),
        ("One?", "steering_questions: must be a list of strings, not a string"),
        ([" "], "steering_questions[0]: is empty"),
    ):
        assert faults(file(steering_questions=wrong)) == [words]


@pytest.mark.parametrize("side", ["pos", "neg"])
def test_a_null_side_of_null_questions_asks_nothing(side: str) -> None:
    pairs = [{"pos": "Sing.", "neg": "Speak."}, {"pos": "Sing.", "neg": "Speak."} | {side: None}]
    content = {**SOUND, "instruction": pairs, "questions": None}
    with pytest.raises(DefinitionError, match=r"instruction\[1\]: a null side, and null questions"):
        parse_definition("t", file(**content), "t.json")
