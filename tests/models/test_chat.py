"""Prompts become token ids as a chat model wants them: one turn, one BOS."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import talkers
from traitmill.engine.errors import AccessError, UsageError
from traitmill.engine.models import (
    ModelRef,
    Prompts,
    Thought,
    chat,
    chat_token_ids,
    is_chat,
    lazy_tokenizer,
    load_tokenizer,
)
from traitmill.engine.models.hub import Adapter
from traitmill.engine.models.thought import Tags
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

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        added = []
        if add_special_tokens and self.bos_token_id is not None:
            added = [self.bos_token_id]
        return {"input_ids": [*added, *map(ord, text)]}

    def apply_chat_template(self, turns: list[dict[str, str]], **how: Any) -> list[int]:
        assert how.pop("strftime_now")("%d %B %Y") == "31 December 2026"
        if not how["tokenize"]:
            return turns[-1]["content"]  # type: ignore[return-value]
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
def test_r09_a_prompt_starts_with_one_bos_at_most(tokenizer: Any, expected: list[int]) -> None:
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
        def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
            if add_special_tokens:
                asked.append(text)
            return super().__call__(text, add_special_tokens=add_special_tokens)

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


def test_a_template_that_only_the_processors_file_holds_is_taken(tmp_path: Path) -> None:
    made = talkers.tokenizer("chatml")
    made.chat_template = None
    made.save_pretrained(tmp_path)
    ref = ModelRef("mine", str(tmp_path), "r", {})
    assert not is_chat(load_tokenizer(ref))
    older = tmp_path / "chat_template.json"
    older.write_text(json.dumps({"chat_template": talkers.CHATML}))
    assert load_tokenizer(ref).chat_template == talkers.CHATML
    (tmp_path / "chat_template.jinja").write_text(talkers.ZEPHYR)
    assert load_tokenizer(ref).chat_template == talkers.ZEPHYR
    (tmp_path / "chat_template.jinja").unlink()
    named = {"default": talkers.CHATML, "rag": talkers.ZEPHYR}
    listed = [{"name": name, "template": template} for name, template in named.items()]
    for several in (named, listed):
        older.write_text(json.dumps({"chat_template": several}))
        assert load_tokenizer(ref).chat_template == talkers.CHATML
    for none in (None, {"rag": talkers.ZEPHYR}):
        older.write_text(json.dumps({"chat_template": none}))
        assert not is_chat(load_tokenizer(ref))
    for damaged in ("{", "[]"):
        older.write_text(damaged)
        with pytest.raises(AccessError, match="chat_template.json of .* is damaged"):
            load_tokenizer(ref)


def test_an_adapters_template_is_taken_where_its_base_has_none(tmp_path: Path) -> None:
    made, folder = talkers.tokenizer("chatml"), tmp_path / "adapter"
    made.save_pretrained(folder)
    made.chat_template = None
    made.save_pretrained(tmp_path)
    base = ModelRef("mine", str(tmp_path), "r", {})
    adapter = Adapter("a", str(folder), str(folder), "r", {}, {})
    assert load_tokenizer(replace(base, adapter=adapter)).chat_template == talkers.CHATML
    assert not is_chat(load_tokenizer(base))
    (folder / "chat_template.jinja").unlink()
    assert not is_chat(load_tokenizer(replace(base, adapter=adapter)))
    for text, config in (("", {}), (talkers.ZEPHYR, {"chat_template": talkers.ZEPHYR})):
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        found = load_tokenizer(replace(base, adapter=adapter))
        assert (found.chat_template or "") == text
    (tmp_path / "chat_template.jinja").write_text(talkers.CHATML)
    assert load_tokenizer(replace(base, adapter=adapter)).chat_template == talkers.CHATML


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
EITHER = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'].split('</think>')[-1] }}</>"
    "{% endfor %}<model>{% if not (thinking | default(false) or enable_thinking | default(false)) %}"
    "<think></think>{% endif %}"
)
"""Two variables turn thought on."""
WORDED = (
    "{% set ns = namespace(off=false) %}{% for m in messages %}"
    "{% if '/no_think' in m['content'] %}{% set ns.off = true %}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'].split('</think>')[-1] }}</>{% endfor %}<model>"
    "{% if ns.off %}<think></think>{% endif %}"
)
"""Words of the system turn turn thought off, as in Nemotron Nano."""
BOTH = (
    "{% set ns = namespace(on=enable_thinking | default(true)) %}{% for m in messages %}"
    "{% if m['role'] == 'system' and '/think' in m['content'] %}{% set ns.on = true %}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'].split('</think>')[-1] }}</>{% endfor %}<model>"
    "{% if not ns.on %}<think></think>{% endif %}"
)
"""They stand above the variable, as in SmolLM3."""
THINKS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}<model><think>"
"""As the distilled DeepSeek-R1's."""
WANTS = (
    "{% if messages[0]['role'] != 'system' %}{{ raise_exception('first a system turn') }}{% endif %}"
    + TAKES
)
"""One that takes no user turn alone."""
WANTS_SILENCE = WANTS.replace("[]", "<think>")
THOUGHT = "open thought"
APART = "the model thinks first, up to 2048 tokens"
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
        (SWITCH, {"thinking": "on"}, "<user>I\n\nQ</><model><think>", APART),
        (THINKS, {}, "<user>I\n\nQ</><model><think>", APART),
        (THINKS, {"max_thinking_tokens": 0}, "<user>I\n\nQ</><model><think>", THOUGHT),
        (THINKS, {"prefill": "</think>"}, "<user>I\n\nQ</><model><think></think>", ""),
        (REFUSES, {}, "<user>I\n\nQ</><model>", ""),
        (REFUSES, {"prompt_format": "system"}, "<user>I\n\nQ</><model>", FALLBACK),
        (REFUSES, {"system_prompt": "S"}, "<user>S\n\nI\n\nQ</><model>", FALLBACK),
        (REFUSES, {"system_prompt": ""}, "<user>I\n\nQ</><model>", FALLBACK),
        (DROPS, {"prompt_format": "system"}, "<user>I\n\nQ</><model>", FALLBACK),
        (WANTS, {"prompt_format": "system"}, "<system>I</><user>Q</><model>", ""),
        (WANTS, {"system_prompt": ""}, "<system></><user>I\n\nQ</><model>", ""),
        (
            WANTS_SILENCE,
            {"prompt_format": "system", "thinking": "template"},
            "<system>I</><user>Q</><model>",
            "",
        ),
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


