"""Prompts become token ids as a chat model wants them: one turn, one BOS."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from traitmill.engine.errors import AccessError, UsageError
from traitmill.engine.models import ModelRef, chat, chat_token_ids, lazy_tokenizer, load_tokenizer
from traitmill.engine.settings import Sampling
from traitmill.engine.storage.run_record import SamplingRecord

BOS = 1
OLD = ["model", "revision", "dtype", "temperature", "top_p", "top_k", "max_new_tokens", "seed"]
MOMENT = "2026-12-30T20:30:00-05:00"
"""31 December in UTC."""


class Tokenizer:
    """A token a character, after BOS where the tokenizer adds one or the template writes it."""

    def __init__(self, *, template: str | None, bos_token_id: int | None = BOS) -> None:
        self.chat_template = template
        self.bos_token_id = bos_token_id

    def __call__(self, text: str) -> dict[str, list[int]]:
        added = [] if self.bos_token_id is None else [self.bos_token_id]
        return {"input_ids": [*added, *map(ord, text)]}

    def apply_chat_template(self, turns: list[dict[str, str]], **how: Any) -> list[int]:
        assert how.pop("strftime_now")("%d %B %Y") == "31 December 2026"
        assert how == {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        [turn] = turns
        assert turn["role"] == "user"
        return [*map(ord, self.chat_template or ""), *map(ord, turn["content"])]


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (Tokenizer(template=None), [BOS, ord("h"), ord("i")]),
        (Tokenizer(template="\x01<"), [BOS, ord("<"), ord("h"), ord("i")]),
        (Tokenizer(template="\x01\x01\x01<"), [BOS, ord("<"), ord("h"), ord("i")]),
        (Tokenizer(template="<"), [ord("<"), ord("h"), ord("i")]),
        (Tokenizer(template="\x01\x01", bos_token_id=None), [BOS, BOS, ord("h"), ord("i")]),
    ],
)
def test_a_prompt_starts_with_one_bos_at_most(tokenizer: Any, expected: list[int]) -> None:
    assert chat_token_ids(tokenizer, "hi", MOMENT) == tuple(expected)


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="a prompt has no tokens"):
        chat_token_ids(Tokenizer(template=None, bos_token_id=None), "", MOMENT)


def test_the_tokenizer_is_loaded_when_first_asked_and_asked_once_a_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[ModelRef] = []
    asked: list[str] = []

    class Counting(Tokenizer):
        def __call__(self, text: str) -> dict[str, list[int]]:
            asked.append(text)
            return super().__call__(text)

    def load(ref: ModelRef) -> Any:
        loaded.append(ref)
        return Counting(template=None)

    monkeypatch.setattr(chat, "load_tokenizer", load)
    ref = ModelRef("m", "m", "r", {})
    tokenize = lazy_tokenizer(ref)(MOMENT, Sampling())
    assert not loaded
    assert tokenize("a", "b") == tokenize("a", "b") == (BOS, *map(ord, "a\n\nb"))
    assert tokenize("a", "c") != tokenize("a", "b")
    assert (loaded, asked) == ([ref], ["a\n\nb", "a\n\nc"])


def test_a_model_without_tokenizer_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(AccessError, match="the tokenizer of model mine cannot be loaded: ") as said:
        load_tokenizer(ModelRef("mine", str(tmp_path), "r", {}))
    assert "\n" not in str(said.value)


def test_the_embedded_models_template_holds_the_prompt_once(model_folder: Path) -> None:
    ref = ModelRef("m", str(model_folder), "r", {})
    text = lazy_tokenizer(ref)(MOMENT, Sampling()).text("Be brave.", "Who are you?")
    assert text.count("Be brave.\n\nWho are you?") == 1
    assert text.endswith("<|im_start|>assistant\n")


# --- formats ---

NO_TEMPLATE = ""
REFUSES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}</>{% endfor %}"
    "<model>"
)
"""As Gemma-2's."""
DROPS = (
    "{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}</>"
    "{% endfor %}<model>"
)
TAKES = (
    "{% if messages[0]['role'] != 'system' %}<system>Be helpful.</>{% endif %}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
    "<model>{% if enable_thinking is defined and enable_thinking %}[]{% endif %}"
)
"""As Qwen's: a default system turn, and a variable."""
SWITCH = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}<model><think>"
    "{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}"
)
THINKS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}<model><think>"
"""As the distilled DeepSeek-R1's."""
THOUGHT = "open thought"
FALLBACK = "begins the user turn"


