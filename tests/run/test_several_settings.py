"""Traits of one command whose folders differ, and what a folder alone may not decide."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.support import fakes, lab
from traitmill.engine.errors import AccessError, ExitCode, StoppedError, UsageError
from traitmill.engine.records import Response, Verdict
from traitmill.engine.run import Backends, Work, capture, generate, judge, preview
from traitmill.engine.run.folder_settings import check_judge, resolve
from traitmill.engine.settings import SampleCounts, apply
from traitmill.engine.storage import TraitFolder
from traitmill.engine.traits.definition import Trait

URL = "http://127.0.0.1:9/v1"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(lab.make_model(tmp_path))


class Judge(fakes.FakeJudge):
    """Stops after so many verdicts, and fails the texts in `failing`."""

    left = 10**9
    failing: frozenset[str] = frozenset()

    async def judge(self, trait: Trait, response: Response) -> Verdict:
        if Judge.left <= 0:
            raise StoppedError("no quota left")
        Judge.left -= 1
        verdict = await super().judge(trait, response)
        if response.sample.id in Judge.failing:
            return replace(verdict, status="failed", score=None, error="HTTP 500")
        return verdict


@asynccontextmanager
async def backends(work: Work) -> AsyncIterator[Backends]:
    settings = work.settings
    yield Backends(
        generator=fakes.FakeGenerator() if work.generates else None,
        judge=Judge(settings.judge) if work.judges else None,
        capturer=fakes.FakeCapture(settings.capture) if work.captures else None,
    )


async def go(command: Any, *arguments: Any, **given: Any) -> Any:
    with patch("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers):
        return await asyncio.wait_for(command(*arguments, backends=backends, **given), 60)


async def made(root: Path, model: str, trait: str, judge: str = "j", **given: Any) -> ExitCode:
    given = {"n_examples": 20, "judge_base_url": URL, **given}
    result = await go(generate, root, [trait], model=model, judge_model=judge, **given)
    return result.exit_code


@pytest.mark.parametrize("order", [["a", "b"], ["b", "a"]])
async def test_traits_of_different_min_kept_end_together(
    tmp_path: Path, model: str, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second has verdicts to come and may grow; no engine was loaded for it, and none came."""
    root = fakes.make_trait(tmp_path, "a").parent
    fakes.make_trait(tmp_path, "b")
    assert await made(root, model, "a") == ExitCode.OK
    monkeypatch.setattr(Judge, "left", 10)
    assert await made(root, model, "b", min_kept=30) == ExitCode.STOPPED
    monkeypatch.setattr(Judge, "left", 10**9)
    both = await go(generate, root, order)
    assert both.exit_code == ExitCode.OK
    kept = fakes.state(root / "b").counts()
    assert min(kept[side]["kept"] for side in ("pos", "neg")) >= 30


def n_rows(folder: Path) -> list[int]:
    rows = []
    for side in ("pos", "neg"):
        with (folder / f"responses/{side}.csv").open(newline="") as file:
            rows.append(sum(1 for _ in csv.DictReader(file)))
    return rows


def test_rounds_of_min_kept_stand_where_the_next_run_ends_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(20, counts=SampleCounts(n_examples=20, min_kept=40))
    runs = fakes.open_runs([folder], settings)
    first = runs[0].state.plan.ids[0].decode()
    monkeypatch.setattr(Judge, "failing", frozenset([first]))
    asyncio.run(fakes.pipeline(runs, settings, judge=Judge(settings.judge)).run())
    planned, rows = fakes.state(folder).plan.n_planned, n_rows(folder)
    assert min(rows) >= 40
    monkeypatch.setattr(Judge, "left", 0)
    runs = fakes.open_runs([folder], settings)
    asyncio.run(fakes.pipeline(runs, settings, judge=Judge(settings.judge)).run())
    assert fakes.state(folder).plan.n_planned == planned
    fakes.export_again(folder)
    assert n_rows(folder) == rows


async def test_a_capture_asks_no_judge_and_takes_traits_of_several(
    tmp_path: Path, model: str
) -> None:
    root = fakes.make_trait(tmp_path, "a").parent
    fakes.make_trait(tmp_path, "b")
    await made(root, model, "a", judge="one", capture="none")
    await made(
        root, model, "b", judge="two", judge_base_url="http://127.0.0.1:8/v1", capture="none"
    )
    result = await go(capture, root)
    assert result.exit_code == ExitCode.OK
    assert all(fakes.state(root / name).captured().any() for name in "ab")
    folders = {name: TraitFolder(root / name) for name in "ab"}
    with pytest.raises(UsageError, match="different judges"):
        resolve(folders, {})