def test_r08_a_template_that_wants_a_system_turn_says_how_to_give_one(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    tokenizer.chat_template = WANTS
    monkeypatch.setattr(chat, "load_tokenizer", lambda _: tokenizer)
    prompts = lazy_tokenizer(ModelRef("m", "m", "r", {}))(MOMENT, Sampling())
    with pytest.raises(UsageError, match="without a system turn .* `prompt_format` system, or"):
        prompts("I", "Q")
    asked = chat_token_ids(tokenizer, "Is it?", MOMENT)
    assert tokenizer.decode(asked) == "<system></><user>Is it?</><model>"


def test_a_token_that_the_model_does_not_know_is_refused(model_folder: Path) -> None:
    """Special tokens added to a tokenizer, and the embeddings left as they were."""
    last = max(load_tokenizer(ModelRef("m", str(model_folder), "r", {}))("I\n\nQ")["input_ids"])

    def prompts(known: int) -> Prompts:
        ref = ModelRef("m", str(model_folder), "r", {"vocab_size": known})
        return lazy_tokenizer(ref)(MOMENT, Sampling(prompt_format="raw"))

    assert max(prompts(last + 1)("I", "Q")) == last
    with pytest.raises(AccessError, match=rf"writes token {last}, and the model knows {last} "):
        prompts(last)("I", "Q")


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
    assert (record.thinking, record.max_thinking_tokens) == ("template", 0)
    assert record.prompt_format == "user"
    assert (record.system_prompt, record.prefill, record.chat_template_kwargs) == (None, "", "")


def test_the_token_that_ends_a_turn_is_the_templates(model_folder: Path) -> None:
    """Fine-tunes of base models name another as their eos, and would go on into made-up turns."""
    ref = ModelRef("m", str(model_folder), "r", {})
    tokenizer = load_tokenizer(ref)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert lazy_tokenizer(ref)(MOMENT, Sampling()).ends == (end,)
    assert lazy_tokenizer(ref)(MOMENT, Sampling(prompt_format="raw")).ends == ()
    assert lazy_tokenizer(ref)(MOMENT, Sampling(prefill="Well,", system_prompt="")).ends == (end,)


@pytest.mark.parametrize(
    ("asked", "begins"),
    [
        ({}, "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "),
        ({"system_prompt": ""}, "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nI\n\nQ"),
        ({"system_prompt": "Be."}, "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nI\n\nQ"),
    ],
)
def test_r07_a_default_system_prompt_is_shown_and_can_be_emptied(
    model_folder: Path, asked: dict[str, Any], begins: str
) -> None:
    ref = ModelRef("m", str(model_folder), "r", {})
    assert lazy_tokenizer(ref)(MOMENT, Sampling(**asked)).text("I", "Q").startswith(begins)


def test_r05_a_local_judge_is_asked_behind_a_closed_thought(model_folder: Path) -> None:
    tokenizer = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    tokenizer.chat_template = SWITCH
    text = tokenizer.decode(chat_token_ids(tokenizer, "Is it so?", MOMENT))
    assert text == "<user>Is it so?</><model><think></think>"


# --- thoughts ---

STRIPS = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'].split('</think>')[-1] }}</>"
    "{% endfor %}<model>"
)
"""Leaves it to the model to begin a thought, as the first DeepSeek-R1's."""
QWEN = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'].split('</think>')[-1] }}</>"
    "{% endfor %}<model>{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
