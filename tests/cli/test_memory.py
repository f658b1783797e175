"""A folder remembers what it was made with: nothing is sent where neither it nor a command says."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TRAITMILL, Traitmill, clean_environment
from tests.support import fakes, lab
from tests.support.finished import copy_of, finish, on
from tests.support.misbehaving_server import MisbehavingServer, Seen
from tests.support.toy import JUDGE_URL, LAYER, METHOD, make_toy
from traitmill.cli import main
from traitmill.engine import run
from traitmill.engine.errors import ExitCode, UsageError
from traitmill.engine.run import Listener
from traitmill.engine.run.folder_settings import resolve
from traitmill.engine.settings import DEFAULTS, RunSettings, apply, value_of
from traitmill.engine.steering import steer
from traitmill.engine.storage import TraitFolder, need_record

OPENAI = "https://api.openai.com/v1"
COMMANDS: dict[str, list[str]] = {
    "judge": [],
    "judge of coherence": ["--ask", "coherence"],
    "generate": [],
    "run": [],
    "activations": [],
    "vectors": [],
    "report": [],
    "export": [],
    "status": [],
    "check": [],
    "doctor": [],
    "show": [],
    "plan": [],
    "new": [],
    "new of a draft": ["--from", "It likes tea."],
    "agree": ["--marks", "none.csv"],
    "project": [],
    "export_vectors": ["--format", "gguf", "--to", "out.gguf"],
    "steer": [],
    "preview": [],
    "import": [],
}
"""Every command but the demo, which judges by its own model."""
ASKS = {"judge", "generate", "run", "doctor", "new of a draft"}
"""Those of them that get so far here: the others would ask for weights first, or never ask."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> lab.Work:
    """A finished run; tests take a copy."""
    return finish(tmp_path_factory.mktemp("made") / "run", n=12)


@pytest.fixture
def work(made: lab.Work, tmp_path: Path) -> lab.Work:
    return copy_of(made, tmp_path / "work")


def by_side(seen: Seen) -> int:
    return 80 if "Be it" in seen.prompt else 20


@pytest.fixture
def servers() -> Iterator[tuple[MisbehavingServer, MisbehavingServer]]:
    """The folder's judge, and another that only the environment names."""
    with MisbehavingServer("gpt-4.1-mini") as own, MisbehavingServer("gpt-4.1-mini") as other:
        own.score = by_side
        yield own, other


def edit_prompt(work: lab.Work, words: str) -> None:
    """Ask something new, so that all responses are to be judged again."""
    path = work.folders[0] / "trait_definition.json"
    definition = json.loads(path.read_text())
    path.write_text(json.dumps({**definition, "eval_prompt": f"{words} {{question}} {{answer}}"}))


