"""A run that goes on with other settings, or after a loss: nothing paid for is dropped or redone."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.run.test_several_settings import URL, go, made, n_rows
from tests.support import fakes, lab
from traitmill.engine.capture.per_token import read_index
from traitmill.engine.errors import (
    EngineDiedError,
    ExitCode,
    LockedError,
    StoppedError,
    UsageError,
)
from traitmill.engine.records import Response, Sample, Verdict
from traitmill.engine.run import Backends, Work, capture, export, generate, judge
from traitmill.engine.run.folder_settings import resolve
from traitmill.engine.run.selection import model_of
from traitmill.engine.storage import TraitFolder, lock_traits
from traitmill.engine.traits.definition import Trait

SIDES = ("pos", "neg")


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(lab.make_model(tmp_path))


def watched(**parts: Any) -> tuple[Any, dict[str, Any]]:
    """Backends of some classes, and what was opened of them."""
    seen: dict[str, Any] = {}

    @asynccontextmanager
    async def opened(work: Work) -> AsyncIterator[Backends]:
        settings = work.settings
        if work.generates:
            seen["generator"] = parts.get("generator", fakes.FakeGenerator)()
        if work.judges:
            seen["judge"] = parts.get("judge", fakes.FakeJudge)(settings.judge)
        if work.captures:
            seen["capturer"] = parts.get("capturer", fakes.FakeCapture)(settings.capture)
        yield Backends(**seen)

    return opened, seen


async def work(root: Path, model: str, **given: Any) -> dict[str, Any]:
    """Generate with parts that are watched; return them, and the exit code."""
    parts = {name: given.pop(name) for name in ("generator", "judge", "capturer") if name in given}
    opened, seen = watched(**parts)
    settings = {"judge_model": "one", "judge_base_url": URL, "flush_seconds": 0.2, **given}
    with patch("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers):
        run = generate(root, ["trait"], model=model, backends=opened, **settings)
        result = await asyncio.wait_for(run, 60)
    return {**seen, "exit": result.exit_code}


def unjudged(root: Path) -> int:
    counts = fakes.state(root / "trait").counts()
    return sum(counts[side]["verdicts"]["unjudged"] for side in SIDES)


async def test_responses_that_no_judge_has_seen_can_be_captured(tmp_path: Path, model: str) -> None:
    """A run with a local judge that was stopped before its first verdict names that very command."""

    class Dies(fakes.FakeGenerator):
        async def generate(self, sample: Sample) -> Response:
            if len(self.calls) == 5:
                raise EngineDiedError("the engine died")
            return await super().generate(sample)

    class Silent(fakes.FakeJudge):
        async def judge(self, trait: Trait, response: Response) -> Verdict:
            raise StoppedError("before the first verdict")

    root = fakes.make_trait(tmp_path).parent
    parts = {"generator": Dies, "judge": Silent}
    await work(root, model, judge_model="local", judge_base_url=None, capture="none", **parts)
    state = fakes.state(root / "trait")
    stored = int(state.responses.having("ok").sum())
    assert stored
    assert not state.verdicts.having("scored").any()
    opened, seen = watched()
    with patch("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers):
        await capture(root, "trait", backends=opened)
    assert list(seen) == ["capturer"]
    assert int(fakes.state(root / "trait").captured().sum()) == stored


async def test_a_verdict_that_is_owed_loads_no_generator_where_enough_are_kept(
    tmp_path: Path, model: str
) -> None:
    class FailsOne(fakes.FakeJudge):
        async def judge(self, trait: Trait, response: Response) -> Verdict:
            verdict = await super().judge(trait, response)
            if response.sample.id == self.calls[0]:
                return replace(verdict, status="failed", score=None, error="HTTP 500")
            return verdict

    root = fakes.make_trait(tmp_path).parent
    await work(root, model, n_examples=20, min_kept=5, judge=FailsOne)
    again = await work(root, model, n_examples=20, min_kept=5)
    assert len(again["judge"].calls) == 1
    assert "generator" not in again
    assert unjudged(root) == 0


async def test_another_judge_of_a_grown_run_judges_what_is_there(
    tmp_path: Path, model: str
) -> None:
    """Of rounds that `min_kept` had added, nothing was judged, and others were made in their
    place."""
    root = fakes.make_trait(tmp_path).parent
    await work(root, model, n_examples=20, min_kept=40)
    stored = fakes.state(root / "trait").n_rows()["responses"]
    again = await work(root, model, n_examples=20, min_kept=40, judge_model="two")
    assert again["exit"] == ExitCode.OK
    grown = fakes.state(root / "trait").n_rows()["responses"]
    generated = len(again["generator"].calls) if "generator" in again else 0
    assert grown == stored + generated
    assert generated <= 40  # one more round at most, by other scores
    assert unjudged(root) == 0


@pytest.mark.parametrize("n_examples", [20, 15])
async def test_stored_rows_of_a_round_that_comes_again_are_judged_and_captured(
    tmp_path: Path, model: str, n_examples: int
) -> None:
    """One verdict of the first round fails, and the judge stops in the second."""

    class Stops(fakes.FakeJudge):
        async def judge(self, trait: Trait, response: Response) -> Verdict:
            verdict = await super().judge(trait, response)
            if len(self.calls) > 55:
                raise StoppedError("no quota left")
            if len(self.calls) == 1:
                return replace(verdict, status="failed", score=None, error="HTTP 500")
            return verdict

    root = fakes.make_trait(tmp_path).parent
    await work(root, model, n_examples=20, min_kept=40, judge=Stops)
    again = await work(root, model, n_examples=n_examples, min_kept=40)
    state = fakes.state(root / "trait")
    assert again["exit"] == ExitCode.OK
    assert unjudged(root) == 0
    assert min(n_rows(root / "trait")) >= 40
    assert not (state.passing() & ~state.captured()).any()
    rows = n_rows(root / "trait")
    await work(root, model, n_examples=n_examples, min_kept=40)
    assert n_rows(root / "trait") == rows


async def test_a_run_that_does_not_load_takes_nothing_from_the_plan(
    tmp_path: Path, model: str
) -> None:
    root = fakes.make_trait(tmp_path).parent
    await work(root, model, n_examples=20, min_kept=40)
    rows = n_rows(root / "trait")

    @asynccontextmanager
    async def dead(_: Work) -> AsyncIterator[Backends]:
        raise EngineDiedError("the engine did not start")
        yield

    given = {"judge_model": "two", "judge_base_url": URL}
    with (
        patch("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers),
        pytest.raises(EngineDiedError),
    ):
        await generate(root, ["trait"], model=model, backends=dead, **given)
    assert not export(root, ["trait"]).errors
    assert n_rows(root / "trait") == rows


async def test_kept_rows_are_not_captured_again_for_another_judge(
    tmp_path: Path, model: str
) -> None:
    root = fakes.make_trait(tmp_path).parent
    first = await work(root, model, n_examples=20, capture="kept")
    assert first["capturer"].rows
    again = await work(root, model, n_examples=20, judge_model="two")
    stored = {row.sample.id for row in first["capturer"].rows}
    captured = again["capturer"].rows if "capturer" in again else []
    assert not stored & {row.sample.id for row in captured}


async def test_a_new_run_that_was_cut_off_while_the_old_one_moved_begins_anew(
    tmp_path: Path, model: str
) -> None:
    folder = fakes.make_trait(tmp_path)
    await work(folder.parent, model, n_examples=20)
    move, moves = shutil.move, []

    def cut(source: Path, target: Path) -> None:
        moves.append(source)
        if len(moves) == 2:
            raise KeyboardInterrupt
        move(source, target)

    opened, _ = watched()
    with (
        patch("traitmill.engine.storage.folder.shutil.move", cut),
        patch("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers),
        pytest.raises(KeyboardInterrupt),
    ):
        await generate(folder.parent, model=model, backends=opened, new_run=True)
    again = await work(folder.parent, model, n_examples=20, new_run=True)
    assert len(again["generator"].calls) == 40
    moved = sorted(path.name for part in folder.glob("run-*") for path in part.iterdir())
    assert moved == ["activations", "parquet", "responses"]
    assert not TraitFolder(folder).moving.exists()


@pytest.mark.parametrize(
    ("n_questions", "said"),
    [(5, "8 samples join the plan, and 8 of before leave it"), (10, "no sample asks them")],
)
async def test_what_appended_questions_do_to_the_plan_is_said(
    tmp_path: Path, model: str, n_questions: int, said: str
) -> None:
    content = fakes.definition(2, n_questions)
    folder = fakes.make_trait(tmp_path, content=content)
    await work(folder.parent, model, n_examples=20)
    content["questions"] += ["New A?", "New B?"][: 2 if n_questions == 5 else 1]
    (folder / "trait_definition.json").write_text(json.dumps(content))
    from traitmill.engine.run import Listener

    lines: list[str] = []

    class Noting(Listener):
        def notice(self, line: str) -> None:
            lines.append(line)

    await work(folder.parent, model, n_examples=20, listener=Noting())
    assert any(said in line for line in lines)


async def test_an_export_takes_rows_that_were_made_again_for_those_before(
    tmp_path: Path, model: str
) -> None:
    """Failed verdicts were repeated, so more rows stood in the part that was damaged than now."""

    class Failing(fakes.FakeJudge):
        async def judge(self, trait: Trait, response: Response) -> Verdict:
            verdict = await super().judge(trait, response)
            if len(self.calls) % 7 == 0:
                return replace(verdict, status="failed", score=None, error="HTTP 500")
            return verdict

    folder = fakes.make_trait(tmp_path)
    await work(folder.parent, model, n_examples=20, judge=Failing)
    await work(folder.parent, model, n_examples=20)
    part = fakes.part_files(folder, "verdicts")[-1]
    part.write_bytes(part.read_bytes()[:200])
    await work(folder.parent, model, n_examples=20)
    result = export(folder.parent, ["trait"], threshold=60.0)
    assert not result.errors


async def test_a_pool_that_is_added_takes_no_tensor_away(tmp_path: Path, model: str) -> None:
    folder = fakes.make_trait(tmp_path)
    await work(folder.parent, model, n_examples=10)
    await work(folder.parent, model, n_examples=10, pool="prompt_last")
    names = {path.name for path in (folder / "activations").glob("*.pt")}
    assert names == {"all_layers.pt", "all_layers.prompt_last.pt"}


async def test_traits_of_different_pools_are_captured_in_all_of_them(
    tmp_path: Path, model: str
) -> None:
    root = fakes.make_trait(tmp_path, "a").parent
    fakes.make_trait(tmp_path, "b")
    await made(root, model, "a")
    await made(root, model, "b", pool="prompt_last")
    result = await go(generate, root, n_examples=30, pool="response_mean")
    assert result.exit_code == ExitCode.OK
    for name in "ab":
        names = {path.name for path in (root / name / "activations").glob("*.pt")}
        assert names == {"all_layers.pt", "all_layers.prompt_last.pt"}


async def test_a_twin_of_a_captured_row_is_captured_too(tmp_path: Path, model: str) -> None:
    class Sure(fakes.FakeJudge):
        async def judge(self, trait: Trait, response: Response) -> Verdict:
            verdict = await super().judge(trait, response)
            score = 90.0 if response.sample.polarity == "pos" else 10.0
            return verdict if verdict.score is None else replace(verdict, score=score)

    root = fakes.make_trait(tmp_path).parent
    await work(root, model, n_examples=20, capture="kept")
    await work(root, model, n_examples=20, judge_model="two", paired=True, judge=Sure)
    assert fakes.state(root / "trait").kept_uncaptured() == 0
    assert (root / "trait/activations/all_layers.pt").exists()


async def test_the_newest_activation_set_is_the_one_begun_last(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(fakes.FakeJudge):
        async def judge(self, trait: Trait, response: Response) -> Verdict:
            raise StoppedError("no quota left")

    for number, (first, second) in enumerate([("0-1", "0-2"), ("0-2", "0-1"), ("1-2", "0-1")]):
        root = fakes.make_trait(tmp_path / str(number)).parent
        for moment, layers in ((10**9, first), (10**9 + 60, second)):
            monkeypatch.setenv("SOURCE_DATE_EPOCH", str(moment))
            low, high = map(int, layers.split("-"))
            given = {"layers": tuple(range(low, high + 1)), "judge": Stopped}
            await work(root, model, n_examples=5, **given)
        known = fakes.state(root / "trait").capture
        assert known is not None
        assert tuple(known.asked["layers"]) == tuple(range(low, high + 1))


async def test_a_capture_of_kept_and_of_no_rows_is_no_capture_of_all(
    tmp_path: Path, model: str
) -> None:
    root = fakes.make_trait(tmp_path, "one").parent
    fakes.make_trait(tmp_path, "two")
    await made(root, model, "one", capture="kept")
    await made(root, model, "two", capture="none")
    with pytest.raises(UsageError, match="choices of whose activations"):
        await go(capture, root)
    result = await go(capture, root, capture="kept")
    assert result.exit_code == ExitCode.OK


async def test_a_model_that_is_named_is_the_one_for_all(tmp_path: Path, model: str) -> None:
    root = fakes.make_trait(tmp_path, "one").parent
    fakes.make_trait(tmp_path, "two")
    for name in ("other", "third"):
        shutil.copytree(model, tmp_path / name)
    await made(root, model, "one")
    await made(root, str(tmp_path / "other"), "two")
    with pytest.raises(UsageError, match="different models"):
        await go(generate, root, new_run=True)
    result = await go(generate, root, new_run=True, model=str(tmp_path / "third"))
    assert result.exit_code == ExitCode.OK


async def test_a_further_trait_goes_on_as_the_experiments_latest_run(
    tmp_path: Path, model: str
) -> None:
    """Else another model would make it, and a paid judge would read it."""
    root = fakes.make_trait(tmp_path, "one").parent
    fakes.make_trait(tmp_path, "further")
    await made(root, model, "one", judge="mine", temperature=0.5)
    folders = {"further": TraitFolder(root / "further")}
    settings, lines = resolve(folders, {})
    found = settings["further"]
    assert (found.judge.model, found.limits.base_url) == ("mine", URL)
    assert found.sampling.temperature == 0.5
    assert "kept from trait one" in lines[0]
    name, _, said = model_of(folders, None, "exp")
    assert name == model
    assert "as trait one" in said
    other, _ = resolve(folders, {}, names_model=True)
    assert other["further"].sampling.temperature == 0.5
    assert other["further"].capture.layers is None
    for name in ("asked", "selection", "run"):  # a damaged folder stands in no other trait's way
        path = root / f"one/parquet/{name}.json"
        content = path.read_bytes()
        path.write_text("{")
        assert resolve(folders, {})[1] == []
        path.write_bytes(content)


async def test_another_model_takes_no_adapter_from_another_trait(
    tmp_path: Path, model_folder: Path
) -> None:
    from tests.support.adapters import make_adapter
    from tests.support.tiny import tiny_qwen3
    from traitmill.engine.run.selection import adapter_of

    model = str(tiny_qwen3(tmp_path / "tiny", model_folder))
    adapter = str(make_adapter(tmp_path / "adapter", Path(model)))
    root = fakes.make_trait(tmp_path, "one").parent
    fakes.make_trait(tmp_path, "new")
    await made(root, model, "one", adapter=adapter)
    new, both = [{name: TraitFolder(root / name) for name in names} for names in (["new"], ["one"])]
    assert adapter_of(new, None, model_named=True) is None
    found = [adapter_of(new, None, model_named=False), adapter_of(both, None, model_named=True)]
    assert [each.source for each in found if each] == [adapter, adapter]


async def test_a_trait_with_nothing_to_judge_stays_as_its_files_say(
    tmp_path: Path, model: str
) -> None:
    """The judge of the other one is at another address."""
    from tests.judging.test_judges import judged
    from tests.support.misbehaving_server import MisbehavingServer
    from traitmill.engine.outputs import exported_table, is_exported

    root = fakes.make_trait(tmp_path, "a").parent
    fakes.make_trait(tmp_path, "b")
    how = {"model": model, "judge_model": "m", "n_examples": 4, "backends": judged}
    with patch("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers):
        for traits in (["a"], ["a", "b"]):
            with MisbehavingServer("gpt-5-mini") as server:
                await generate(root, traits, judge_base_url=server.url, **how)
    for name in "ab":
        assert is_exported(fakes.state(root / name))
        exported_table(TraitFolder(root / name))


async def test_a_page_needs_the_rows_that_its_files_are_of_and_no_more(
    tmp_path: Path, model: str
) -> None:
    from traitmill.engine.outputs import exported_table

    folder = fakes.make_trait(tmp_path)
    await work(folder.parent, model, n_examples=10)

    @asynccontextmanager
    async def dead(_: Work) -> AsyncIterator[Backends]:
        raise EngineDiedError("the engine did not start")
        yield

    with (
        patch("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers),
        pytest.raises(EngineDiedError),
    ):
        await generate(folder.parent, n_examples=20, backends=dead)
    (folder / "activations/all_layers.pt").unlink()
    assert len(exported_table(TraitFolder(folder))) == 20

    class Stops(fakes.FakeJudge):
        async def judge(self, trait: Trait, response: Response) -> Verdict:
            raise StoppedError("no quota left")

    await work(folder.parent, model, n_examples=20, judge=Stops)
    with pytest.raises(UsageError, match="since its files were written"):
        exported_table(TraitFolder(folder))


@pytest.mark.parametrize(
    ("host", "force", "taken"),
    [("other-pod", False, False), ("other-pod", True, True), (None, False, True)],
)
def test_a_lock_of_a_dead_host_can_be_forced_where_there_are_no_kernel_locks(
    tmp_path: Path, host: str | None, force: bool, taken: bool
) -> None:
    import filelock

    class NoLocks(filelock.FileLock):
        def acquire(self, *_: Any, **__: Any) -> Any:
            raise OSError(errno.ENOLCK, "No locks available")

    folder = fakes.make_trait(tmp_path)
    pid, named = 999_999, host or socket.gethostname()
    (folder / ".lock.held").write_text(f"{pid}\n{named}\n")
    (folder / ".lock").write_text(json.dumps({"pid": pid, "host": named}))
    with patch.object(filelock, "FileLock", NoLocks):
        if taken:
            with lock_traits([TraitFolder(folder)], force_unlock=force):
                pass
        else:
            lock = lock_traits([TraitFolder(folder)], force_unlock=force)
            with pytest.raises(LockedError, match="run again with `force_unlock`"), lock:
                pass


async def test_a_local_judge_neither_waits_for_samples_nor_does_without_them(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the plan is there; the command judges, and makes nothing."""
    from tests.judging.test_judges import Words
    from traitmill.engine.run import judge
    from traitmill.engine.run.loading import _Loader

    class Dies(fakes.FakeGenerator):
        async def generate(self, sample: Sample) -> Response:
            if len(self.calls) >= 25:
                raise EngineDiedError("the engine died")
            return await super().generate(sample)

    folder = fakes.make_trait(tmp_path)
    await work(folder.parent, model, n_examples=20, generator=Dies)

    @asynccontextmanager
    async def opened(wanted: Work) -> AsyncIterator[Backends]:
        yield _Loader(wanted)._open_local(Backends(), wanted.ref, Words(), Words())

    for name in ("check_support", "check_split"):
        monkeypatch.setattr(f"traitmill.engine.run.running.{name}", lambda *_, **__: None)
    before = unjudged(folder.parent)
    with patch("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers):
        run = judge(folder.parent, judge_model="local", backends=opened)
        with pytest.raises(UsageError, match="are not generated yet; generate them first"):
            await asyncio.wait_for(run, 30)
    assert unjudged(folder.parent) == before


def test_a_damaged_index_of_token_states_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"layers": [1')
    with pytest.raises(UsageError, match=r"index\.json is damaged; move"):
        read_index(tmp_path)


async def test_a_new_run_that_finds_no_room_leaves_the_old_one_where_it_is(
    tmp_path: Path, model: str
) -> None:
    """It had moved the old run aside, and the folder knew neither model nor judge any more."""
    root = fakes.make_trait(tmp_path).parent
    await work(root, model, n_examples=20)
    full = OSError(errno.ENOSPC, "no space left")
    saving = patch("traitmill.engine.traits.plan.Plan.save", side_effect=full)
    with saving, pytest.raises(OSError, match="no space left"):
        await work(root, model, new_run=True, seed=3)
    assert not list((root / "trait").glob("run-*"))
    settings, _ = resolve({"trait": TraitFolder(root / "trait")}, {})
    own = settings["trait"]
    assert (own.judge.model, own.limits.base_url, own.sampling.seed) == ("one", URL, 0)
    assert not export(root, ["trait"]).errors
    assert not TraitFolder(root / "trait").coming.path.exists()


async def test_a_new_run_that_is_killed_when_the_old_one_has_moved_knows_its_settings(
    tmp_path: Path, model: str
) -> None:
    root = fakes.make_trait(tmp_path).parent
    given = {"n_examples": 20, "threshold": 60.0, "pool": ["response_mean", "prompt_last"]}
    await work(root, model, **given)
    killed = patch.object(TraitFolder, "clean", side_effect=KeyboardInterrupt)
    opened, _ = watched()
    with (
        killed,
        patch("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers),
        pytest.raises(KeyboardInterrupt),
    ):
        await generate(root, ["trait"], backends=opened, new_run=True, seed=3)
    assert len(list((root / "trait").glob("run-*"))) == 1
    folder = TraitFolder(root / "trait")
    settings, _ = resolve({"trait": folder}, {})
    own = settings["trait"]
    assert (own.judge.model, own.limits.base_url, own.sampling.seed) == ("one", URL, 3)
    assert own.capture.pools == ("response_mean", "prompt_last")
    assert (own.threshold, own.counts.n_examples) == (60.0, 20)
    assert model_of({"trait": folder}, None, "exp")[0] == model


async def test_a_new_run_of_two_traits_that_is_cut_off_keeps_the_one_that_is_done(
    tmp_path: Path, model: str
) -> None:
    root = fakes.make_trait(tmp_path).parent
    shutil.copytree(root / "trait", root / "late")

    class Stops(fakes.FakeJudge):
        async def judge(self, trait: Trait, response: Response) -> Verdict:
            if trait.name == "trait" and len(self.calls) == 45:
                raise StoppedError("no quota left")
            return await super().judge(trait, response)

    async def run(judge: type[fakes.FakeJudge], **given: Any) -> int:
        opened, seen = watched(judge=judge)
        how = {"judge_model": "one", "judge_base_url": URL, "n_examples": 20, "model": model}
        with patch("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers):
            await generate(root, ["late", "trait"], backends=opened, **how, **given)
        return len(seen["judge"].calls) if "judge" in seen else 0

    def moved() -> list[int]:
        return [len(list((root / name).glob("run-*"))) for name in ("late", "trait")]

    whole = await run(fakes.FakeJudge)
    first = await run(Stops, new_run=True)
    assert first == 45
    assert moved() == [1, 1]
    # Another command on what is done is not the end of that one.
    await go(judge, root, ["late"], judge_model="two", judge_base_url=URL)
    again = await run(fakes.FakeJudge, new_run=True)
    assert again == whole - first
    assert moved() == [1, 1]
    # What came to its end is an old run to the next one.
    assert await run(fakes.FakeJudge, new_run=True) == whole
    assert moved() == [2, 2]
