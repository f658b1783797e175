"""What an answer can mean: one number on the asked scale, or none."""

from __future__ import annotations

import math

import pytest

from tests.judging.test_endpoint import TRAIT, known, response
from tests.support.misbehaving_server import MisbehavingServer, Reply, completion
from traitmill.engine.judging.capabilities import JudgeProfile
from traitmill.engine.judging.reading import (
    Answer,
    Reading,
    number_place,
    read_expected,
    read_integer,
    splits_number,
    spoken,
)
from traitmill.engine.traits import Scale

EXPECTED = JudgeProfile(model="m", mode="expected", top_logprobs=20)
THREE = Scale(0, 3)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


# --- thoughts ---

THOUGHTS = [
    "<think>20?</think>",
    "<think>\nMaybe 20, or 30.\n</think>\n\n",
    "<THINK>20</THINK> ",
    "<thinking>20</thinking>",
    "<thought>20</thought>\n",
    "<reasoning>\n1. 20\n</reasoning>\n",
    "<think>20</think><think>30</think>",
    "<think>the tag <think> again, 20</think>",
    "20 seems low, so no.\n</think>\n\n",  # the template opened the thought
    "20</think>",
    "[THINK]20[/THINK]",
    "◁think▷20◁/think▷",
    "<seed:think>20</seed:think>",
    "<|channel|>analysis<|message|>It is 20.<|end|><|start|>assistant<|channel|>final<|message|>",
]
ANSWERS = ["85", "\n85\n", "Score: 85", "**85**", '{"score": 85}', '```json\n{"score": 85}\n```']


@pytest.mark.parametrize("thought", THOUGHTS)
@pytest.mark.parametrize("said", ANSWERS)
def test_r17_a_thought_is_taken_off_and_never_read(thought: str, said: str) -> None:
    assert read_integer(Answer(thought + said)) == Reading("scored", 85.0)


@pytest.mark.parametrize(
    "text",
    [
        "<think>85",
        "<think>\n85\n",
        "<think>85</think>",
        "85</think>",
        "85</think> \n",
        "<think>a</think><think>85",
        "85\n<think>no, 20</think>",
        "[THINK]85",
        "<|channel|>analysis<|message|>85",
        "<think>85</think>eighty",
        "<reasoning>85</reasoning> I would say 9 of 10 readers agree.",
    ],
)
def test_r17_a_number_of_a_thought_alone_is_no_score(text: str) -> None:
    assert read_integer(Answer(text)).score is None
    top = {"85": math.log(0.9)}
    assert read_expected(Answer(text, tokens=("85",), alternatives=top)).score is None


def test_r17_a_thought_that_is_cut_off_gets_more_room() -> None:
    assert read_integer(Answer("<think>It is 85", finish_reason="length")).status == "truncated"
    assert read_integer(Answer("<think>x</think>", finish_reason="length")).status == "truncated"


def test_r17_a_refusal_after_a_thought_is_a_refusal() -> None:
    assert read_integer(Answer("<think>85?</think>REFUSAL")).status == "refused"
    assert read_expected(Answer("<think>85?</think>REFUSAL")).status == "refused"
    assert read_integer(Answer("<think>REFUSAL</think>85")).score == 85.0


def test_text_without_a_thought_stays() -> None:
    for text in ("85", "a < b", "I think 85", "{}", "think: 85"):
        assert spoken(f" {text}\n") == text


# --- forms ---


@pytest.mark.parametrize(
    "text",
    [
        "Score: 85",
        "score:85",
        "SCORE = 85",
        "Final score: 85",
        "Overall rating: 85.",
        "Answer: 85",
        "**Score:** 85",
        "**Score: 85**",
        "**Score**: `85`",
        "Score \u2013 85",
        "Score: 85/100",
        "Rating: **85** / 100",
        "__85__",
        "'85'",
        '"85"',
        "```85```",
        "```text\n85\n```",
        "85.00",
        "85.0/100",
        "85 %",
        "85 percent",
        "85/100.",
        "85 out of 100",
        "<score>85</score>",
        "<answer>\n85\n</answer>",
        r"\boxed{85}",
        r"$\boxed{85}$",
        "**Final Answer**\n\\boxed{85}",
        r"Answer: \boxed{85}",
        r"**Answer:** $\boxed{85}$",
        "<|begin_of_box|>85<|end_of_box|>",
        "<response>85</response>",
        "[[85]]",
        "85<\uff5cend\u2581of\u2581sentence\uff5c>",
        '{"score": 85.0}',
        "{'score': 85}",
        "{'Score':85,}",
        "{score: 85}",
        "```python\n{'score': 85}\n```",
        "assistantfinal85",
        "analysisI count 20 lines, so 9.assistantfinal85",
        '{"score":85}\n',
        '`{"score": 85}`',
        "'{\"score\": 85}'",
        r'"{\"score\": 85}"',
        '```JSON\n{"score": 85}\n```',
        "85</s>",
        "85<|im_end|>",
        "85<end_of_turn>",
        "Rating - 85",
        "## Score: 85",
        "**Rating: [[85]]**",
        "\u201c85\u201d",
        "85 points",
        "85/100 points",
        "Score: 85 out of 100 points.",
        "\uff18\uff15",
        "Score\uff1a85",
        "85\u3002",
        "\ufeff85",
        "\u200e85\u200b",
        "$85$",
        r"\(\boxed{85}\)",
        r"\[\boxed{85\%}\]",
        r"\boxed{\text{85}}",
        r"\text{85}",
        "<result>85</result>",
        "<b>85</b>",
        '{"score": "85"}',
        '{"Score": 85}',
        '{"reasoning": "9 of 10 lines, at 20", "score": 85}',
    ],
)
def test_r14_a_form_that_can_mean_one_number_is_read(text: str) -> None:
    assert read_integer(Answer(text)) == Reading("scored", 85.0)


