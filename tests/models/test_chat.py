"""Prompts become token ids as a chat model wants them: one turn, one BOS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from traitmill.engine.errors import AccessError, UsageError
from traitmill.engine.models import ModelRef, chat, chat_token_ids, lazy_tokenizer, load_tokenizer

BOS = 1
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
    with pytest.raises(UsageError, match="the prompt '' has no tokens"):
        chat_token_ids(Tokenizer(template=None, bos_token_id=None), "", MOMENT)


def test_the_tokenizer_is_loaded_when_first_asked_and_asked_once_a_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[ModelRef] = []
    asked: list[str] = []

    def load(ref: ModelRef) -> Any:
        loaded.append(ref)
        return Tokenizer(template=None)

    def ids(_: object, prompt: str, moment: str) -> tuple[int, ...]:
        assert moment == MOMENT
        asked.append(prompt)
        return (len(prompt),)

    monkeypatch.setattr(chat, "load_tokenizer", load)
    monkeypatch.setattr(chat, "chat_token_ids", ids)
    ref = ModelRef("m", "m", "r", {})
    tokenize = lazy_tokenizer(ref)(MOMENT)
    assert not loaded
    assert [tokenize("a"), tokenize("bb"), tokenize("a")] == [(1,), (2,), (1,)]
    assert (loaded, asked) == ([ref], ["a", "bb"])


def test_a_model_without_tokenizer_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(AccessError, match="the tokenizer of model mine cannot be loaded: ") as said:
        load_tokenizer(ModelRef("mine", str(tmp_path), "r", {}))
    assert "\n" not in str(said.value)


def test_the_embedded_models_template_holds_the_prompt_once(model_folder: Path) -> None:
    ref = ModelRef("m", str(model_folder), "r", {})
    text = load_tokenizer(ref).decode(lazy_tokenizer(ref)(MOMENT)("Be brave.\n\nWho are you?"))
    assert text.count("Be brave.\n\nWho are you?") == 1
    assert text.endswith("<|im_start|>assistant\n")
