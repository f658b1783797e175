"""A trait's own scale: as it is asked for, read, stored and told apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Traitmill
from tests.judging.test_endpoint import TRAIT, known, opened, response
from tests.support import fakes
from tests.support.misbehaving_server import MisbehavingServer, completion
from traitmill.engine.judging import JudgeProfile, judge_key, local_prompt
from traitmill.engine.run import scale_remarks
from traitmill.engine.settings import JudgeSettings
from traitmill.engine.traits import Scale, other_scale
from traitmill.engine.traits.definition import parse_definition

THREE = replace(TRAIT, scale=Scale(0, 3))
PLAIN = JudgeProfile(model="m", top_logprobs=0, schema=False)
EXPECTED = JudgeProfile(model="m", mode="expected", top_logprobs=20)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


# --- the definition ---


def file(**changes: object) -> bytes:
    return json.dumps(fakes.definition() | changes).encode()


def test_r15_the_keys_are_optional_and_the_usual_scale_leaves_no_trace() -> None:
    plain = parse_definition("t", file(), "F")
    stated = parse_definition("t", file(score_min=0, score_max=100), "F")
    assert plain == stated
    assert plain.scale == Scale(0, 100)
    assert plain.as_json() == fakes.definition()
    own = parse_definition("t", file(score_min=1, score_max=5), "F")
    assert own.as_json() == fakes.definition() | {"score_min": 1, "score_max": 5}
    assert parse_definition("t", json.dumps(own.as_json()).encode(), "F") == own


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"score_max": 2.5}, "F: score_max: must be a whole number from 0 to 1000"),
        ({"score_min": -1}, "F: score_min: must be a whole number from 0 to 1000"),
        ({"score_max": 10**400}, "F: score_max: must be a whole number from 0 to 1000"),
        ({"score_max": "3"}, "F: score_max: must be a whole number, not a string"),
        ({"score_max": None}, "F: score_max: must be a whole number, not missing"),
        ({"score_max": True}, "F: score_max: must be a whole number, not a boolean"),
        ({"score_min": 3, "score_max": 3}, "F: score_min: must be below score_max"),
        ({"score_min": 100}, "F: score_min: must be below score_max"),
    ],
)
def test_r15_a_scale_that_is_none_is_refused(changes: dict[str, object], expected: str) -> None:
    from traitmill.engine.errors import DefinitionError

    with pytest.raises(DefinitionError) as caught:
        parse_definition("t", file(**changes), "F")
    assert list(caught.value.faults) == [expected]


# --- a prompt that asks for another ---


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("Respond only with a number between 0 and 3.", Scale(0, 3)),
        ("Rate it from 1 to 10.", Scale(1, 10)),
        ("Rate it from 1 to 100.", Scale(1, 100)),
        ("On a scale of 0-10, how calm?", Scale(0, 10)),
        ("Use a 1-5 scale.", Scale(1, 5)),
        ("Use a 7-point Likert scale.", Scale(1, 7)),
        ("in the range [0, 10] or range 0\N{EN DASH}10", Scale(0, 10)),
        ("Answer with a single integer from 0 to 100.", None),
        ("a number between 0 and 100, where from 0 to 20 is none at all", None),
        ("from 0 to 20 is none, and the scale is 0-100", None),
        ("How calm is it?", None),
        ("It has 2 to 3 sentences and was written from 10 to 2.", None),
        ("Say what changed between 3 and 3.", None),
    ],
)
def test_r15_the_scale_that_a_prompt_asks_for(said: str, asked: Scale | None) -> None:
    assert other_scale(f"{said} {{question}} {{answer}}", Scale()) == asked


def test_r15_a_prompt_that_asks_for_what_the_keys_say_is_right() -> None:
    prompt = "a number between 0 and 3"
    assert other_scale(prompt, Scale(0, 3)) is None
    assert other_scale("from 0 to 100", Scale(0, 3)) == Scale(0, 100)


def test_r15_what_is_said_names_the_keys_to_write() -> None:
    trait = replace(TRAIT, eval_prompt="Between 0 and 3: {question} {answer}")
    [line] = scale_remarks([trait])
    assert '"score_min": 0, "score_max": 3' in line
    assert scale_remarks([replace(trait, scale=Scale(0, 3))]) == []
    [line] = scale_remarks([replace(trait, scale=Scale(0, 3))], 2.0)
    assert "66.67" in line
    assert scale_remarks([replace(trait, scale=Scale(0, 3))], 60.0) == []


def test_r15_the_warning_comes_before_anything_loads(traitmill: Traitmill, tmp_path: Path) -> None:
    content = fakes.definition() | {"eval_prompt": "Between 0 and 3. {question} {answer}"}
    fakes.make_trait(tmp_path, "trait", content)
    where = ["--experiment", "exp", "--trait", "trait", "--experiments_dir", str(tmp_path)]
    judge = ["--judge_model", "m", "--judge_base_url", "http://127.0.0.1:9/v1"]
    from tests.support import lab

    model = lab.make_model(tmp_path)
    _, said = traitmill("generate", *where, *judge, "--gen_model", model)
    assert "eval_prompt asks for 0 to 3" in " ".join(said.split())


# --- identity ---


def test_r15_a_trait_without_a_scale_of_its_own_keeps_its_verdicts() -> None:
    """The key as it was before there were scales, written down."""
    assert judge_key(JudgeSettings(model="gpt-5-mini"), TRAIT) == "6b365ea4185df35a"
    keys = [
        judge_key(JudgeSettings(model="gpt-5-mini"), replace(TRAIT, scale=scale))
        for scale in (Scale(), Scale(0, 3), Scale(1, 3))
    ]
    assert len(set(keys)) == 3


def test_r15_the_local_judge_asks_for_the_middle_of_the_scale() -> None:
    assert "is the score above 50? Answer" in local_prompt(TRAIT)
    assert "is the score above 1.5? Answer" in local_prompt(THREE)
    own = replace(THREE, yes_no_prompt="Is it? {question} {answer}")
    assert local_prompt(own) == "Is it? {question} {answer}"


# --- over real HTTP ---


@pytest.mark.parametrize(
    ("said", "score"), [("3", 100.0), ("2", 66.67), ("0", 0.0), ('{"score": 1}', 33.33)]
)
async def test_r15_an_answer_on_the_own_scale_is_stored_as_0_to_100(
    said: str, score: float
) -> None:
    with MisbehavingServer(script=lambda _: completion(said)) as server:
        async with known(server) as judge:
            verdict = await judge.judge(THREE, response())
        schema = server.log[0].body["response_format"]["json_schema"]["schema"]
    assert (verdict.score, verdict.raw, verdict.attempts) == (score, said, 1)
    assert "0 to 3" in schema["properties"]["score"]["description"]


async def test_r15_off_the_scale_is_asked_for_again_by_its_ends() -> None:
    with MisbehavingServer(script=[completion("85"), completion("2")]) as server:
        async with opened(server, "m", profile=PLAIN) as judge:
            verdict = await judge.judge(THREE, response())
        first, second = [seen.prompt for seen in server.log]
    request = "Answer with a single integer from 0 to 3 and nothing else."
    assert first.endswith(f"\n\n{request}")
    assert second == request
    assert (verdict.score, verdict.attempts) == (66.67, 2)


async def test_r15_an_expectation_is_taken_over_the_scale_alone() -> None:
    def answer(_seen: object) -> object:
        return completion("3", tokens=[("3", {"3": 0.5, "2": 0.3, "85": 0.2})])

    with MisbehavingServer(script=answer) as server:
        async with known(server) as judge:
            judge._calls.profile = EXPECTED
            verdict = await judge.judge(THREE, response())
    assert verdict.score == round(100 * (3 * 0.5 + 2 * 0.3) / 0.8 / 3, 2)