@pytest.mark.parametrize(
    "text",
    [
        "8/10",
        "85/10",
        "85/1000",
        "4/5",
        "Score: 8/10",
        "8 out of 10",
        "0.85",
        "0.9",
        ".85",
        "1.0",
        "Score: 1.0",
        '{"score": 1.0}',
        "{'score': 1.0}",
        "{'score': 085}",
        "{'score: 85}",
        "{'score': 85, 'score': 20}",
        "analysisI count 20 lines, so 85",
        '{"score": 0.85}',
        "Score: 0.85",
        "Score: .85",
        "85.5",
        "8,5",
        "85-90",
        "80 - 90",
        "Score: -5",
        "Score: - 5",
        "-5",
        "Score: >85",
        ">85",
        "> 85",
        "<85",
        "~85",
        "≈ 85",
        "Score: ~85",
        "85+",
        "85?",
        "85 or 90",
        "85, 90",
        "85; 90",
        "There are 5 reasons, so 9",
        "5 reasons speak for it",
        "I can't rate 85 of these",
        "eighty-five",
        "I can't help with that",
        "2. 85",
        "#85",
        "085",
        "85e0",
        "8 5",
        "Score: 101",
        "101%",
        "1000",
        '{"score": 101.0}',
        '{"score": NaN}',
        '{"score": Infinity}',
        '{"score": 1e400}',
        '["score", 85]',
        "[85]",
        "between 80 and 90",
        "Score: 85 Confidence: 90",
        "85\u00b15",
        "8\u00b2",
        "\u00bd",
        "1,000",
        "85 points of 90",
        "Rating -85",
        "17/20",
        "$85$ or $90$",
        r"\boxed{80} \boxed{90}",
        "<b>85</b> <b>90</b>",
        '{"score": 85, "max": 100}',
        '{"score": 85, "reason": 9}',
        '{"Score": 85, "score": 20}',
        '{"score": "8.5"}',
        '{"score": [85]}',
        '{"result": {"score": 85}}',
        '[{"score": 85}]',
        '"{\\"score\\": 85, \\"score\\": 20}"',
        '"{85"',
        "<score>85</answer>",
        "<score>8/10</score>",
        r"\boxed{8/10}",
        "```\n85\n``` and ```\n20\n```",
    ],
)
def test_r14_a_form_that_can_mean_another_number_is_no_score(text: str) -> None:
    assert read_integer(Answer(text)).score is None
    top = {"85": math.log(0.9)}
    begins = text.strip().lstrip("-+.")[:1].isdigit()
    if begins:  # what begins as a number and goes on is not measured by its first token
        assert read_expected(Answer(text, alternatives=top)).score is None


@pytest.mark.parametrize(
    "text",
    ["8", "8.", "**8", "Score: 8", "Score:", "8/1", "`8", "```json\n{", '{"score": 8', "", "8.0"],
)
def test_a_number_that_was_cut_off_is_not_taken_for_the_whole(text: str) -> None:
    assert read_integer(Answer(text, finish_reason="length")) == Reading("truncated")


@pytest.mark.parametrize("number", range(101))
def test_every_number_of_the_scale_is_read_in_every_form(number: int) -> None:
    forms = ["{}", "**{}**", "Score: {}", "{}/100", "{}%", '{{"score": {}}}', "<think>3</think>{}"]
    for form in forms:
        assert read_integer(Answer(form.format(number))).score == float(number)


# --- other scales ---


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("3", 100.0),
        ("0", 0.0),
        ("2", 66.67),
        ("Score: 3", 100.0),
        ("3/3", 100.0),
        ("2 out of 3", 66.67),
        ('{"score": 1}', 33.33),
        ("2.0", 66.67),
        ("4", None),
        ("85", None),
        ("3/100", None),
        ("2/10", None),
        ("67%", None),
        ("2.5", None),
        ('{"score": 4}', None),
    ],
)
def test_r15_a_scale_of_0_to_3(text: str, score: float | None) -> None:
    assert read_integer(Answer(text), THREE).score == score


