"""A command that is refused, or whose models cannot be had, leaves folders as they were."""

from __future__ import annotations

import csv
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import traitmill
from tests.support import fakes, lab
from traitmill.engine.errors import AccessError, SettingsChangedError, StoppedError, UsageError
from traitmill.engine.run import Backends
from traitmill.engine.storage import TraitFolder, load_state


@pytest.fixture(autouse=True)
def _fake_tokenizer() -> Any:
    with patch("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers):
        yield


class Made:
    """What the backends of one command did."""

    def __init__(self, judge: Callable[..., Any] = fakes.FakeJudge, fails: str = "") -> None:
        self.generated, self.judge, self._judge, self._fails = 0, "", judge, fails

    @asynccontextmanager
    async def __call__(self, work: Any) -> AsyncIterator[Backends]:
        if self._fails:
            raise AccessError(self._fails)
        generator = fakes.FakeGenerator() if work.generates else None
        judge = self._judge(work.settings.judge) if work.judges else None
        capture = fakes.FakeCapture(work.settings.capture) if work.captures else None
        yield Backends(generator=generator, judge=judge, capturer=capture)
        self.generated = len(generator.calls) if generator else 0
        self.judge = work.settings.judge.model


async def generate(root: Path, traits: Any, made: Made | None = None, **how: Any) -> Made:
    made = made or Made()
    named = {"model": str(lab.make_model(root)), "judge_base_url": "http://127.0.0.1:9/v1"}
    await traitmill.generate(root / "exp", traits, backends=made, **({**named, **how}))
    return made


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


async def test_a_new_run_that_is_refused_moves_nothing(tmp_path: Path) -> None:
    """The old run was moved first, and the next plain command paid for all of it again."""
    folder = fakes.make_trait(tmp_path, "trait")
    await generate(tmp_path, ["trait"], judge_model="j", n_examples=10)
    before = names(folder)
    with pytest.raises(UsageError, match="thought_mean"):
        await generate(tmp_path, ["trait"], new_run=True, pool=["thought_mean"])
    assert names(folder) == before
    assert (await generate(tmp_path, ["trait"])).generated == 0


async def test_files_of_another_program_stay_where_a_command_is_refused(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path, "trait")
    (folder / "responses").mkdir()
    (folder / "responses/pos.csv").write_text("question,response\n")
    with pytest.raises(UsageError, match="thought_mean"):
        await generate(tmp_path, ["trait"], judge_model="j", pool=["thought_mean"])
    assert names(folder) == {"responses", "trait_definition.json"}


async def test_one_trait_that_is_refused_extends_no_other(tmp_path: Path) -> None:
    a, b = (fakes.make_trait(tmp_path, name) for name in "ab")
    await generate(tmp_path, ["a", "b"], judge_model="j", n_examples=10)
    records = {p: p.read_bytes() for p in (a / "parquet").glob("*") if p.is_file()}
    definition = json.loads((b / "trait_definition.json").read_text())
    definition["instruction"][0]["pos"] += " More."
    (b / "trait_definition.json").write_text(json.dumps(definition))
    with pytest.raises(SettingsChangedError, match="instruction was edited"):
        await generate(tmp_path, ["a", "b"], n_examples=40)
    assert {p: p.read_bytes() for p in records} == records
    assert (await generate(tmp_path, ["a"])).generated == 0


async def test_an_extension_whose_models_cannot_be_had_is_not_remembered(tmp_path: Path) -> None:
    """A later plain command generated and paid for it, by the judge of before."""
    folder = fakes.make_trait(tmp_path, "trait")
    await generate(tmp_path, ["trait"], judge_model="j", n_examples=10)
    with pytest.raises(AccessError, match="no such judge"):
        away = Made(fails="no such judge")
        await generate(tmp_path, ["trait"], away, judge_model="other", n_examples=40)
    assert len(load_state(folder).plan) == 20
    assert (await generate(tmp_path, ["trait"])).generated == 0
    made = await generate(tmp_path, ["trait"], n_examples=40)
    assert (made.generated, made.judge) == (60, "j")
    assert len(load_state(folder).plan) == 80


async def test_an_export_before_the_runs_own_has_the_runs_filters(tmp_path: Path) -> None:
    """It took the defaults, and the folder went on with those."""

    class Poor(fakes.FakeJudge):
        async def judge(self, trait: Any, response: Any, *how: Any) -> Any:
            if len(self.calls) >= 30:
                raise StoppedError("no quota left")
            return await super().judge(trait, response, *how)

    folder = fakes.make_trait(tmp_path, "trait")
    how = {"judge_model": "j", "n_examples": 20, "threshold": 80.0, "paired": True}
    await generate(tmp_path, ["trait"], Made(judge=Poor), **how)
    choice = load_state(folder).choice
    assert (choice.threshold, choice.paired) == (80.0, True)
    traitmill.export(tmp_path / "exp", ["trait"])
    await generate(tmp_path, ["trait"])
    choice = load_state(folder).choice
    assert (choice.threshold, choice.paired) == (80.0, True)
    traitmill.export(tmp_path / "exp", ["trait"], threshold=60)
    await generate(tmp_path, ["trait"])
    choice = load_state(folder).choice
    assert (choice.threshold, choice.paired) == (60.0, True)


@pytest.mark.parametrize("paired", [False, True])
async def test_texts_that_repeat_in_a_definition_hinder_no_extension(
    tmp_path: Path, paired: bool
) -> None:
    """All samples are there still, at other places of the larger plan."""
    content = fakes.definition(2, 5)
    for pair in content["instruction"]:
        pair["neg"] = "You are a helpful assistant."
    folder = fakes.make_trait(tmp_path, "trait", content)
    await generate(tmp_path, ["trait"], judge_model="j", n_examples=10, paired=paired)
    before = set(load_state(folder).plan.ids.tolist())
    made = await generate(tmp_path, ["trait"], n_examples=20)
    state = load_state(folder)
    assert made.generated == 20
    assert before < set(state.plan.ids.tolist())
    assert not state.responses.pending().any()
    captured = state.exportable() & ~state.captured()
    assert not captured.any(), "each kept response of a pair is captured"
    more = tmp_path / "more"
    more.mkdir()
    fakes.make_trait(more, "trait", content)
    await generate(more, ["trait"], judge_model="j", n_examples=10, min_kept=15, paired=paired)
    assert (more / "exp/trait/responses/pos.csv").is_file()


async def test_a_trait_without_a_run_is_left_out_where_all_are_asked_for(tmp_path: Path) -> None:
    fakes.make_trait(tmp_path, "a")
    await generate(tmp_path, None, judge_model="j", n_examples=10)
    fakes.make_trait(tmp_path, "b")
    said: list[str] = []

    class Heard(traitmill.Listener):
        def notice(self, line: str) -> None:
            said.append(line)

    exp, how = tmp_path / "exp", {"backends": Made(), "listener": Heard()}
    where = {"judge_model": "j2", "judge_base_url": "http://127.0.0.1:9/v1"}
    result = await traitmill.judge(exp, **where, **how)
    assert list(result.traits) == ["a"]
    result = await traitmill.capture(exp, pool=["prompt_last"], **how)
    assert list(result.traits) == ["a"]
    assert said.count("left out, holding no run yet: b") == 2
    with pytest.raises(UsageError, match="holds no run yet"):
        await traitmill.capture(exp, ["b"], **how)


async def test_what_is_kept_is_what_the_files_hold(tmp_path: Path) -> None:
    """A pair of which one could not be captured counted as kept in summary, status and show."""
    folder = TraitFolder(fakes.make_trait(tmp_path, "trait"))
    await generate(tmp_path, None, judge_model="j", n_examples=20, paired=True, capture="none")
    state = load_state(folder)
    bad = state.plan.ids[np.flatnonzero(state.passing())[0]].decode()

    class Failing(Made):
        @asynccontextmanager
        async def __call__(self, work: Any) -> AsyncIterator[Backends]:
            capture = fakes.FakeCapture(work.settings.capture, bad=frozenset([bad]))
            yield Backends(capturer=capture)

    await traitmill.capture(tmp_path / "exp", backends=Failing())
    rows = {}
    for side in ("pos", "neg"):
        with folder.responses_csv(side).open(newline="", encoding="utf-8") as file:
            rows[side] = len(list(csv.DictReader(file)))
    counts = load_state(folder).counts()
    assert {side: counts[side]["kept"] for side in rows} == rows
    from traitmill.engine.outputs import audit_table

    assert int(audit_table(folder)["kept"].sum()) == sum(rows.values())


async def test_what_captures_more_is_told_where_more_is_kept(tmp_path: Path) -> None:
    """The step that was named found everything done, and the export asked for it again."""
    folder = fakes.make_trait(tmp_path, "trait")
    how = {"judge_model": "j", "n_examples": 20, "capture": "kept", "threshold": 60.0}
    await generate(tmp_path, None, **how)
    exp = tmp_path / "exp"
    error = traitmill.export(exp, ["trait"], threshold=30).errors["trait"]
    assert "threshold=30" in str(error.step)
    await traitmill.capture(exp, ["trait"], threshold=30, backends=Made())
    assert load_state(folder).choice.threshold == 30.0
    assert not traitmill.export(exp, ["trait"], threshold=30).errors


@pytest.mark.parametrize("traits", [None, ["a", "b"]])
async def test_a_damaged_record_keeps_no_other_trait_from_its_export(
    tmp_path: Path, traits: list[str] | None
) -> None:
    a, b = (fakes.make_trait(tmp_path, name) for name in "ab")
    await generate(tmp_path, None, judge_model="j", n_examples=10)
    (b / "parquet/run.json").write_text("{")
    result = traitmill.export(tmp_path / "exp", traits, threshold=60)
    assert (list(result.exported), list(result.errors)) == (["a"], ["b"])
    assert load_state(a).choice.threshold == 60.0
