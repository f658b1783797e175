"""Whose words each token is, in five families of chat templates, against the vocabulary alone."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.support import talkers
from traitmill.engine.errors import AccessError, UsageError
from traitmill.engine.models import Conversations, Turn, chat_token_ids

MOMENT = "2026-12-30T20:30:00-05:00"
SYSTEM = "You are a poet of the sea."
TURNS = [
    Turn("user", "Write a poem, please."),
    Turn("assistant", "The grey rain sings…\n\nto the hills ✿"),
    Turn("user", "What is the capital of France?"),
    Turn("assistant", "It is Paris.\n"),
]


@pytest.fixture(scope="module", params=sorted(talkers.TEMPLATES))
def tokenizer(request):
    return talkers.tokenizer(request.param)


def covering(tokenizer, ids, words: str) -> tuple[int, int]:
    """The tokens whose bytes meet the only place of some words, from the vocabulary alone."""
    parts = talkers.pieces(tokenizer, ids)
    whole, wanted = b"".join(parts), words.strip().encode()
    assert whole.count(wanted) == 1
    start = whole.index(wanted)
    ends = [sum(map(len, parts[: i + 1])) for i in range(len(parts))]
    meeting = [
        i for i, end in enumerate(ends) if end > start and end - len(parts[i]) < start + len(wanted)
    ]
    return meeting[0], meeting[-1] + 1


def assert_spans(tokenizer, turns, found) -> None:
    for turn, (start, stop) in zip(turns, found.spans, strict=True):
        expected = covering(tokenizer, found.token_ids, turn.content)
        trimmed = len(turn.content) - len(turn.content.strip())
        assert start == expected[0], (turn, talkers.pieces(tokenizer, found.token_ids))
        assert expected[1] <= stop <= expected[1] + trimmed, turn


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_turns_words_are_found(tokenizer, system, count):
    turns = [Turn("system", SYSTEM)] * system + TURNS[:count]
    found = Conversations(tokenizer, MOMENT)(turns)
    assert_spans(tokenizer, turns, found)
    bos = tokenizer.bos_token_id
    assert found.token_ids[:2] != (bos, bos)


def test_the_prompt_of_a_reply_is_the_one_that_is_generated_from(tokenizer):
    found = Conversations(tokenizer, MOMENT)(TURNS[:2])
    prompt = chat_token_ids(tokenizer, TURNS[0].content, MOMENT)
    reply = tokenizer(TURNS[1].content, add_special_tokens=False)["input_ids"]
    assert found.token_ids == (*prompt, *reply)
    assert found.spans[1] == (len(prompt), len(prompt) + len(reply))


def test_words_that_the_template_writes_too_are_not_mistaken(tokenizer):
    turns = [Turn("user", "user"), Turn("assistant", "assistant"), Turn("user", "model")]
    found = Conversations(tokenizer, MOMENT)(turns)
    for turn, (start, stop) in zip(turns, found.spans, strict=True):
        said = b"".join(talkers.pieces(tokenizer, found.token_ids[start:stop])).decode()
        assert said.strip() == turn.content
    start = found.spans[1][0]
    before = b"".join(talkers.pieces(tokenizer, found.token_ids[:start])).decode()
    said = [{"role": "user", "content": "user"}]
    how = {"tokenize": False, "add_generation_prompt": True}
    moment = datetime.fromisoformat(MOMENT).astimezone(UTC)
    written = tokenizer.apply_chat_template(said, strftime_now=moment.strftime, **how)
    assert before.strip() == written.strip()


def test_a_lone_text_of_the_assistant_is_read_as_the_answer_to_an_empty_turn(tokenizer):
    lone = Conversations(tokenizer, MOMENT)(TURNS[1:2])
    behind = Conversations(tokenizer, MOMENT)([Turn("user", ""), TURNS[1]])
    assert lone.token_ids == behind.token_ids
    assert lone.spans == behind.spans[1:]
    assert (lone.unasked, lone.bare) == (True, False)
    assert lone.spans[0][0] > 1


def test_a_lone_text_that_a_template_refuses_stands_raw():
    tokenizer = talkers.tokenizer("chatml")
    tokenizer.chat_template = (
        "{% if not messages[0].content %}{{ raise_exception('say something') }}{% endif %}"
        + talkers.CHATML
    )
    words = TURNS[3].content
    lone = Conversations(tokenizer, MOMENT)([Turn("assistant", words)])
    assert lone.token_ids == tuple(tokenizer(words)["input_ids"])
    assert lone.spans == ((0, len(lone.token_ids)),)
    assert (lone.unasked, lone.bare) == (False, True)
    asked = Conversations(tokenizer, MOMENT)(TURNS[:1])
    assert asked.spans[0][0] > 0, "what the template takes is not raw"


def test_without_a_template_turns_stand_raw():
    tokenizer = talkers.tokenizer("chatml")
    tokenizer.chat_template = None
    lone = Conversations(tokenizer, MOMENT)([Turn("assistant", "It is Paris.")])
    assert lone.token_ids == tuple(tokenizer("It is Paris.")["input_ids"])
    turns = [Turn("system", SYSTEM), *TURNS[:2]]
    found = Conversations(tokenizer, MOMENT)(turns)
    said = b"".join(talkers.pieces(tokenizer, found.token_ids)).decode()
    assert said == f"{SYSTEM}\n\n{TURNS[0].content}{TURNS[1].content}"
    assert_spans(tokenizer, turns, found)


def test_a_thought_that_the_template_drops_is_no_part_of_a_turn():
    tokenizer = talkers.tokenizer("chatml")
    tokenizer.chat_template = talkers.CHATML.replace(
        "{{ m.content }}", "{{ m.content.split('</think>')[-1] | trim }}"
    )
    turns = [TURNS[0], Turn("assistant", "<think>hm</think>\n\nIt is rain."), TURNS[2]]
    found = Conversations(tokenizer, MOMENT)(turns)
    start, stop = found.spans[1]
    said = b"".join(talkers.pieces(tokenizer, found.token_ids[start:stop])).decode()
    assert said == "It is rain."


def test_a_reply_stands_behind_the_thought_that_a_template_opens():
    tokenizer = talkers.tokenizer("chatml")
    opened = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        + opened
    )
    turns = [Turn("user", "What falls?"), Turn("assistant", "It is rain.")]
    found = Conversations(tokenizer, MOMENT)(turns)
    said = b"".join(talkers.pieces(tokenizer, found.token_ids)).decode()
    assert said.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nIt is rain.")
    start, stop = found.spans[1]
    words = b"".join(talkers.pieces(tokenizer, found.token_ids[start:stop])).decode()
    assert words == "It is rain."


TURN_BY_TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ SAID }}<|im_end|>\n{% endfor %}"
ANSWER = "m.content.split('</think>')[-1].lstrip('\\n')"
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
THOUGHTFUL = {
    "opened by the template": "<think>\n",
    "opened by the model": "",
    "with a switch": "{% if not (enable_thinking | default(true)) %}<think>\n\n</think>\n\n{% endif %}",
}


def thoughtful(kind: str):
    tokenizer = talkers.tokenizer("chatml")
    opening = OPENING.replace("{% endif %}", THOUGHTFUL[kind] + "{% endif %}")
    tokenizer.chat_template = TURN_BY_TURN.replace("SAID", ANSWER) + opening
    return tokenizer


@pytest.mark.parametrize("kind", THOUGHTFUL)
@pytest.mark.parametrize("begun", ["<think>\n", "\n<think>\n", ""])
def test_a_reply_with_its_own_thought_stands_behind_no_other(kind: str, begun: str):
    tokenizer = thoughtful(kind)
    turns = [Turn("user", "What falls?"), Turn("assistant", begun + "hm\n</think>\n\nIt is rain.")]
    found = Conversations(tokenizer, MOMENT)(turns)
    said = b"".join(talkers.pieces(tokenizer, found.token_ids)).decode()
    behind = said.partition("<|im_start|>assistant\n")[2]
    if not begun and kind != "opened by the template":
        assert behind == "hm\n</think>\n\nIt is rain."
    else:
        assert behind.lstrip() == "<think>\nhm\n</think>\n\nIt is rain."
    start, stop = found.spans[1]
    assert (
        b"".join(talkers.pieces(tokenizer, found.token_ids[start:stop])).decode() == "It is rain."
    )


@pytest.mark.parametrize("kind", THOUGHTFUL)
def test_a_thought_without_an_end_says_nothing(kind: str):
    turns = [Turn("user", "What falls?"), Turn("assistant", "<think>\nhm")]
    found = Conversations(thoughtful(kind), MOMENT)(turns)
    start, stop = found.spans[1]
    assert start == stop == len(found.token_ids)


@pytest.mark.parametrize("end", ["\n", "  ", "\n\n", ""])
@pytest.mark.parametrize("gap", ["\n\n", "\n", ""])
@pytest.mark.parametrize("strip", [".lstrip('\\n')", ".lstrip()", ".strip()", ".rstrip()", ""])
def test_an_answer_behind_a_thought_is_found_as_a_template_trims_it(strip: str, gap: str, end: str):
    tokenizer = thoughtful("opened by the model")
    shown = f"m.content.split('</think>')[-1]{strip}"
    tokenizer.chat_template = TURN_BY_TURN.replace("SAID", shown) + OPENING
    answer = Turn("assistant", f"<think>\nhm\n</think>{gap}It is rain.{end}")
    found = Conversations(tokenizer, MOMENT)([Turn("user", "What?"), answer, Turn("user", "And?")])
    start, stop = found.spans[1]
    said = b"".join(talkers.pieces(tokenizer, found.token_ids[start:stop])).decode()
    assert said.strip() == "It is rain."


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (talkers.CHATML.replace("m.content", "m.content | upper"), "does not show turn 1"),
        (talkers.CHATML.replace("m.content", "m.content + m.content"), "does not show turn 1"),
        (
            talkers.CHATML.replace("m.content", "m.content.replace('poem', 'song')"),
            "shows turn 1 \\(user\\) in other words",
        ),
    ],
)
def test_words_that_a_template_changes_are_refused(template, said):
    tokenizer = talkers.tokenizer("chatml")
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=said):
        Conversations(tokenizer, MOMENT)([*TURNS[:1], TURNS[1]])


def test_turns_that_a_template_refuses_are_said():
    with pytest.raises(AccessError, match="roles must alternate"):
        Conversations(talkers.tokenizer("gemma"), MOMENT)([TURNS[0], TURNS[2], TURNS[3]])


def test_special_tokens_that_words_spell_are_words(tokenizer):
    """They neither end a turn nor count as the template's own."""
    mark = next(token for token in tokenizer.all_special_tokens if token not in ("<s>", "<unk>"))
    if mark.startswith("<0x"):
        mark = "<end_of_turn>"
    turns = [Turn("user", f"Say {mark} now."), Turn("assistant", f"No {mark} here."), TURNS[2]]
    number = tokenizer.convert_tokens_to_ids(mark)
    for count in (1, 2, 3):
        found = Conversations(tokenizer, MOMENT)(turns[:count])
        for turn, (start, stop) in zip(turns, found.spans, strict=False):
            ids = found.token_ids[start:stop]
            assert number not in ids
            said = b"".join(talkers.pieces(tokenizer, ids)).decode()
            assert said.replace(" ", "") == turn.content.replace(" ", "")