async def test_a_preview_reads_with_the_folders_own_model_and_adapter(
    tmp_path: Path, model_folder: Path
) -> None:
    from tests.support.adapters import make_adapter
    from tests.support.tiny import tiny_qwen3

    model = str(tiny_qwen3(tmp_path / "tiny", model_folder))
    root = fakes.make_trait(tmp_path).parent
    adapter = str(make_adapter(tmp_path / "adapter", Path(model)))
    seen = []

    @asynccontextmanager
    async def watched(work: Work) -> AsyncIterator[Backends]:
        seen.append(work.ref)
        async with backends(work) as found:
            yield found

    async def look(**given: Any) -> Any:
        given = {"judge_model": "j", "judge_base_url": URL, **given}
        with patch("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers):
            return await preview(root, "trait", backends=watched, **given)

    assert len((await look(model=model, adapter=adapter)).rows) == 6
    await made(root, model, "trait", adapter=adapter)
    await look()
    await look(adapter="")
    assert [ref.adapter.source if ref.adapter else None for ref in seen] == [adapter, adapter, None]
    assert {ref.source for ref in seen} == {model}


FOREIGN = "https://judge.example.org/v1"


@pytest.mark.parametrize(
    ("key", "given", "environment", "refused"),
    [
        ("sk-mine-0123456789", {}, "", True),
        ("sk-mine-0123456789", {"judge_base_url": FOREIGN}, "", False),
        ("sk-mine-0123456789", {}, FOREIGN, False),
        ("", {}, "", False),
    ],
)
def test_f28_a_key_goes_to_no_address_that_a_folder_alone_names(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    given: dict[str, str],
    environment: str,
    refused: bool,
) -> None:
    """The folder may be somebody else's."""
    made = fakes.make_trait(tmp_path)
    settings = fakes.settings(2)
    asyncio.run(fakes.pipeline(fakes.open_runs([made], settings), settings).run())
    asked = {"judge_model": "j", "judge_base_url": FOREIGN}
    version = {"schema_version": 1} if not (made / "parquet/asked.json").exists() else {}
    (made / "parquet/asked.json").write_text(json.dumps({"settings": asked, **version}))
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("OPENAI_BASE_URL", environment)
    found, _ = resolve({"trait": TraitFolder(made)}, given)
    assert found["trait"].limits.base_url == FOREIGN
    if refused:
        with pytest.raises(AccessError, match=f"`judge_base_url` {FOREIGN}"):
            check_judge(found["trait"], given)
    else:
        check_judge(found["trait"], given)


@pytest.mark.parametrize(
    "name", ["x-goog-api-key", "Ocp-Apim-Subscription-Key", "cf-aig-authorization", "Cookie"]
)
def test_f28_a_key_in_a_header_goes_no_further_than_one_of_openai(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("TRAITMILL_JUDGE_HEADERS", json.dumps({name: "mine-0123456789"}))
    with pytest.raises(AccessError, match="which nobody named but the folder"):
        check_judge(apply({"judge_base_url": FOREIGN}), {})
    monkeypatch.setenv("TRAITMILL_JUDGE_HEADERS", json.dumps({"X-Title": "my study"}))
    check_judge(apply({"judge_base_url": FOREIGN}), {})


@pytest.mark.parametrize("far", ["http://0x08080808/v1", "http://134744072/v1"])
def test_f28_a_number_is_an_address_like_any_other(
    monkeypatch: pytest.MonkeyPatch, far: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine-0123456789")
    with pytest.raises(AccessError, match="which nobody named but the folder"):
        check_judge(apply({"judge_base_url": far}), {})


@pytest.mark.parametrize(
    "near",
    [
        "http://localhost:8000/v1",
        "http://10.0.0.5/v1",
        "http://gpu01:8000/v1",
        "http://host.docker.internal/v1",
        "http://100.64.0.3/v1",
        URL,
    ],
)
def test_f28_an_address_of_ones_own_network_needs_no_second_naming(
    monkeypatch: pytest.MonkeyPatch, near: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine-0123456789")
    check_judge(apply({"judge_base_url": near}), {})


async def test_a_result_of_another_question_says_that_nothing_is_kept_by_it(
    tmp_path: Path, model: str
) -> None:
    root = fakes.make_trait(tmp_path, "a").parent
    await made(root, model, "a")
    result = await go(judge, root, ask="coherence")
    [shown] = map(repr, result.traits.values())
    assert "scored)" in shown
    assert "kept" not in shown
