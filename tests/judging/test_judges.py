"""Judges in whole runs: what stops, what is kept, and which verdict set is in use. Real client,
real HTTP."""

from __future__ import annotations

import asyncio
import csv
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from rich.console import Console

from tests.support import fakes, lab
from tests.support.misbehaving_server import MisbehavingServer, Seen, completion, error
from traitmill.cli import remarks, summary
from traitmill.engine.errors import (
    AccessError,
    DeadlyError,
    EngineDiedError,
    ExitCode,
    ResourceError,
    StoppedError,
    TraitmillError,
    UsageError,
)
from traitmill.engine.judging.local import LocalJudge, calibration_positions
from traitmill.engine.records import Response, Sample
from traitmill.engine.run import Backends, Listener, RunResult, Work, running
from traitmill.engine.run.loading import _Loader
from traitmill.engine.run.pipeline import Pipeline
from traitmill.engine.run.wanted import Wanted
from traitmill.engine.settings import JudgeLimits, JudgeSettings, RunSettings, Sampling
from traitmill.engine.storage import TraitFolder, verdict_sets
from traitmill.engine.traits.definition import Trait, load_traits
from traitmill.engine.traits.plan import make_plan

SIDES = ("pos", "neg")
LIMITS = JudgeLimits(rpm=1e6, concurrency=1)
NO_QUOTA = error(429, "You exceeded your current quota", code="insufficient_quota")


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@asynccontextmanager
async def judged(work: Work) -> AsyncIterator[Backends]:
    """The real remote judge; generation and capture are deterministic."""
    loader = _Loader(work)
    backends = Backends()
    try:
        if work.judges:
            backends = await loader._open_endpoint()
        yield replace(
            backends,
            generator=fakes.FakeGenerator() if work.generates else None,
            capturer=fakes.FakeCapture(work.settings.capture),
        )
    finally:
        await loader.close()


def judged_by(
    url: str, model: str = "gpt-4.1-mini", mode: str = "auto", n: int = 10, **changes: object
) -> RunSettings:
    return fakes.settings(
        n,
        judge=JudgeSettings(model=model, mode=mode),
        limits=JudgeLimits(base_url=url, rpm=1e6),
        **changes,
    )


