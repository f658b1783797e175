"""How studies are made ready and worked on: whose offset, whose name, and behind which thought."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import fakes
from tests.support.toy import LAYER, METHOD, ToyEngine, make_toy
from traitmill.engine.errors import ExitCode, SettingsChangedError, UsageError
from traitmill.engine.generation import Shift
from traitmill.engine.judging import judge_key
from traitmill.engine.records import Response, Sample
from traitmill.engine.run import Backends, Work
from traitmill.engine.settings import JudgeSettings, RunSettings, SampleCounts, Sampling
from traitmill.engine.steering import read_study
from traitmill.engine.steering.making import _own_judge, _questions
from traitmill.engine.storage import JudgeFacts, TraitFolder
from traitmill.engine.traits import Trait

HOW = {"methods": [METHOD], "layers": [LAYER]}


async def test_studies_of_several_traits_are_told_apart_by_one_judge(tmp_path: Path) -> None:
    """A local judge places each trait's scores by an offset that it knows by the trait's name."""
    toy = await make_toy(tmp_path)
    shutil.copytree(toy.folder, toy.root / "exp" / "another")
    result = await toy.steer(**HOW, n_examples=6, traits=["trait", "another"])
    assert result.exit_code == ExitCode.OK
    [work] = toy.works
    assert [run.name for run in work.runs] == ["trait", "another"]
    assert {run.trait.name for run in work.runs} == {"trait", "another"}


@pytest.mark.parametrize("edited", [False, True])
def test_a_local_judges_offset_is_that_of_the_prompt_it_is_asked(
    tmp_path: Path, edited: bool
) -> None:
    folder, judge = TraitFolder(tmp_path / "exp" / "t"), JudgeSettings(model="local")
    asks = Trait("t", (("a", "b"),), ("q",), "{question}{answer}", yes_no_prompt="A {answer}?")
    facts = JudgeFacts(
        model="local",
        mode="auto",
        kind="local_relative",
        prompt="A {answer}?",
        begun="2026-01-01T00:00:00Z",
        offset=-4.5,
    )
    facts.save(folder.verdicts(judge_key(judge, asks)) / "facts.json")
    settings = RunSettings(
        sampling=Sampling(model="m", revision="r"), counts=SampleCounts(n_examples=10), judge=judge
    )
    if not edited:
        assert _own_judge(asks, folder, settings) == facts
        return
    with pytest.raises(UsageError, match="has not judged them by the trait's judge prompt yet"):
        _own_judge(replace(asks, yes_no_prompt="B {answer}?"), folder, settings)


async def test_a_local_judge_whose_files_changed_places_no_steered_text(tmp_path: Path) -> None:
    """Its scores are placed by the offset of the files that judged the trait."""
    toy = await make_toy(tmp_path, judge="local")
    [own] = (toy.folder / "parquet" / "verdicts").glob("*/facts.json")
    facts = json.loads(own.read_bytes())
    own.write_text(json.dumps(facts | {"revision": "A" * 16}))
    loaded, open_backends = "B" * 16, toy.backends

    @asynccontextmanager
    async def begun(work: Work) -> AsyncIterator[Backends]:
        for run in work.runs:
            run.begin_judging(SimpleNamespace(hub_revision=None, revision=loaded, name="j"))  # type: ignore[arg-type]
        async with open_backends(work) as opened:
            yield opened

    toy.backends = begun  # type: ignore[method-assign]
    how = {**HOW, "n_examples": 4, "coefficients": [0.5], "judge_model": "local"}
    with pytest.raises(SettingsChangedError, match=re.escape(str(own.parent))):
        await toy.steer(**how)
    assert not toy.engine.calls
    loaded = "A" * 16
    assert (await toy.steer(**how)).exit_code == ExitCode.OK
    # The trait is judged anew by other files, and its offset happens to be the same.
    own.write_text(json.dumps(facts | {"revision": "B" * 16}))
    with pytest.raises(SettingsChangedError, match="have the steered texts judged anew too"):
        await toy.steer(**how)


def test_a_copy_of_a_question_that_vectors_have_seen_is_not_unseen() -> None:
    texts = ("a?", "b?", "c?", "d?", "e?", "f?")
    trait = Trait("t", (("x", "y"),), (*texts, "a?"), "{question}{answer}")
    seen = SimpleNamespace(metadata=SimpleNamespace(question_index=[0]))
    found, said = _questions(trait, seen)
    assert found.questions == texts[1:]
    assert said == "5 questions that no vector has seen"


async def test_without_questions_a_steered_model_is_asked_steering_questions(
    tmp_path: Path,
) -> None:
    toy = await make_toy(tmp_path, fakes.definition(n_questions=10) | {"questions": None})
    how = {**HOW, "n_examples": 2, "coefficients": [0.5]}
    with pytest.raises(UsageError, match="write `steering_questions`"):
        await toy.steer(**how)
    assert not toy.works
    definition = next(toy.folder.glob("*.json"))
    asked = json.loads(definition.read_bytes()) | {"steering_questions": ["One?", "Two?"]}
    definition.write_text(json.dumps(asked))
    assert (await toy.steer(**how)).exit_code == ExitCode.OK
    rows = list(csv.DictReader((toy.folder / "steering/responses.csv").open()))
    assert {row["question"] for row in rows} == {"One?", "Two?"}
    assert all(row["instruction"] for row in rows if row["kind"] == "prompt")


async def test_copies_of_a_question_count_as_one(tmp_path: Path) -> None:
    content = fakes.definition(n_questions=5)
    content["steering_questions"] = ["One?", "Two?", "Three?", "One?"]
    toy = await make_toy(tmp_path, content)
    await toy.steer(**HOW, n_examples=8)
    table, _ = read_study(TraitFolder(toy.folder))
    over = table.filter(measure="over_unsteered")["n"].unique().to_list()
    assert over == [3]


class Thinks(ToyEngine):
    """Thinks before each response, and notes what log-probabilities stand behind."""

    async def steered(self, sample: Sample, shift: Shift | None) -> Response:
        response = await super().steered(sample, shift)
        return replace(response, thought="hm", thought_token_ids=(71, 72), thought_span=(0, 2))

    async def logprobs(self, prompt: Any, response: Any, shift: Shift | None) -> Any:
        self.__dict__.setdefault("before", []).append(tuple(prompt))
        return await super().logprobs(prompt, response, shift)


async def test_a_text_behind_a_thought_is_measured_behind_it(tmp_path: Path) -> None:
    toy = await make_toy(tmp_path)
    toy.engine = Thinks(**vars(toy.engine))
    await toy.steer(**HOW, n_examples=6)
    before = vars(toy.engine)["before"]
    assert before
    assert {prompt[-2:] for prompt in before} == {(71, 72)}