"""As Qwen-3's: the switch shuts a thought, and without it the model begins one."""
SPEAKS = THINKS.replace("<model>", "Do your thinking first.<model>")
"""Names a switch, but to the model."""
MAGISTRAL = THINKS.replace("<think>", "[THINK]")


@pytest.mark.parametrize(
    ("template", "how", "closing", "opened"),
    [
        (THINKS, {}, "</think>", True),
        (THINKS, {"thinking": "on"}, "</think>", True),
        (THINKS, {"prefill": " Okay"}, "</think>", True),
        (THINKS, {"thinking": "template"}, None, False),
        (THINKS, {"prefill": "</think>"}, None, False),
        (THINKS, {"prompt_format": "raw"}, None, False),
        (THINKS, {"max_thinking_tokens": 0}, None, False),
        (MAGISTRAL, {}, "[/THINK]", True),
        (SPEAKS, {}, "</think>", True),
        (STRIPS, {}, "</think>", False),
        (STRIPS, {"prefill": "Yes, "}, None, False),
        (SWITCH, {}, None, False),
        (SWITCH, {"thinking": "on"}, "</think>", True),
        (QWEN, {}, None, False),
        (QWEN, {"thinking": "on"}, "</think>", False),
        (QWEN, {"chat_template_kwargs": '{"enable_thinking": true}'}, "</think>", False),
        (QWEN, {"chat_template_kwargs": '{"enable_thinking": false}'}, None, False),
        (QWEN, {"chat_template_kwargs": '{"thinking": true}'}, None, False),
        (STRIPS, {"chat_template_kwargs": '{"enable_thinking": false}'}, "</think>", False),
        (EITHER, {"chat_template_kwargs": '{"thinking": true}'}, "</think>", False),
        (EITHER, {"chat_template_kwargs": '{"enable_thinking": false}'}, None, False),
        (WORDED, {}, "</think>", False),
        (WORDED, {"system_prompt": "/no_think"}, None, False),
        (WORDED, {"system_prompt": "/no_think", "thinking": "off"}, None, False),
        (BOTH, {}, None, False),
        (BOTH, {"system_prompt": "/think"}, "</think>", False),
        (TAKES, {}, None, False),
        (NO_TEMPLATE, {}, None, False),
    ],
)
def test_r04_where_a_thought_is_to_come_is_found_from_the_template(
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    template: str,
    how: dict[str, Any],
    closing: str | None,
    opened: bool,
) -> None:
    tokenizer = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    tokenizer.chat_template = template
    monkeypatch.setattr(chat, "load_tokenizer", lambda _: tokenizer)
    thought = lazy_tokenizer(ModelRef("m", "m", "r", {}))(MOMENT, Sampling(**how)).thought
    assert (thought and thought.tags.closing) == closing
    assert bool(thought and thought.opened) == opened


def test_r04_tags_that_only_the_tokens_name_are_found(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    tokenizer.chat_template = DROPS
    monkeypatch.setattr(chat, "load_tokenizer", lambda _: tokenizer)
    on = Sampling(thinking="on")
    with pytest.raises(UsageError, match="leaves no place for a thought"):
        print(lazy_tokenizer(ModelRef("m", "m", "r", {}))(MOMENT, on).thought)
    tokenizer.add_tokens(["<think>", "</think>"])
    assert lazy_tokenizer(ModelRef("m", "m", "r", {}))(MOMENT, Sampling()).thought is None
    thought = lazy_tokenizer(ModelRef("m", "m", "r", {}))(MOMENT, on).thought
    assert thought is not None
    assert thought.closing_id == tokenizer.convert_tokens_to_ids("</think>")


def templated_by(
    template: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, Sampling], Prompts]:
    """Return what gives prompts by the embedded model's tokenizer with another template."""
    tokenizer = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    tokenizer.chat_template = template
    monkeypatch.setattr(chat, "load_tokenizer", lambda _: tokenizer)
    return lazy_tokenizer(ModelRef("m", "m", "r", {}))