@pytest.fixture(scope="module")
def judged(
    made: lab.Work, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[lab.Work, MisbehavingServer, MisbehavingServer]]:
    """A run judged by the first server under a prompt that was edited since, and another server."""
    work = copy_of(made, tmp_path_factory.mktemp("judged") / "work")
    with MisbehavingServer("gpt-4.1-mini") as own, MisbehavingServer("gpt-4.1-mini") as other:
        own.score = by_side
        named = ["--judge_model", "some-model", "--judge_base_url", own.url, "--judge_rpm", "99999"]
        done = subprocess.run(
            [TRAITMILL, "judge", *on(work), *named], env=clean_environment(), capture_output=True
        )
        assert done.returncode in (ExitCode.OK, ExitCode.NOTHING_KEPT), done
        edit_prompt(work, "Anew:")
        yield work, own, other


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_t02_no_command_sends_anything_to_what_neither_folder_nor_command_names(
    traitmill: Traitmill,
    judged: tuple[lab.Work, MisbehavingServer, MisbehavingServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    made, own, other = judged
    work = copy_of(made, tmp_path / "work")
    before = len(own.log)
    monkeypatch.setenv("OPENAI_BASE_URL", other.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-account")
    name = command.split(maxsplit=1)[0]
    traitmill(name, *_where(name, work), *COMMANDS[command])
    assert not other.log
    assert other.listed == 0
    assert {seen.body["model"] for seen in own.log} == {"some-model"}
    assert (len(own.log) > before) == (name in ASKS or command in ASKS)


def _where(name: str, work: lab.Work) -> list[str]:
    """How a command names the folder."""
    experiment, trait, root = (on(work)[at : at + 2] for at in (0, 2, 4))
    return {
        "doctor": [*experiment, *root],
        "new": [*experiment, "--trait", "tea", *root],
        "project": [
            "--texts",
            str(work.folders[0]),
            "--vectors",
            "exp/trait",
            "--to",
            "out",
            *root,
        ],
        "import": ["nothing", "--to", "e", *root],
    }.get(name, [*experiment, *trait, *root])


def test_t02_every_command_is_among_them() -> None:
    names = {command.split(maxsplit=1)[0] for command in COMMANDS}
    assert names | {"demo"} == set(main.COMMANDS)


def test_t02_a_first_draft_goes_to_nobody_who_was_not_named(
    traitmill: Traitmill,
    tmp_path: Path,
    servers: tuple[MisbehavingServer, MisbehavingServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither a key in the environment nor an address in it is leave to pay."""
    own, other = servers
    monkeypatch.setenv("OPENAI_BASE_URL", other.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-account")
    draft = ["new", "--experiment", "e", "--trait", "tea", "--experiments_dir", str(tmp_path)]
    draft += ["--from", "It likes tea."]
    code, said = traitmill(*draft)
    assert code == ExitCode.USAGE
    assert "name it with --judge_model" in said
    code, said = traitmill(*draft, "--judge_base_url", own.url)
    assert code == ExitCode.USAGE
    assert [own.log, other.log, other.listed] == [[], [], 0]
    assert not (tmp_path / "e").exists()
    traitmill(*draft, "--judge_base_url", own.url, "--judge_model", "drafter")
    assert {seen.body["model"] for seen in own.log} == {"drafter"}
    assert not other.log


async def test_t02_steering_asks_the_folders_judge_at_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = await make_toy(tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-account")
    monkeypatch.setattr(
        "traitmill.engine.steering.commands.lazy_tokenizer", lambda _: fakes.tokenizers
    )
    which: dict[str, Any] = {"methods": [METHOD], "layers": [LAYER], "n_examples": 2}
    said: list[str] = []
    listener = Listener()
    monkeypatch.setattr(listener, "notice", said.append)
    await steer(tmp_path / "exp", ["trait"], backends=toy.backends, listener=listener, **which)
    [asked] = [work.settings for work in toy.works]
    assert (asked.judge.model, asked.limits.base_url) == ("toy", JUDGE_URL)
    [kept] = [line for line in said if line.startswith("kept from the folder: ")]
    assert f"`judge_model` toy, `judge_base_url` {JUDGE_URL}" in kept
    # How many there are of the run is not what steering asks for, and it has no --reset.
    assert "n_examples" not in kept
    assert "reset" not in kept


@pytest.mark.slow
def test_t02_a_judge_that_is_named_is_asked_at_the_folders_address(
    traitmill: Traitmill,
    work: lab.Work,
    servers: tuple[MisbehavingServer, MisbehavingServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, other = servers
    fast = ["--judge_rpm", "100000"]
    named = ["--judge_model", "some-model", "--judge_base_url", own.url, *fast]
    traitmill("judge", *on(work), *named)
    monkeypatch.setenv("OPENAI_BASE_URL", other.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-account")
    before = len(own.log)
    _, said = traitmill("judge", *on(work), "--judge_model", "second", *fast)
    assert f"kept from the folder: --judge_base_url {own.url}" in said
    assert {seen.body["model"] for seen in own.log[before:]} == {"second"}
    assert not other.log
    # The default address is the environment's, and only when it is asked for by name.
    reset = ["--judge_model", "third", "--reset", "judge_base_url"]
    traitmill("judge", *on(work), *reset, *fast)
    assert {seen.body["model"] for seen in other.log} == {"third"}


def test_t02_a_key_and_an_address_in_the_environment_leave_openais_folder_where_it_is(
    work: lab.Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    [path] = work.folders[0].glob("parquet/verdicts/*/facts.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"endpoint": OPENAI}))
    (work.folders[0] / "parquet/asked.json").unlink()
    folders = {"trait": TraitFolder(work.folders[0])}
    settings, _ = resolve(folders, {})
    assert settings["trait"].limits.base_url == OPENAI
    settings, _ = resolve(folders, {"judge_base_url": None})
    assert settings["trait"].limits.base_url == "http://127.0.0.1:9/v1"


def test_t02_traits_judged_at_two_addresses_are_not_judged_at_one(work: lab.Work) -> None:
    other = work.folders[0].with_name("other")
    subprocess.run(["cp", "-r", work.folders[0], other], check=True)
    path = other / "parquet/asked.json"
    found = json.loads(path.read_text())
    found["settings"]["judge_base_url"] = "http://127.0.0.1:8/v1"
    path.write_text(json.dumps(found))
    folders = {name: TraitFolder(work.root / "exp" / name) for name in ("trait", "other")}
    with pytest.raises(UsageError, match="judged at different addresses"):
        resolve(folders, {})
    resolve(folders, {"judge_base_url": "http://127.0.0.1:7/v1"})


GIVEN: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 0.8,
    "top_k": 7,
    "max_new_tokens": 60,
    "seed": 3,
    "system_prompt": "Be brief.",
    "prefill": "Well,",
    "dtype": "float32",
    "n_examples": 4,
    "judge_model": "some-model",
    "judge_base_url": "http://127.0.0.1:9/v1",
    "judge_mode": "integer",
    "judge_extra": '{"a":1}',
    "threshold": 60.0,
    "neg_threshold": 40.0,
    "paired": True,
    "capture": "kept",
    "pool": ("response_last", "response_mean"),
    "layers": (0, 2),
    "include_embeddings": True,
    "attention": "eager",
    "blocks": "model.layers",
}


def begun(tmp_path: Path, **given: Any) -> TraitFolder:
    """A folder whose run ended before a single response: only what it was told is there."""
    folder = fakes.make_trait(tmp_path)
    settings = run_settings(given)
    [opened] = fakes.open_runs([folder], settings, asked=given)
    return opened.folder


def run_settings(given: dict[str, Any]) -> RunSettings:
    return apply(given, fakes.settings())


def test_t06_options_not_given_keep_the_folders_values_all_of_them(tmp_path: Path) -> None:
    folder = begun(tmp_path, **GIVEN)
    settings, [line] = resolve({"trait": folder}, {"n_examples": 20})
    for name, value in GIVEN.items():
        if name != "n_examples":
            assert value_of(settings["trait"], name) == value, name
            assert value != value_of(DEFAULTS, name), f"{name}: the test would not see it"
    assert value_of(settings["trait"], "n_examples") == 20
    assert line.startswith("kept from the folder: ")
    assert "`temperature` 1" in line
    assert "pools that are captured stay" in line
    assert "`threshold` 60" in line
    assert "n_examples" not in line


def test_a_switch_that_is_kept_is_said_as_it_is_given(tmp_path: Path) -> None:
    _, [line] = resolve({"trait": begun(tmp_path, paired=True)}, {})
    assert "`paired` (name" in line or "`paired`," in line
    assert "True" not in line


def test_t06_more_examples_of_a_run_with_its_own_threshold(
    traitmill: Traitmill, work: lab.Work
) -> None:
    code, _ = traitmill("export", *on(work), "--threshold", "60", "--neg_threshold", "40")
    assert code == ExitCode.OK
    kept = (work.folders[0] / "responses/pos.csv").read_bytes()
    assert code == ExitCode.OK
    code, said = traitmill("generate", *on(work), "--n_examples", "12")
    assert code == ExitCode.OK, said
    assert "--threshold 60, --neg_threshold 40" in said
    assert (work.folders[0] / "responses/pos.csv").read_bytes() == kept
    _, said = traitmill("generate", *on(work), "--reset", "threshold,neg_threshold")
    folder = TraitFolder(work.folders[0])
    settings, _ = resolve({"trait": folder}, {})
    assert settings["trait"].threshold == DEFAULTS.threshold
    assert settings["trait"].neg_threshold is None
    assert settings["trait"].counts.n_examples == 12


def test_t06_reset_of_what_defines_the_samples_is_refused_with_the_diff(
    traitmill: Traitmill, work: lab.Work
) -> None:
    record = need_record(TraitFolder(work.folders[0]))
    assert record.sampling.temperature == DEFAULTS.sampling.temperature
    code, said = traitmill("generate", *on(work), "--temperature", "1.0")
    assert code == ExitCode.SETTINGS_CHANGED
    assert "temperature: 0.7 -> 1.0" in said
    code, said = traitmill("generate", *on(work), "--reset", "temprature")
    assert code == ExitCode.USAGE
    assert "--reset 'temprature' is no setting of this command" in said
    code, said = traitmill("generate", *on(work), "--reset", "temperature")
    assert code == ExitCode.OK, said


def test_t06_a_hubs_model_keeps_its_commit(work: lab.Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's newest commit is not the folder's: who names no model goes on with the old one."""
    asked: list[tuple[str, str | None]] = []

    def find(name: str, revision: str | None = None) -> Any:
        asked.append((name, revision))
        raise UsageError("far enough")

    monkeypatch.setattr("traitmill.engine.run.commands.find_model", find)
    path = work.folders[0] / "parquet/run.json"
    record = json.loads(path.read_text())
    record["source"] = record["sampling"]["model"] = "someone/model"
    record["sampling"]["revision"] = "abc123"
    path.write_text(json.dumps(record))
    with pytest.raises(UsageError, match="far enough"):
        asyncio.run(run.generate(work.root / "exp", "trait"))
    assert asked == [("someone/model", "abc123")]


def test_t02_a_preview_asks_the_folders_judge_at_its_address(
    work: lab.Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8/v1")
    seen: list[RunSettings] = []

    @asynccontextmanager
    async def backends(wanted: run.Work) -> AsyncIterator[run.Backends]:
        seen.append(wanted.settings)
        yield run.Backends(
            generator=fakes.FakeGenerator(), judge=fakes.FakeJudge(wanted.settings.judge)
        )

    monkeypatch.setattr("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers)
    asyncio.run(run.preview(work.root / "exp", "trait", backends=backends))
    [settings] = seen
    assert settings.judge.model == "fake-judge"
    assert settings.limits.base_url == "http://127.0.0.1:9/v1"