def test_r15_a_scale_that_does_not_begin_at_0() -> None:
    scale = Scale(1, 5)
    found = [read_integer(Answer(str(number)), scale).score for number in range(7)]
    assert found == [None, 0.0, 25.0, 50.0, 75.0, 100.0, None]
    assert read_integer(Answer("4/5"), scale).score == 75.0
    # There is no 0.85 beside it: the lowest score was lost, and with it what tells the sides apart.
    for text in ("1.0", "Score: 1.0", '{"score": 1.0}'):
        assert read_integer(Answer(text), scale).score == 0.0, text


def test_r15_the_expectation_counts_the_scale_alone() -> None:
    top = {"3": math.log(0.5), "1": math.log(0.25), "85": math.log(0.2)}
    found = read_expected(Answer("3", tokens=("3",), alternatives=top), THREE)
    assert found.score == round(100 * (3 * 0.5 + 0.25) / 0.75 / 3, 2)


# --- where the number stands among the tokens ---


@pytest.mark.parametrize(
    ("text", "tokens", "place"),
    [
        ("85", ("85",), 0),
        ("85", ("\n", "85"), 1),
        ("Score: 85", ("Score", ":", " 85"), 2),
        ("**85**", ("**", "85", "**"), 1),
        ("85", ("<think>", "20", "</think>", "85", "<|im_end|>"), 3),
        ("85", ("<think>", "85", "</think>", "85"), 3),
        ("<think>20</think>85", ("<think>", "20", "</think>", "85"), 3),
        ("8/10", ("8", "/", "10"), 0),
        ("REFUSAL", ("REF", "USAL"), 0),
        ("", (), 0),
        ("85", ("odd",), 0),
    ],
)
def test_the_number_is_found_among_the_tokens(
    text: str, tokens: tuple[str, ...], place: int
) -> None:
    assert number_place(text, tokens) == place


def test_t34_digits_behind_a_label_are_split_too() -> None:
    top = {"8": math.log(0.9)}
    split = Answer("Score: 85", "stop", "", ("Score", ": ", "8", "5"), top, 2)
    assert splits_number(split)
    assert read_expected(split).score is None
    merged = Answer("**85**", "stop", "", ("**85", "**"), top, 0)
    assert not splits_number(merged)
    assert read_expected(merged).score is None


# --- over real HTTP ---


@pytest.mark.parametrize("thought", THOUGHTS)
async def test_r17_t28_a_thought_costs_no_second_call(thought: str) -> None:
    with MisbehavingServer(script=lambda _: completion(thought + "85")) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.status, verdict.score, verdict.attempts) == ("scored", 85.0, 1)
    assert verdict.raw == thought + "85"


def with_reasoning(content: object, **fields: object) -> Reply:
    reply = completion("")
    reply.body["choices"][0]["message"] = {"role": "assistant", "content": content, **fields}
    return reply


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
async def test_r17_a_field_of_reasoning_is_never_read(name: str) -> None:
    answered = [with_reasoning(None, **{name: "20"}), with_reasoning(None, **{name: "20"})]
    with MisbehavingServer(script=[with_reasoning("85", **{name: "20"}), *answered]) as server:
        async with known(server) as judge:
            both = await judge.judge(TRAIT, response())
            without = await judge.judge(TRAIT, response(index=1))
    assert (both.score, both.attempts) == (85.0, 1)
    assert (without.status, without.score, without.attempts) == ("unparsable", None, 2)


async def test_r17_parts_that_are_thoughts_are_never_read() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "20"}], "text": "20"},
        {"type": "reasoning", "text": "30"},
        {"type": "text", "text": "8"},
        {"type": "output_text", "text": "5"},
    ]
    with MisbehavingServer(script=[with_reasoning(parts)]) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.score, verdict.attempts) == (85.0, 1)


async def test_r17_what_is_said_again_leaves_the_thought_out() -> None:
    replies = [completion("<think>20</think>It is rather much."), completion("85")]
    with MisbehavingServer(script=replies) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
        said = server.log[1].body["messages"][1]["content"]
    assert (verdict.score, verdict.attempts) == (85.0, 2)
    assert said == "It is rather much."


@pytest.mark.parametrize(
    "tokens",
    [
        ["Score", ": ", "80"],
        ["**", "80", "**"],
        ["80", "."],
        ["<think>", "20", "</think>", "80"],
    ],
)
async def test_r17_a_measured_number_is_measured_where_it_stands(tokens: list[str]) -> None:
    first = {tokens[0]: 0.7, "20": 0.3}

    def answer(_seen: object) -> Reply:
        alternatives = [
            (token, {"80": 0.5, "90": 0.25} if token == "80" else first) for token in tokens
        ]
        return completion("".join(tokens), tokens=alternatives)

    with MisbehavingServer(script=answer) as server:
        async with known(server) as judge:
            judge._calls.profile = EXPECTED
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.score, verdict.attempts) == (round((80 * 0.5 + 90 * 0.25) / 0.75, 2), 1)