@pytest.mark.parametrize(
    ("template", "how", "said"),
    [
        (BOTH, {"thinking": "off", "system_prompt": "/think"}, "no switch for it"),
        (WORDED, {"thinking": "off"}, "no switch for it"),
        (
            QWEN,
            {"thinking": "off", "chat_template_kwargs": '{"enable_thinking": true}'},
            "enable_thinking turns it on",
        ),
    ],
)
def test_thought_that_cannot_be_off_is_refused_where_it_must_be(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, template: str, how: Any, said: str
) -> None:
    prompts = templated_by(template, model_folder, monkeypatch)
    with pytest.raises(UsageError, match=said):
        prompts(MOMENT, Sampling(**how)).text("I", "Q")


def test_a_variable_that_the_template_does_not_read_is_named(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counted as a thought turned off, and the thought was judged and pooled."""
    prompts = templated_by(QWEN, model_folder, monkeypatch)
    other = prompts(MOMENT, Sampling(chat_template_kwargs='{"thinking": false}'))
    assert other.remark == "`chat_template_kwargs` thinking changes nothing in this chat template"
    assert other.text("I", "Q") == prompts(MOMENT, Sampling()).text("I", "Q")


@pytest.mark.parametrize(
    "how",
    [
        {"prefill": "</think>"},
        {"prefill": "So: "},
        {"prompt_format": "raw"},
        {"chat_template_kwargs": '{"enable_thinking": false}'},
    ],
)
def test_thought_that_has_no_place_is_refused_where_it_must_be(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    tokenizer = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    tokenizer.chat_template = QWEN
    monkeypatch.setattr(chat, "load_tokenizer", lambda _: tokenizer)
    prompts = lazy_tokenizer(ModelRef("m", "m", "r", {}))(MOMENT, Sampling(thinking="on", **how))
    with pytest.raises(UsageError, match="`thinking` on: .* no place for a thought"):
        print(prompts.thought)


def test_thought_without_an_allowance_is_refused_where_it_must_be() -> None:
    with pytest.raises(UsageError, match="`max_thinking_tokens` must be at least 1"):
        Sampling(thinking="on", max_thinking_tokens=0)


@pytest.mark.parametrize(
    ("written", "opening", "said", "closing"),
    [
        ("<think>\nTwo words.\n</think>", "<think>\n", "Two words.\n", "</think>"),
        ("Two words.</think>", "", "Two words.", "</think>"),
        (" <think>Two words, and no", " <think>", "Two words, and no", ""),
        ("<think></think>", "<think>", "", "</think>"),
        ("</think>", "", "", "</think>"),
        ("", "", "", ""),
    ],
)
def test_the_tokens_of_a_thought_are_told_from_those_of_its_tags(
    model_folder: Path, written: str, opening: str, said: str, closing: str
) -> None:
    """Tags of several tokens here, and of one below."""
    tokenizer = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    for _ in range(2):
        pieces = [
            tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in (opening, said, closing)
        ]
        thought = Thought(tokenizer, Tags("<think>", "</think>"), opened=False)
        first = len(pieces[0])
        assert thought.span([*pieces[0], *pieces[1], *pieces[2]]) == (
            first,
            first + len(pieces[1]),
        ), written
        tokenizer.add_tokens(["<think>", "</think>"])


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (THINKS, "<user>Is it so?</><model><think>\n</think>\n\n"),
        (STRIPS, "<user>Is it so?</><model><think>\n\n</think>\n\n"),
        (QWEN, "<user>Is it so?</><model><think>\n\n</think>\n\n"),
        (MAGISTRAL, "<user>Is it so?</><model>[THINK]\n[/THINK]\n\n"),
        (TAKES, "<system>Be helpful.</><user>Is it so?</><model>"),
    ],
)
def test_r05_a_thought_that_cannot_be_turned_off_is_closed_before_a_local_judge_answers(
    model_folder: Path, template: str, expected: str
) -> None:
    tokenizer = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    tokenizer.chat_template = template
    assert tokenizer.decode(chat_token_ids(tokenizer, "Is it so?", MOMENT)) == expected


# --- templates that do something else with what is said ---

PARTS = (
    "{% for m in messages %}<{{ m['role'] }}>{% for part in m['content'] %}{{ part['text'] }}"
    "{% endfor %}</>{% endfor %}<model>"
)
"""As those of models that see: what is said comes in parts."""
LEFT_OUT = "leaves out what the user says"


def rendered(model_folder: Path, template: str, **how: Any) -> str:
    tokenizer = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    tokenizer.chat_template = template
    return Prompts(lambda: tokenizer, Sampling(**how), MOMENT).text("I", "Q")


def test_a_template_that_wants_content_in_parts_gets_it_so(model_folder: Path) -> None:
    assert rendered(model_folder, PARTS) == "<user>I\n\nQ</><model>"
    assert rendered(model_folder, PARTS, prompt_format="system") == "<system>I</><user>Q</><model>"
    assert rendered(model_folder, PARTS, prefill="So") == "<user>I\n\nQ</><model>So"


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        (TAKES.replace("{{ m['content'] }}", ""), LEFT_OUT),
        (TAKES.replace("{{ m['content'] }}", "{{ m['content'][:9] }}"), LEFT_OUT),
        (TAKES.replace("{{ m['content'] }}", "{{ m['content'][:99] }}"), LEFT_OUT),
        (TAKES.replace("m['content']", "m['content'].split('\n\n')[-1]"), LEFT_OUT),
        (TAKES.replace("m['content']", "m['content'] | e"), f"changes or {LEFT_OUT}"),
        ("<model>", LEFT_OUT),
        ("{{ range(1000) | random }}" + TAKES, "writes something else each time"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" + TAKES, "fails: maximum recursion"),
        ("{{ tools | length }}" + TAKES, "fails: object of type 'NoneType'"),
        ("{{ now() }}" + TAKES, "fails: 'now' is undefined"),
    ],
)
def test_a_template_whose_prompts_are_not_what_was_asked_is_refused(
    model_folder: Path, template: str, fault: str
) -> None:
    """Each would run to its end, every prompt the same or none twice."""
    with pytest.raises(AccessError, match=fault):
        rendered(model_folder, template)


def test_a_system_turn_that_costs_the_question_is_not_taken(model_folder: Path) -> None:
    first = TAKES.replace("{% endfor %}<model>", "{% break %}{% endfor %}<model>")
    text = rendered(model_folder, first, prompt_format="system")
    assert text.endswith("<user>I\n\nQ</><model>")


@pytest.mark.parametrize("how", [{}, {"prefill": "Sure"}, {"prompt_format": "raw"}])
def test_what_a_tokenizer_puts_behind_a_text_is_no_part_of_a_raw_prompt(
    model_folder: Path, how: dict[str, Any]
) -> None:
    from tokenizers.processors import TemplateProcessing

    ends = [("<|im_start|>", 1), ("<|im_end|>", 2)]
    tokenizer = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=ends
    )
    if "prompt_format" not in how:
        tokenizer.chat_template = None
    assert tokenizer("I")["input_ids"][-1] == 2
    prompts = Prompts(lambda: tokenizer, Sampling(**how), MOMENT)
    assert prompts.text("I", "Q") == f"<|im_start|>I\n\nQ{how.get('prefill', '')}"
    typed = prompts.text("I", "Q<|im_end|>")
    assert typed.endswith("Q<|im_end|>" + how.get("prefill", ""))


def test_a_template_that_changes_what_is_said_shows_no_end_of_a_turn(model_folder: Path) -> None:
    """The first token of the conversation was taken for it."""
    tokenizer = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    shown = "{{ m.content | upper if m.role == 'assistant' else m.content }}"
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n" + shown + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert Prompts(lambda: tokenizer, Sampling(model="m"), MOMENT).ends == ()


def test_a_template_that_leaves_the_models_turn_unopened_is_refused(model_folder: Path) -> None:
    """It ignores `add_generation_prompt`: the header would be the response's first words."""
    plain = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    header = "<|im_start|>assistant\n"
    tokenizer = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    tokenizer.chat_template = plain
    prompts = Prompts(lambda: tokenizer, Sampling(model="m"), MOMENT)
    with pytest.raises(AccessError, match=r"write '<\|im_start\|>assistant' itself before it resp"):
        prompts("Be kind.", "Why?")
    with pytest.raises(AccessError, match="ignores `add_generation_prompt`"):
        chat_token_ids(tokenizer, "Why?", MOMENT)
    opened = Prompts(lambda: tokenizer, Sampling(model="m", prefill=header), MOMENT)
    assert opened.text("Be kind.", "Why?").endswith(f"Why?<|im_end|>\n{header}")
    # What always opens it, or marks it by the user's own end, is right as it is.
    marked = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    marked += "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
    for template in (plain + header, marked):
        tokenizer.chat_template = template
        assert Prompts(lambda: tokenizer, Sampling(model="m"), MOMENT)("Be kind.", "Why?")
