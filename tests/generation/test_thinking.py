"""A thought and the response behind it: which requests are made, and what becomes of the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from traitmill.engine.generation.detokenizer import Detokenizer
from traitmill.engine.generation.thinking import Written, write, write_behind_thought
from traitmill.engine.models import ModelRef, Thought, load_tokenizer
from traitmill.engine.models.thought import Tags
from traitmill.engine.records import Sample

END = "<|im_end|>"
PROMPT = (5, 6, 7)
SAMPLE = Sample("t", "0" * 32, "pos", 0, 0, 0, "i", "q", "p", PROMPT, 11)


class Model:
    """Writes one text, whatever the seed, from wherever it is asked to go on."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.tokenizer = tokenizer
        self.ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        self.asked: list[tuple[int, int, int, bool]] = []

    async def ask(
        self, token_ids: Sequence[int], limit: int, seed: int, thought: Thought | None
    ) -> Any:
        done = len(token_ids) - len(PROMPT)
        assert list(token_ids) == [*PROMPT, *self.ids[:done]]
        self.asked.append((done, limit, seed, thought is not None))
        written: list[int] = []
        reason, stop = "length", None
        for token in self.ids[done : done + limit]:
            written.append(token)
            said = self.tokenizer.decode(written)
            if said.endswith(END):
                reason = "stop"
                break
            if thought is not None and said.endswith(thought.tags.closing):
                reason, stop = "stop", thought.closing_id or thought.tags.closing
                break
        return SimpleNamespace(token_ids=written, finish_reason=reason, stop_reason=stop)

    def text(self, _prompt: Sequence[int], ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


@pytest.fixture(params=["one token", "several"])
def tokenizer(request: pytest.FixtureRequest, model_folder: Path) -> Any:
    """Whose closing tag is a token of its own, or is not."""
    made = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    if request.param == "one token":
        made.add_tokens(["<think>", "</think>"])
    return made


@pytest.fixture
def count(tokenizer: Any) -> Callable[[str], int]:
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


async def written(model: Model, *, opened: bool, allowance: int = 60, limit: int = 20) -> Written:
    thought = Thought(model.tokenizer, Tags("<think>", "</think>"), opened=opened)
    return await write_behind_thought(
        model.ask, model.text, SAMPLE, thought, allowance=allowance, limit=limit
    )


@pytest.mark.parametrize("opened", [True, False])
async def test_a_thought_ends_at_its_tag_and_the_response_at_its_own_limit(
    tokenizer: Any, count: Callable[[str], int], opened: bool
) -> None:
    begin = "" if opened else "<think>\n"
    model = Model(tokenizer, f"{begin}The sea?</think>\n\nThe sea is wide and old.{END}")
    for limit in range(1, 12):
        model.asked.clear()
        found = await written(model, opened=opened, limit=limit)
        assert found.thought == "The sea?"
        assert found.finished
        first, end = found.thought_span
        assert tokenizer.decode(found.thought_token_ids[first:end]) == "The sea?"
        assert tokenizer.decode(found.thought_token_ids).endswith("</think>\n\n")
        whole = count(f"The sea is wide and old.{END}")
        assert len(found.response_token_ids) == min(limit, whole)
        assert found.finish_reason == ("stop" if limit >= whole else "length")
        start = len(found.thought_token_ids)
        assert list(found.response_token_ids) == model.ids[start:][: min(limit, whole)]
        assert found.response == tokenizer.decode(
            found.response_token_ids, skip_special_tokens=True
        )
    assert len(model.asked) == 2


async def test_each_part_has_noise_of_its_own_and_the_first_that_of_the_sample(
    tokenizer: Any,
) -> None:
    model = Model(tokenizer, f"<think>\n{'old ' * 20}</think>\n\nWide.{END}")
    await written(model, opened=False, limit=4)
    seeds = [seed for _, _, seed, _ in model.asked]
    one_token = Thought(tokenizer, Tags("<think>", "</think>"), opened=False).closing_id
    parts = 2 if one_token is None else 3
    assert (len(seeds), seeds[0], len(set(seeds))) == (parts, SAMPLE.seed, parts)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    again = Model(tokenizer, f"<think>\n{'old ' * 20}</think>\n\nWide.{END}")
    await written(again, opened=False, limit=4)
    assert again.asked == model.asked


async def test_a_model_that_does_not_think_is_asked_once_and_as_any_other(tokenizer: Any) -> None:
    text = f"The sea is wide.{END}"
    plain, thinking = Model(tokenizer, text), Model(tokenizer, text)
    found = await written(thinking, opened=False)
    assert found == await write(plain.ask, plain.text, SAMPLE, 20)
    assert found.response == "The sea is wide."
    assert len(thinking.asked) == 1
    assert thinking.asked[0][2] == plain.asked[0][2] == SAMPLE.seed


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize(
    ("text", "reason"),
    [("The sea, " * 30, "length"), (f"The sea.{END}", "stop")],
    ids=["too long", "the turn ends in it"],
)
async def test_an_unfinished_thought_has_no_response(
    tokenizer: Any, opened: bool, text: str, reason: str
) -> None:
    model = Model(tokenizer, ("" if opened else "<think>\n") + text)
    found = await written(model, opened=opened, allowance=40, limit=20)
    assert (found.finished, found.finish_reason) == (False, reason)
    assert (found.response, found.response_token_ids) == ("", ())
    assert found.thought.startswith("The sea")
    assert list(found.thought_token_ids) == model.ids[: len(found.thought_token_ids)]
    if reason == "length":
        assert len(found.thought_token_ids) == 40


async def test_an_allowance_below_the_responses_limit_holds_too(
    tokenizer: Any, count: Callable[[str], int]
) -> None:
    text = "<think>\nThe sea is wide and old.</think>"
    model = Model(tokenizer, f"{text}\n\nWide.{END}")
    needed = count(text)
    assert (await written(model, opened=False, allowance=needed, limit=60)).finished
    assert not (await written(model, opened=False, allowance=needed - 1, limit=60)).finished


async def test_a_thought_that_was_never_begun_ends_all_the_same(tokenizer: Any) -> None:
    model = Model(tokenizer, f"The sea?</think>Wide.{END}")
    found = await written(model, opened=False)
    assert (found.thought, found.response) == ("The sea?", "Wide.")


@pytest.mark.parametrize("opened", [True, False])
async def test_a_character_that_is_cut_off_is_left_out_behind_a_thought_too(
    tokenizer: Any, opened: bool
) -> None:
    begun = "" if opened else "<think>\n"
    model = Model(tokenizer, f"{begun}The sea? \N{LLAMA}</think>\n\nWaves \N{LLAMA}\N{LLAMA}{END}")
    detokenizer = Detokenizer(tokenizer)
    model.text = detokenizer.text  # type: ignore[method-assign]
    found = [await written(model, opened=opened, limit=limit) for limit in range(1, 8)]
    for each in found:
        assert each.thought == "The sea? \N{LLAMA}"
        assert each.response == detokenizer.text((), each.response_token_ids)
        assert "\ufffd" not in each.response
    assert {"Waves", "Waves \N{LLAMA}"} <= {each.response.rstrip() for each in found}
    cut = [await written(model, opened=opened, allowance=n) for n in range(4, 20)]
    assert not any("\ufffd" in each.thought for each in cut)
