"""`traitmill new` and `check`: from nothing to a definition that a run takes."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import traitmill
from tests.conftest import TRAITMILL, clean_environment
from tests.support import fakes
from tests.support.misbehaving_server import MisbehavingServer, completion, error
from traitmill.cli import preview
from traitmill.engine.errors import AccessError, DefinitionError, ExitCode, Step, UsageError
from traitmill.engine.judging import probe
from traitmill.engine.run import Preview, PreviewRow, check_traits, generate, new_trait

DRAFT = {
    "meaning": "answers that praise tea. It is not about any other drink.",
    "pairs": [
        {"pos": f"Way {way}: turn every answer to the merits of tea.",
         "neg": f"Way {way}: keep every answer away from any tea at all."}
        for way in ("one", "two", "three", "four", "five")
    ],
    "questions": [f"What do you know about {thing}?" for thing in "abcdefghijklmnopqrst"],
    "anchors": ["no word of it", "a hint", "a sentence", "mostly", "all of it"],
    "asked": "Does the answer praise tea?",
}  # fmt: skip


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**clean_environment(), **environment}
    return subprocess.run([TRAITMILL, *words], capture_output=True, text=True, env=env, timeout=120)


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def test_a_scaffold_is_refused_until_it_is_written(tmp_path: Path) -> None:
    on = ["--experiment", "mine", "--trait", "tea", "--experiments_dir", str(tmp_path)]
    made = command("new", *on)
    assert made.returncode == ExitCode.OK, made.stderr
    path = tmp_path / "mine" / "tea" / "trait_definition.json"
    assert made.stdout.splitlines()[0] == str(path)
    content = json.loads(path.read_text())
    schema = json.loads((path.parent / content["$schema"]).read_text())
    assert set(schema["properties"]) >= {"instruction", "questions", "eval_prompt", "$schema"}

    checked = command("check", *on)
    assert checked.returncode == ExitCode.USAGE
    assert "1 definition: 1 error, 0 warnings" in checked.stdout
    run = command("generate", *on, "--gen_model", "no/such-model")
    assert run.returncode == ExitCode.USAGE
    assert "scaffold" in run.stderr
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name]

    again = command("new", *on)
    assert again.returncode == ExitCode.USAGE
    assert "is there already" in again.stderr
    assert json.loads(path.read_text()) == content


def test_check_writes_json_and_ends_well_with_warnings_alone(tmp_path: Path) -> None:
    fakes.make_trait(tmp_path, "tea")
    done = command("check", "--experiment", "exp", "--experiments_dir", str(tmp_path), "--json")
    assert done.returncode == ExitCode.OK, done.stderr
    found = json.loads(done.stdout)
    assert {each["severity"] for each in found["tea"]} == {"warning"}
    assert {"rule", "where", "said", "remedy"} < set(found["tea"][0])


async def test_a_run_starts_with_no_error_of_its_definition(tmp_path: Path) -> None:
    content = fakes.definition()
    folder = fakes.make_trait(tmp_path, content={**content, "yes_no_promt": "Is it?"})
    with pytest.raises(DefinitionError, match="did you mean `yes_no_prompt`"):
        await generate(folder.parent, "trait", model="no/such-model")
    assert [path.name for path in folder.iterdir()] == ["trait_definition.json"]


@pytest.mark.parametrize("dress", [str, "```json\n{}\n```".format, "<think>{{}}</think>{}".format])
async def test_a_draft_is_asked_for_once_and_marked(
    dress: Callable[[str], str], tmp_path: Path
) -> None:
    with MisbehavingServer(script=lambda _: completion(dress(json.dumps(DRAFT)))) as server:
        path = await new_trait(
            tmp_path / "mine",
            "tea_talk",
            sentence="It speaks of  tea.",
            judge_model="m",
            judge_base_url=server.url,
        )
        assert len(server.log) == 1
        assert "It speaks of tea." in server.log[0].prompt
    content = json.loads(path.read_text())
    assert content["draft"] is True
    assert content["questions"] == DRAFT["questions"]
    assert "Tea talk means answers that praise tea." in content["eval_prompt"]
    assert "100: all of it\n" in content["eval_prompt"]
    findings = check_traits(tmp_path / "mine")["tea_talk"]
    assert [each.rule for each in findings if each.where == "draft"] == ["draft"]
    assert [each for each in findings if each.severity == "error"] == []


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (completion("I cannot."), "no usable draft"),
        (completion(json.dumps({**DRAFT, "anchors": ["one"]})), "anchors"),
        (completion(None, refusal="No."), "gave no answer"),
        (error(401, "bad key", code="invalid_api_key"), "OPENAI_API_KEY"),
    ],
)
async def test_a_draft_that_is_none_leaves_nothing(
    reply: object, said: str, tmp_path: Path
) -> None:
    with (
        MisbehavingServer(script=lambda _: reply) as server,
        pytest.raises(AccessError, match=said),
    ):
        await new_trait(
            tmp_path / "mine",
            "tea",
            sentence="tea",
            judge_model="m",
            judge_base_url=server.url,
        )
    assert left_in(tmp_path) == []


async def test_a_draft_waits_where_an_endpoint_asks_it_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(probe, "asyncio", SimpleNamespace(sleep=sleep))
    busy, draft = error(429, "slow down", retry_after="1"), completion(json.dumps(DRAFT))
    with MisbehavingServer(script=[busy, error(503, "restarting"), draft]) as server:
        path = await new_trait(
            tmp_path / "mine", "tea", sentence="tea", judge_model="m", judge_base_url=server.url
        )
        assert len(server.log) == 3
    assert waited == [1.0, 1.0, 1.0]  # as was asked for, then a pause behind each failure
    assert json.loads(path.read_text())["draft"] is True


async def test_a_draft_wants_an_endpoint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="endpoint"):
        await new_trait(tmp_path / "mine", "tea", sentence="tea", judge_model="local")
    with pytest.raises(UsageError, match="refused"):
        await new_trait(tmp_path / "mine", "../tea")
    assert left_in(tmp_path) == []


def test_a_preview_shows_what_was_cut_off_and_ends_in_the_run_of_what_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "Is it better to live in a town or in a village by the sea?"
    rows = (
        PreviewRow(question, "pos", "Tea " * 30, "scored", 61.5, cut_off=True),
        PreviewRow(question, "neg", "No.", "refused", None),
    )
    judge = SimpleNamespace(is_local=True)
    trait = SimpleNamespace(settings=SimpleNamespace(judge=judge))
    result: Any = SimpleNamespace(traits={"tea": trait}, errors=[], usage=None, interrupted=False)
    found = Preview({"pos": "Praise tea.", "neg": "Praise no tea."}, rows, result)
    monkeypatch.setattr("traitmill.cli.preview.watched", lambda *_: found)
    on = ["--experiment", "mine", "--trait", "tea", "--questions", "1"]
    typed = ["--judge_model", "local", "--max_new_tokens", "48"]
    said = CliRunner().invoke(preview.command, [*on, *typed]).output
    lines = said.splitlines()
    assert question in lines, "across both columns"
    assert re.search(r"^score 61.5, cut off +refused *$", said, re.MULTILINE)
    assert "scores: 50 is the middle of the responses shown" in lines
    assert lines[-1].endswith(f" run {' '.join(on[:4])} {' '.join(typed)}")
    assert lines[-1].startswith("next: ")


def test_where_the_experiment_is_missing_those_that_are_there_are_named(tmp_path: Path) -> None:
    for name in ("mine", "demo", ".hidden"):
        (tmp_path / "experiments" / name).mkdir(parents=True)
    (tmp_path / "experiments" / "notes.txt").touch()
    how: dict[str, Any] = {"capture_output": True, "text": True, "env": clean_environment()}
    asked = subprocess.run([TRAITMILL, "status"], cwd=tmp_path, **how)
    assert asked.returncode == ExitCode.USAGE
    assert asked.stderr.splitlines()[-1] == "There are in experiments/: demo, mine"
    inside = tmp_path / "experiments"
    elsewhere = subprocess.run([TRAITMILL, "status"], cwd=inside, **how)
    assert "There are" not in elsewhere.stderr
    typed = [TRAITMILL, "status", "--experiments_dir", str(inside)]
    there = subprocess.run(typed, cwd=inside, **how)
    assert there.stderr.splitlines()[-1] == f"There are in {inside}/: demo, mine"


@pytest.mark.parametrize("name", ["../evil", "a/b", "/tmp/evil", ".."])
def test_f26_a_definition_is_written_nowhere_but_among_the_experiments(
    tmp_path: Path, name: str
) -> None:
    root, source = tmp_path / "experiments", tmp_path / "pairs.jsonl"
    source.write_text('{"pos": "Be calm.", "neg": "Be wild."}\n')
    there = ["--experiments_dir", str(root)]
    made = command("new", "--experiment", name, "--trait", "t", *there)
    taken = command("import", str(source), "--to", name, *there)
    for ended in (made, taken):
        assert ended.returncode == ExitCode.USAGE
        assert "is refused" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


async def test_what_is_misspelt_writes_no_scaffold_and_asks_no_judge(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="judge_modle"):
        await new_trait(tmp_path / "mine", "tea", judge_modle="x")
    assert not (tmp_path / "mine").exists()
    with pytest.raises(UsageError, match="`ask` 'foo' is unknown; choose from trait, coherence"):
        await traitmill.judge(tmp_path / "mine", ask="foo")


def test_a_score_of_0_is_a_score(tmp_path: Path) -> None:
    rows = tuple(PreviewRow("q", side, "text", "scored", score) for side, score in SCORES)
    assert repr(Preview({}, rows, None)).endswith("pos 90.0, neg 0.0)")  # type: ignore[arg-type]


def test_what_an_error_advises_can_be_pasted_into_a_program(tmp_path: Path) -> None:
    made = {name: str(Step(name, tmp_path / "exp/t")) for name in ("generate", "vectors", "steer")}  # type: ignore[arg-type]
    assert made["generate"].startswith("await traitmill.generate(")
    assert made["vectors"].startswith("traitmill.fit_experiment(")
    assert made["steer"].startswith("await traitmill.steer(")
    for name, call in made.items():
        function = getattr(traitmill, call.partition("traitmill.")[2].partition("(")[0])
        assert inspect.iscoroutinefunction(function) == call.startswith("await "), name


SCORES = (("pos", 90.0), ("neg", 0.0))