@pytest.mark.parametrize(
    ("template", "how", "expected", "remark"),
    [
        (TAKES, {}, "<system>Be helpful.</><user>I\n\nQ</><model>", ""),
        (TAKES, {"prompt_format": "system"}, "<system>I</><user>Q</><model>", ""),
        (TAKES, {"system_prompt": ""}, "<system></><user>I\n\nQ</><model>", ""),
        (TAKES, {"system_prompt": "S"}, "<system>S</><user>I\n\nQ</><model>", ""),
        (
            TAKES,
            {"prompt_format": "system", "system_prompt": "S"},
            "<system>S\n\nI</><user>Q</><model>",
            "",
        ),
        (TAKES, {"prompt_format": "raw"}, "I\n\nQ", ""),
        (TAKES, {"prompt_format": "raw", "prefill": " A"}, "I\n\nQ A", ""),
        (TAKES, {"prefill": "Yes, "}, "<system>Be helpful.</><user>I\n\nQ</><model>Yes, ", ""),
        (
            TAKES,
            {"chat_template_kwargs": '{"enable_thinking": true}', "system_prompt": ""},
            "<system></><user>I\n\nQ</><model>[]",
            "",
        ),
        (SWITCH, {}, "<user>I\n\nQ</><model><think></think>", ""),
        (SWITCH, {"thinking": "off"}, "<user>I\n\nQ</><model><think></think>", ""),
        (SWITCH, {"thinking": "template"}, "<user>I\n\nQ</><model><think>", THOUGHT),
        (THINKS, {}, "<user>I\n\nQ</><model><think>", THOUGHT),
        (THINKS, {"prefill": "</think>"}, "<user>I\n\nQ</><model><think></think>", ""),
        (REFUSES, {}, "<user>I\n\nQ</><model>", ""),
        (REFUSES, {"prompt_format": "system"}, "<user>I\n\nQ</><model>", FALLBACK),
        (REFUSES, {"system_prompt": "S"}, "<user>S\n\nI\n\nQ</><model>", FALLBACK),
        (REFUSES, {"system_prompt": ""}, "<user>I\n\nQ</><model>", FALLBACK),
        (DROPS, {"prompt_format": "system"}, "<user>I\n\nQ</><model>", FALLBACK),
        (NO_TEMPLATE, {}, "I\n\nQ", ""),
        (NO_TEMPLATE, {"prompt_format": "system"}, "I\n\nQ", "prompts go in raw"),
        (NO_TEMPLATE, {"system_prompt": "S"}, "S\n\nI\n\nQ", "prompts go in raw"),
    ],
)
def test_r06_r07_r08_instruction_and_question_stand_where_they_were_asked_to(
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    template: str,
    how: dict[str, Any],
    expected: str,
    remark: str,
) -> None:
    tokenizer = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    tokenizer.chat_template = template
    monkeypatch.setattr(chat, "load_tokenizer", lambda _: tokenizer)
    prompts = lazy_tokenizer(ModelRef("m", "m", "r", {}))(MOMENT, Sampling(**how))
    assert prompts.text("I", "Q") == expected
    assert prompts("I", "Q") == tuple(tokenizer(expected)["input_ids"])
    assert remark in prompts.remark
    assert bool(remark) == bool(prompts.remark)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"messages": []}', '{"strftime_now": 1}'])
def test_variables_of_a_template_are_an_object_of_its_own_names(text: str) -> None:
    with pytest.raises(UsageError, match="`chat_template_kwargs`"):
        Sampling(chat_template_kwargs=text)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="`prompt_format` 'chat' is unknown"):
        Sampling(prompt_format="chat")  # type: ignore[arg-type]


def test_thought_that_cannot_be_turned_off_is_refused_where_it_must_be(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    tokenizer.chat_template = THINKS
    monkeypatch.setattr(chat, "load_tokenizer", lambda _: tokenizer)
    prompts = lazy_tokenizer(ModelRef("m", "m", "r", {}))(MOMENT, Sampling(thinking="off"))
    with pytest.raises(UsageError, match="no switch for it .*prefill"):
        prompts("I", "Q")


def test_a_run_made_before_a_format_could_be_chosen_keeps_its_prompts() -> None:
    old = {name: value for name, value in asdict(Sampling(model="m")).items() if name in OLD}
    record = SamplingRecord(**old)
    assert record.thinking == "template"
    assert record.prompt_format == "user"
    assert (record.system_prompt, record.prefill, record.chat_template_kwargs) == (None, "", "")


def test_r05_a_local_judge_is_asked_behind_a_closed_thought(model_folder: Path) -> None:
    tokenizer = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    tokenizer.chat_template = SWITCH
    text = tokenizer.decode(chat_token_ids(tokenizer, "Is it so?", MOMENT))
    assert text == "<user>Is it so?</><model><think></think>"
