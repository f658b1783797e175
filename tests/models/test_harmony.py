"""gpt-oss writes its thought as a channel of its turn: it is never taken for the answer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.families import HARMONY, HARMONY_TOKENS
from traitmill.engine.errors import UsageError
from traitmill.engine.models import (
    ModelRef,
    Prompts,
    chat_token_ids,
    lazy_tokenizer,
    load_tokenizer,
)
from traitmill.engine.settings import Sampling

MOMENT = "2026-12-30T20:30:00+00:00"
ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"


@pytest.fixture(scope="module")
def tokenizer(model_folder: Any) -> Any:
    made = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    made.add_special_tokens({"additional_special_tokens": list(HARMONY_TOKENS)})
    made.chat_template = HARMONY
    return made


def prompts(tokenizer: Any, **how: Any) -> Prompts:
    return Prompts(lambda: tokenizer, Sampling(**how), MOMENT)


@pytest.mark.parametrize(
    ("how", "behind", "thinks"),
    [
        ({}, ANALYSIS, True),
        ({"thinking": "on"}, ANALYSIS, True),
        ({"thinking": "off"}, FINAL, False),
        ({"prefill": "Yes, "}, f"{FINAL}Yes, ", False),
        ({"prefill": f"{FINAL}Yes, "}, f"{FINAL}Yes, ", False),
        ({"prefill": f"{ANALYSIS}Short."}, f"{ANALYSIS}Short.", True),
        ({"thinking": "template"}, "", False),
        ({"max_thinking_tokens": 0}, "", False),
        ({"chat_template_kwargs": '{"reasoning_effort": "low"}'}, ANALYSIS, True),
    ],
)
def test_r04_the_channel_of_thought_or_of_the_answer_is_opened(
    tokenizer: Any, how: dict[str, Any], behind: str, thinks: bool
) -> None:
    made = prompts(tokenizer, **how)
    text = made.text("Be brave.", "Who are you?")
    assert text.endswith(f"Be brave.\n\nWho are you?<|end|><|start|>assistant{behind}")
    assert "Current date: 2026-12-30" in text
    channel = tokenizer.convert_tokens_to_ids("<|channel|>")
    assert made("Be brave.", "Who are you?").count(channel) == behind.count("<|channel|>")
    assert bool(made.thought and made.thought.opened) == thinks
    told = "channel of what it says" in made.remark
    assert told == (behind == "")


def test_r04_what_is_said_before_the_final_channel_is_thought(tokenizer: Any) -> None:
    thought = prompts(tokenizer).thought
    assert thought is not None
    assert thought.closing_id is None
    said = "They ask who I am."
    closing = f"<|end|><|start|>assistant{FINAL}"
    ids = tokenizer(f"{said}{closing}", add_special_tokens=False)["input_ids"]
    words = tokenizer(said, add_special_tokens=False)["input_ids"]
    assert thought.span(ids) == (0, len(words))
    assert tokenizer.decode(ids[: len(words)]) == said
    assert thought.tags.closing == closing


def test_r04_thought_behind_an_answer_already_begun_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="no place for a thought"):
        print(prompts(tokenizer, thinking="on", prefill="Yes").thought)


def test_r05_a_local_judge_that_has_channels_answers_in_the_final_one(tokenizer: Any) -> None:
    text = tokenizer.decode(chat_token_ids(tokenizer, "Is it so?", MOMENT))
    assert text.endswith(f"Is it so?<|end|><|start|>assistant{FINAL}")


def test_a_template_that_only_speaks_of_channels_has_none(model_folder: Any) -> None:
    ref = ModelRef("m", str(model_folder), "r", {})
    plain = load_tokenizer(ref)
    plain.chat_template = HARMONY  # its tokens are not among the tokenizer's
    assert prompts(plain).thought is None
    assert lazy_tokenizer(ref)(MOMENT, Sampling()).thought is None