async def go(
    folders: list[Path],
    settings: RunSettings,
    *,
    generates: bool = True,
    judges: bool = True,
    stop: asyncio.Event | None = None,
    backends=judged,
) -> RunResult:
    traits = load_traits({folder.name: folder for folder in folders})
    wanted = [
        Wanted(
            trait=trait,
            folder=TraitFolder(folder),
            settings=settings,
            generates=generates,
            judges=judges,
        )
        for trait, folder in zip(traits, folders, strict=True)
    ]
    with patch("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers):
        return await running.run_through(
            wanted, fakes.REF, Listener(), stop, backends, force_unlock=False
        )


def launch(folder: Path, settings: RunSettings, *, reopen: bool = False) -> RunResult:
    if reopen:
        settings = replace(settings, capture_rows="none")
    return asyncio.run(go([folder], settings, generates=not reopen))


def judge_key_of(folder: Path) -> str:
    """Of the verdict set that the files show."""
    return fakes.state(folder).judge_key


def csv_rows(folder: Path) -> list[dict[str, str]]:
    rows = []
    for side in ("pos", "neg"):
        with (folder / f"responses/{side}.csv").open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    return rows


def all_counts(folder: Path) -> dict[str, int]:
    counts = fakes.state(folder).counts()
    return {
        name: sum(counts[side][kind][name] for side in ("pos", "neg"))
        for kind, name in (("responses", "pending"), ("responses", "ok"), ("verdicts", "scored"))
    } | {"captured": sum(counts[side]["captured"] for side in ("pos", "neg"))}


@pytest.mark.parametrize("script", [[NO_QUOTA] * 9, [None, NO_QUOTA]])
def test_f05_without_quota_from_the_first_call_on_generation_and_capture_finish(
    tmp_path: Path, script: list
) -> None:
    folder = fakes.make_trait(tmp_path)
    with MisbehavingServer(script=script) as server:
        run = launch(folder, judged_by(server.url))
    assert isinstance(run.stage_errors["judging"], StoppedError)
    assert "no quota left" in str(run.stage_errors["judging"])
    counts = all_counts(folder)
    assert counts["pending"] == 0
    assert counts["captured"] == counts["ok"] > 0
    with MisbehavingServer() as server:
        run = launch(folder, judged_by(server.url))
    assert not run.stage_errors
    assert all_counts(folder)["scored"] == counts["ok"]


@pytest.mark.parametrize(
    ("persona", "model", "mode", "measured"),
    [
        ("gpt-5-mini", "gpt-5-mini", "auto", "integer"),
        ("gpt-4.1-mini", "gpt-4.1-mini", "auto", "expected"),
        ("gpt-4.1-mini", "gpt-4.1-mini", "integer", "integer"),
    ],
)
def test_the_metadata_names_the_measurement_that_was_used(
    tmp_path: Path, persona: str, model: str, mode: str, measured: str
) -> None:
    folder = fakes.make_trait(tmp_path)
    with MisbehavingServer(persona) as server:
        launch(folder, judged_by(server.url, model, mode))
    judge = json.loads((folder / "activations/metadata.json").read_text())["judge"]
    assert (judge["model"], judge["mode"], judge["mode_asked"], judge["kind"]) == (
        model,
        measured,
        mode,
        "remote",
    )


def test_f23_a_judge_that_cannot_be_had_leaves_the_verdict_set_in_use(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    with MisbehavingServer(models=["gpt-4.1-mini"]) as server:
        launch(folder, judged_by(server.url))
        before, sets = judge_key_of(folder), verdict_sets(TraitFolder(folder))
        kept = csv_rows(folder)
        assert kept
        for how in ({"reopen": True}, {"reopen": False}):
            with pytest.raises(AccessError, match="has no model typo"):
                launch(folder, judged_by(server.url, "typo"), **how)
            assert judge_key_of(folder) == before
            assert verdict_sets(TraitFolder(folder)) == sets
            fakes.export_again(folder)
            assert csv_rows(folder) == kept


def test_the_local_judge_is_placed_by_the_initial_plan_though_rounds_were_added() -> None:
    trait = Trait("t", tuple((f"pos {i}", f"neg {i}") for i in range(3)), tuple("ABCDEFG"), "")
    sampling = Sampling(model="m", revision="r")
    initial, grown = (
        make_plan(trait, {"pos": n, "neg": m}, sampling, fakes.tokenize)
        for n, m in ((50, 50), (150, 100))
    )
    wanted = []
    for start in (0, 50):  # 50 samples a side, of which every (49/15)th
        wanted += [initial.ids[start + round(k * 49 / 15)] for k in range(16)]
    for plan in (initial, grown):
        assert [plan.ids[position] for position in calibration_positions(plan, 50)] == wanted


def test_t50_another_judge_is_shown_once_it_has_judged_all(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    with MisbehavingServer() as server:
        launch(folder, judged_by(server.url))
        first, kept = judge_key_of(folder), csv_rows(folder)
    # The probe and five verdicts are answered, then there is no quota.
    with MisbehavingServer(script=[*[None] * 6, *[NO_QUOTA] * 60]) as server:
        launch(folder, judged_by(server.url, "another"), reopen=True)
    assert judge_key_of(folder) == first
    exported = fakes.export_again(folder)
    assert csv_rows(folder) == kept
    assert re.search(r"judge another .* has judged [1-9]\d* of \d\d", " ".join(exported.remarks))
    exported = fakes.export_again(folder, use_judge="another")
    assert exported.unjudged > 0
    assert exported.judge.startswith("another")
    fakes.export_again(folder, use_judge=first)
    with MisbehavingServer() as server:
        launch(folder, judged_by(server.url, "another"), reopen=True)
        second = judge_key_of(folder)
        assert second != first
        assert set(verdict_sets(TraitFolder(folder))) == {first, second}
        asked = len(server.log)
        launch(folder, judged_by(server.url), reopen=True)  # back, with all its verdicts there
        assert judge_key_of(folder) == first
        assert len(server.log) == asked


def test_a_profile_belongs_to_its_endpoint_and_the_measurement_to_its_verdict_set(
    tmp_path: Path,
) -> None:
    folder = fakes.make_trait(tmp_path)
    with MisbehavingServer("gpt-5-mini") as server:
        launch(folder, judged_by(server.url, "m", n=10))
    with MisbehavingServer(
        "gpt-4.1-mini"
    ) as server:  # could give log-probabilities; the set holds integers
        launch(folder, judged_by(server.url, "m", n=20))
        assert any("Rate from 0 to 100" in seen.prompt for seen in server.log)
        probed = len(server.log)
        launch(folder, judged_by(server.url, "m", n=30))
        assert not any("Rate from 0 to 100" in seen.prompt for seen in server.log[probed:])
        verdicts = lab.rows(folder, "verdicts")
        assert {row["mode"] for row in verdicts} == {"integer"}

        other = fakes.make_trait(tmp_path, "other")
        launch(other, judged_by(server.url, "m"))
        settings = judged_by(server.url, "m", n=40)
        with pytest.raises(UsageError, match="trait as integer, other as expected.*one by one"):
            asyncio.run(go([folder, other], settings))


def test_capture_alone_keeps_the_verdict_set_that_was_chosen(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    with MisbehavingServer() as server:
        launch(folder, judged_by(server.url, mode="integer"))
        first = judge_key_of(folder)
        (folder / "trait_definition.json").write_text(
            json.dumps(fakes.definition() | {"eval_prompt": "Other {question} {answer}"})
        )
        launch(folder, judged_by(server.url, mode="integer"), reopen=True)
    with pytest.raises(
        UsageError, match=rf"{first} \(gpt-4.1-mini, `judge_mode` integer, of 20\d\d-"
    ):
        fakes.export_again(folder, use_judge="gpt-4.1-mini")
    fakes.export_again(folder, use_judge=first)
    asyncio.run(go([folder], judged_by("http://127.0.0.1:9/v1"), generates=False, judges=False))
    assert judge_key_of(folder) == first


def test_answers_under_way_when_judging_stops_are_kept(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    with MisbehavingServer(latency=0.3) as server:

        def script(seen):
            return (
                NO_QUOTA if len(server.log) == 9 else None
            )  # at once, while the probe is long over and 7 are answered

        server._script = script
        run = launch(folder, judged_by(server.url))
        paid = server.statuses.count(200) - 1
    assert isinstance(run.stage_errors["judging"], StoppedError)
    assert paid >= 7
    assert all_counts(folder)["scored"] == paid


@contextmanager
def seen_pipelines() -> Iterator[list[Pipeline]]:
    """The pipelines that are made meanwhile."""
    made: list[Pipeline] = []

    class Seeing(Pipeline):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            made.append(self)

    with patch("traitmill.engine.run.running.Pipeline", Seeing):
        yield made


async def asked_after(
    server: MisbehavingServer, going: asyncio.Task, made: list[Pipeline], act
) -> tuple[list[Seen], int]:
    """`act` once 40 requests were sent, run to the end; requests that came later, and how many were
    under way then: those may come late."""
    while len(server.log) < 40:
        await asyncio.sleep(0.01)
    came, under_way = len(server.log), made[0].backends.judge._calls.throttle.in_flight
    act()
    await asyncio.wait_for(going, 60)
    return server.log[came:], under_way


def test_f02_an_interrupt_asks_nothing_more_and_keeps_what_was_asked(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)

    async def main(server: MisbehavingServer, made: list[Pipeline]) -> RunResult:
        stop = asyncio.Event()
        settings = judged_by(server.url, "gpt-5-mini", n=150)
        going = asyncio.create_task(go([folder], settings, stop=stop))
        late, under_way = await asked_after(server, going, made, stop.set)
        assert len(late) <= under_way < 100, "asking on would be some 250 requests"
        return await going

    with (
        MisbehavingServer("gpt-5-mini", latency=0.5) as server,
        patch("traitmill.engine.run.pipeline._DRAIN_S", 60.0),
        seen_pipelines() as made,
    ):
        result = asyncio.run(main(server, made))
        assert 40 <= len(server.log) < 250
        # The probe is no verdict.
        assert all_counts(folder)["scored"] == server.statuses.count(200) - 1
    assert result.interrupted
    assert not result.stage_errors


def test_f13_a_trait_that_cannot_be_written_is_not_paid_for(tmp_path: Path) -> None:
    good, bad = fakes.make_trait(tmp_path, "good"), fakes.make_trait(tmp_path, "bad")

    async def main(server: MisbehavingServer, made: list[Pipeline]) -> tuple[list[Seen], int]:
        def fail() -> None:
            made[0]._fail_trait(made[0].runs[0], ResourceError("the disk is full"))

        going = asyncio.create_task(go([bad, good], judged_by(server.url, "gpt-5-mini", n=200)))
        return await asked_after(server, going, made, fail)

    with (
        MisbehavingServer("gpt-5-mini", latency=0.2) as server,
        seen_pipelines() as made,
    ):
        late, under_way = asyncio.run(main(server, made))
        texts = {row["response"] for row in lab.rows(good, "responses")}
        of_the_bad = [s for s in late if not any(text in s.prompt for text in texts)]
        assert len(of_the_bad) <= under_way < 100, "asking on would be some 350 requests"
    assert all_counts(good)["scored"] == all_counts(good)["ok"] > 300


def test_f29_a_side_that_is_refused_as_a_whole_is_explained(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    with MisbehavingServer("gpt-5-mini", script=lambda _: completion("REFUSAL")) as server:
        run = launch(folder, judged_by(server.url, "gpt-5-mini"))
    said = "\n".join(remarks.remarks(run.traits["trait"]))
    for side in SIDES:
        assert f"no {side} response has a score: the judge answers, but gives no number" in said


# --- the local judge ---


class Words:
    """A tokenizer of one token a word, and the engine's next-token probabilities."""

    chat_template = None
    bos_token_id = None

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [hash(text) & 0xFFFF]}

    async def next_logprobs(
        self, prompt: tuple[int, ...], token_ids: list[int]
    ) -> dict[int, float]:
        return {token: -1.0 - index for index, token in enumerate(token_ids)}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("judge prompt of 9 tokens, context of 8"), "unparsable"),
        (DeadlyError("3 replicas died with it"), "failed"),
    ],
)
async def test_a_text_that_a_local_judge_cannot_read_is_one_verdict(
    error: TraitmillError, status: str
) -> None:
    """Of a study: its stored responses are named by their folder, `steering`, not by the trait."""

    class Short(Words):
        async def next_logprobs(self, prompt: object, token_ids: object) -> dict[int, float]:
            raise error

    judge = LocalJudge(Short(), Short(), JudgeSettings(model="local"), "words", lambda *_: None)
    judge.open_trait("calm", [], -1.0, "2026-01-01T00:00:00+00:00")
    sample = Sample("steering", "0" * 32, "pos", 0, 0, 0, "", "Q?", "Q?", (1,), 7)
    trait = Trait("calm", (("a", "b"),), ("Q?",), "{question}{answer}")
    verdict = await judge.judge(trait, Response(sample, "ok", "long", (1,), "stop"))
    assert (verdict.status, verdict.score, verdict.error) == (status, None, error.message)


def test_f22_a_local_judge_does_not_wait_for_samples_that_will_not_come(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(30, judge=JudgeSettings(model="local"))
    runs = fakes.open_runs([folder], settings)

    class Dying(fakes.FakeGenerator):
        async def generate(self, sample: Sample):
            if len(self.calls) >= 10:
                await asyncio.sleep(0.2)
                raise EngineDiedError("the generation engine died: boom")
            return await super().generate(sample)

    async def main():
        judge = LocalJudge(Words(), Words(), settings.judge, "words", lambda *_: None)
        ids = runs[0].state.plan.ids
        judge.open_trait(
            "trait",
            [ids[position].decode() for position in runs[0].calibration()],
            None,
            runs[0].state.record.created,
        )
        work = fakes.pipeline(
            runs,
            settings,
            generator=Dying(max_in_flight=8),
            judge=judge,
            on_skipped=judge.skip,
            on_starved=judge.give_up,
        )
        await asyncio.wait_for(work.run(), 60)
        return work

    work = asyncio.run(main())
    assert isinstance(work.errors["generation"], EngineDiedError)
    assert isinstance(work.errors["judging"], StoppedError)
    counts = all_counts(folder)
    assert counts["scored"] == 0
    assert counts["captured"] == counts["ok"] > 0


# --- commands ---


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a trait whose run is finished, made with a model that is gone."""
    folder = fakes.make_trait(tmp_path)
    with MisbehavingServer() as server:
        launch(folder, judged_by(server.url))
    return folder


def on(folder: Path) -> list[object]:
    return [
        "--experiment",
        "exp",
        "--trait",
        folder.name,
        "--experiments_dir",
        folder.parent.parent,
    ]


def test_a_remote_judge_needs_no_generation_model(traitmill, finished: Path) -> None:
    before = judge_key_of(finished)
    with MisbehavingServer("gpt-5-mini") as server:
        limits = ["--judge_base_url", server.url, "--judge_rpm", "100000"]
        code, said = traitmill("judge", *on(finished), "--judge_model", "gpt-5-mini", *limits)
    assert code == ExitCode.NOTHING_KEPT, said  # 80 for each, so no neg response is kept
    assert judge_key_of(finished) != before
    assert {row["trait_score"] for row in csv_rows(finished)} == {"80"}
    code, said = traitmill("export", *on(finished), "--use_judge", "gpt-4.1-mini")
    assert f"by judge gpt-4.1-mini ({before})" in said
    code, said = traitmill("activations", *on(finished))
    assert code == ExitCode.ACCESS, "capture does need it"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (
            ["--judge_model", "local:./no/such/folder"],
            ExitCode.ACCESS,
            "--judge_model local:./no/such/folder: model",
        ),
        (
            ["--judge_model", "m", "--judge_base_url", "http://h/v1?key=hunter2"],
            ExitCode.USAGE,
            "http://HOST:PORT/v1",
        ),
        (
            ["--judge_model", "m", "--judge_base_url", "http://h:no/v1"],
            ExitCode.USAGE,
            "http://HOST:PORT/v1",
        ),
    ],
)
@pytest.mark.parametrize("command", ["judge", "generate", "doctor"])
def test_f23_a_judge_that_cannot_work_is_found_before_anything_loads(
    traitmill, finished: Path, command: str, options: list[str], code: ExitCode, words: str
) -> None:
    before = {
        path: path.read_bytes()
        for path in finished.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    where = on(finished)[:2] + on(finished)[4:] if command == "doctor" else on(finished)
    got, said = traitmill(command, *where, *options)
    assert got == code or command == "doctor"
    assert words in said
    assert "hunter2" not in said
    after = {
        path: path.read_bytes()
        for path in finished.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    assert after == before


def test_f23_a_local_judge_without_yes_and_no_is_found_before_anything_loads(
    traitmill, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Characters:
        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": list(text.encode())}

    monkeypatch.setattr("traitmill.engine.judging.local.load_tokenizer", lambda _: Characters())
    folder = lab.make_model(finished.parent.parent)
    code, said = traitmill("judge", *on(finished), "--judge_model", f"local:{folder}")
    assert code == ExitCode.ACCESS
    assert "no single token for 'yes'" in said


def test_f19_responses_cut_off_are_counted_in_the_summary_and_the_status(
    traitmill, finished: Path
) -> None:
    rows = [row for row in lab.rows(finished, "responses") if row["status"] == "ok"]
    cut = {
        side: sum(row["finish_reason"] == "length" and row["polarity"] == side for row in rows)
        for side in SIDES
    }
    assert all(0 < n < 10 for n in cut.values())
    _, said = traitmill("status", *on(finished), "--json")
    counts = json.loads(said)["traits"]["trait"]["counts"]
    assert {side: counts[side]["cut_off"] for side in SIDES} == cut
    with MisbehavingServer() as server:
        limits = ["--judge_base_url", server.url, "--judge_rpm", "100000"]
        _, said = traitmill("judge", *on(finished), "--judge_model", "gpt-4.1-mini", *limits)
    for side in SIDES:
        assert re.search(rf"trait {side}: (.*, )?{cut[side]} cut off at --max_new_tokens", said)


def test_the_expected_cost_stands_in_the_summary_of_an_unfinished_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = fakes.make_trait(tmp_path)
    with MisbehavingServer(script=[*[None] * 6, *[NO_QUOTA] * 60]) as server:
        settings = judged_by(server.url, n=20)
        limits = replace(settings.limits, concurrency=1)
        result = launch(folder, replace(settings, limits=limits))
    usage, judgeable = result.usage, all_counts(folder)["ok"]
    assert usage is not None
    assert 0 < usage.requests < judgeable
    dollars = usage.dollars * judgeable / usage.requests
    summary.print_summary(Console(soft_wrap=True), result)
    assert f"judge: {usage}, ${dollars:.4f} expected in all" in capfd.readouterr().out
