"""The second question to a judge: a set, a column and a threshold of its own, and no file moved."""

from __future__ import annotations

import asyncio
import csv
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Traitmill
from tests.support import fakes, lab, planted
from tests.support.misbehaving_server import MisbehavingServer, Reply, Seen, completion
from traitmill.cli.remarks import remarks
from traitmill.engine.errors import ExitCode, ResourceError, TraitmillError, UsageError
from traitmill.engine.projection.stored import open_texts
from traitmill.engine.records import Response, Verdict
from traitmill.engine.run import Backends, Work, judge
from traitmill.engine.run.folder_settings import resolve
from traitmill.engine.run.progress import trait_results
from traitmill.engine.settings import CaptureSettings, JudgeSettings, SampleCounts
from traitmill.engine.storage import TraitFolder, verdict_sets
from traitmill.engine.traits import Trait, coherence_of
from traitmill.engine.traits.definition import load_traits, parse_definition

COLUMNS = "question,instruction,prompt,response,trait_score"
_ID = re.compile(r"\b[0-9a-f]{6}\b")


def coherence(text: str) -> int:
    """What the server says of a response, by the digits of its sample that it ends with."""
    return int(_ID.findall(text)[-1], 16) % 101


def answers(seen: Seen) -> Reply | None:
    if "how coherent" not in seen.prompt:
        return None
    answer = seen.prompt.partition("<answer>")[2].partition("</answer>")[0]
    return completion(json.dumps({"score": coherence(answer)}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run of a judge that needs no endpoint."""
    made = fakes.make_trait(tmp_path)
    settings = fakes.settings(60)
    runs = fakes.open_runs([made], settings)
    asyncio.run(fakes.pipeline(runs, settings).run())
    return made


def where(folder: Path) -> list[str]:
    experiment, root = folder.parent.name, str(folder.parent.parent)
    return ["--experiment", experiment, "--trait", folder.name, "--experiments_dir", root]


def ask(
    traitmill: Traitmill, folder: Path, script: Callable[[Seen], Reply | None] = answers
) -> tuple[int, str, int]:
    with MisbehavingServer("gpt-5-mini", script=script) as server:
        judge = ["--judge_model", "gpt-5-mini", "--judge_base_url", server.url]
        fast = ["--judge_rpm", "100000"]
        code, said = traitmill("judge", *where(folder), "--ask", "coherence", *judge, *fast)
        return code, said, len(server.log)


def rows(folder: Path, side: str) -> list[dict[str, str]]:
    with (folder / "responses" / f"{side}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def header(folder: Path) -> str:
    return (folder / "responses/pos.csv").read_text().partition("\n")[0]


def test_asking_changes_no_file_and_an_export_shows_and_filters(
    traitmill: Traitmill, folder: Path
) -> None:
    files, sets = lab.final_files(folder), verdict_sets(TraitFolder(folder))
    whole = {side: rows(folder, side) for side in ("pos", "neg")}
    code, said, calls = ask(traitmill, folder)
    assert code == ExitCode.OK, said
    n_ok = sum(row["status"] == "ok" for row in lab.rows(folder, "responses"))
    assert calls == n_ok + 1  # and a probe
    assert lab.final_files(folder) == files
    assert verdict_sets(TraitFolder(folder)) == sets
    assert header(folder) == COLUMNS
    assert "--coherence 50" in said

    code, said = traitmill("export", *where(folder), "--coherence", 50)
    assert code == ExitCode.OK, said
    assert header(folder) == f"{COLUMNS},coherence"
    for side in ("pos", "neg"):
        expected = [row for row in whole[side] if coherence(row["response"]) >= 50]
        assert 0 < len(expected) < len(whole[side])
        shown = rows(folder, side)
        assert [float(row.pop("coherence")) for row in shown] == [
            float(coherence(row["response"])) for row in expected
        ]
        assert shown == expected
    metadata = planted.read_metadata(folder)
    assert metadata["coherence"]["at_least"] == 50.0
    assert metadata["coherence"]["model"] == "gpt-5-mini"
    assert metadata["judge"]["model"] == "fake-judge"

    # Remembered, with other filters beside it; off again, every byte is as it was.
    code, said = traitmill("export", *where(folder), "--paired")
    assert planted.read_metadata(folder)["coherence"]["at_least"] == 50.0
    code, said = traitmill("export", *where(folder), "--no_paired", "--coherence", "off")
    assert lab.final_files(folder) == files


def test_nothing_is_asked_twice(traitmill: Traitmill, folder: Path) -> None:
    ask(traitmill, folder)
    code, said, calls = ask(traitmill, folder)
    assert (code, calls) == (ExitCode.OK, 0), said


def test_another_prompt_is_another_set(traitmill: Traitmill, folder: Path) -> None:
    ask(traitmill, folder)
    path = folder / "trait_definition.json"
    own = {"coherence_prompt": "Say how coherent: {question} <answer>{answer}</answer>"}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    _, said, calls = ask(traitmill, folder)
    assert calls > 1, said
    sets = verdict_sets(TraitFolder(folder), "coherence")
    assert len(sets) == 2
    assert own["coherence_prompt"] in {facts.prompt for facts in sets.values()}


def test_what_has_no_score_for_coherence_is_not_kept_and_said(
    traitmill: Traitmill, folder: Path
) -> None:
    refused: list[str] = []

    def script(seen: Seen) -> Reply | None:
        reply = answers(seen)
        if reply is not None and len(refused) < 5:
            refused.append(seen.prompt)
            return completion("REFUSAL")
        return reply

    ask(traitmill, folder, script)
    code, said = traitmill("export", *where(folder), "--coherence", 0)
    assert code == ExitCode.OK, said
    texts = [row["response"] for side in ("pos", "neg") for row in rows(folder, side)]
    assert texts
    assert not any(f"<answer>\n{text}\n</answer>" in prompt for text in texts for prompt in refused)


def test_without_a_judging_the_command_is_named(traitmill: Traitmill, folder: Path) -> None:
    files = lab.final_files(folder)
    code, said = traitmill("export", *where(folder), "--coherence", 50)
    assert code == ExitCode.USAGE
    assert "--ask coherence" in " ".join(said.split())
    assert lab.final_files(folder) == files
    code, said = traitmill("export", *where(folder), "--coherence", 101)
    assert code == ExitCode.USAGE
    assert "--coherence must lie between 0 and 100" in " ".join(said.split())
    code, _ = traitmill("export", *where(folder), "--coherence", "x")
    assert code == ExitCode.USAGE


def test_the_local_judge_cannot_be_asked(traitmill: Traitmill, folder: Path) -> None:
    code, said = traitmill("judge", *where(folder), "--ask", "coherence", "--judge_model", "local")
    assert code == ExitCode.USAGE
    assert "name a judge at an endpoint" in " ".join(said.split())


def test_more_samples_are_not_kept_until_they_are_asked_about(
    traitmill: Traitmill, folder: Path
) -> None:
    ask(traitmill, folder)
    traitmill("export", *where(folder), "--coherence", 0)
    before = len(rows(folder, "pos"))
    settings = fakes.settings(80)
    runs = fakes.open_runs([folder], settings)
    asyncio.run(fakes.pipeline(runs, settings).run())
    assert runs[0].state.coherence_unknown() > 0
    assert len(rows(folder, "pos")) == before
    _, said, calls = ask(traitmill, folder)
    n_ok = sum(row["status"] == "ok" for row in lab.rows(folder, "responses"))
    assert 0 < calls < n_ok, said
    traitmill("export", *where(folder))
    assert len(rows(folder, "pos")) > before
    assert fakes.state(folder).coherence_unknown() == 0


def test_the_judge_that_was_asked_of_coherence_is_asked_for_what_is_lacking(
    traitmill: Traitmill, folder: Path
) -> None:
    """The advice named none, so the trait's judge was asked for all of them, in another set."""
    ask(traitmill, folder)
    _, said = traitmill("export", *where(folder), "--coherence", 1)
    assert "also by --coherence 1" in said
    settings = fakes.settings(80)
    runs = fakes.open_runs([folder], settings)
    asyncio.run(fakes.pipeline(runs, settings).run())
    [result] = trait_results(runs).values()
    told = " ".join(remarks(result))
    assert "only what scores 1 for coherence is kept; to end that: " in told
    _, said = traitmill("export", *where(folder))
    unknown = fakes.state(folder).coherence_unknown()
    assert f"{unknown} responses pass but for a score of their coherence" in " ".join(said.split())
    for text in (told, said):
        found = re.search(r"--ask coherence (--judge_model gpt-5-mini.*)", text)
        assert found is not None
        assert "--judge_base_url http://127.0.0.1" in found[1]
    counts = SampleCounts(n_examples=80, min_kept=75)
    result = replace(result, settings=replace(result.settings, counts=counts))
    assert "their coherence is to be judged first (above)" in " ".join(remarks(result))


def test_a_question_of_coherence_reports_no_rows_of_files(
    traitmill: Traitmill, folder: Path
) -> None:
    _, said, _ = ask(traitmill, folder)
    assert not re.search(r"\[\d+, \d+, \d+\]", said)


def test_a_threshold_of_neg_is_ended_as_it_is_said(traitmill: Traitmill, folder: Path) -> None:
    traitmill("export", *where(folder), "--threshold", 60, "--neg_threshold", 55)
    code, said = traitmill("export", *where(folder), "--threshold", 40)
    assert code == ExitCode.USAGE
    assert "or off to end it" in " ".join(said.split())
    code, said = traitmill("export", *where(folder), "--threshold", 40, "--neg_threshold", "off")
    assert code in (ExitCode.OK, ExitCode.NOTHING_KEPT), said
    assert planted.read_metadata(folder)["neg_threshold"] == 40
    traitmill("export", *where(folder), "--threshold", 60, "--neg_threshold", 55)
    with pytest.raises(
        UsageError, match="trait remembers `neg_threshold` 55, .* `neg_threshold` off"
    ):
        resolve({"trait": TraitFolder(folder)}, {"threshold": 30.0})


def test_a_definition_without_the_key_is_as_before(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    [trait] = load_traits({"t": folder})
    assert trait.as_json() == fakes.definition()
    own = fakes.definition() | {"coherence_prompt": "Coherent? {question} {answer}"}
    parsed = parse_definition("t", json.dumps(own).encode(), "F")
    assert parsed.as_json() == own
    assert coherence_of(parsed).eval_prompt == own["coherence_prompt"]
    assert "{question}" in coherence_of(trait).eval_prompt
    assert "{answer}" in coherence_of(trait).eval_prompt


def damage(folder: Path, loss: str) -> None:
    """Take the last verdicts on coherence from the records."""
    [key] = verdict_sets(TraitFolder(folder), "coherence")
    part = max(TraitFolder(folder).verdicts(key).glob("part-*.parquet"))
    if loss == "cut":
        part.write_bytes(part.read_bytes()[:-1])
    else:
        part.unlink()


def again(folder: Path) -> TraitmillError | None:
    settings = fakes.settings(60)
    runs = fakes.open_runs([folder], settings)
    asyncio.run(fakes.pipeline(runs, settings).run())
    return runs[0].error


@pytest.mark.parametrize("loss", ["cut", "deleted"])
def test_lost_verdicts_leave_the_files_and_are_asked_for_again(
    traitmill: Traitmill, folder: Path, loss: str
) -> None:
    ask(traitmill, folder)
    traitmill("export", *where(folder), "--coherence", 50)
    files = lab.final_files(folder)
    damage(folder, loss)
    for options in ((), ("--paired",), ("--coherence", 40)):
        code, said = traitmill("export", *where(folder), *options)
        assert code == ExitCode.RESOURCES, said
        assert "stay as they are" in said
        assert "--ask coherence --judge_model gpt-5-mini" in " ".join(said.split())
    for generates in (True, False):
        with pytest.raises(ResourceError, match="ask='coherence'"):
            fakes.open_runs([folder], fakes.settings(60), generates=generates)
    with pytest.raises(ResourceError, match="ask='coherence'"):
        open_texts(folder)
    code, said = traitmill("status", *where(folder))
    assert code == ExitCode.RESOURCES, said
    assert lab.final_files(folder) == files

    code, said, calls = ask(traitmill, folder)
    assert code == ExitCode.OK, said
    assert calls > 1
    code, said = traitmill("export", *where(folder))
    assert code == ExitCode.OK, said
    assert lab.final_files(folder) == files


def test_without_coherence_its_lost_verdicts_hold_nothing_up(
    traitmill: Traitmill, folder: Path
) -> None:
    files = lab.final_files(folder)
    ask(traitmill, folder)
    traitmill("export", *where(folder), "--coherence", 50)
    damage(folder, "cut")
    code, said = traitmill("export", *where(folder), "--coherence", "off")
    assert code == ExitCode.OK, said
    assert lab.final_files(folder) == files
    code, said = traitmill("export", *where(folder), "--coherence", 50)
    assert code == ExitCode.RESOURCES, said
    assert lab.final_files(folder) == files


@pytest.mark.parametrize("damaged", [True, False])
def test_texts_and_their_verdicts_are_made_again_one_after_the_other(
    traitmill: Traitmill, folder: Path, damaged: bool
) -> None:
    ask(traitmill, folder)
    traitmill("export", *where(folder), "--coherence", 50)
    files = lab.final_files(folder)
    for part in fakes.part_files(folder, "responses"):
        part.write_bytes(part.read_bytes()[:-1])
    if damaged:
        damage(folder, "cut")
    error = again(folder)
    assert isinstance(error, ResourceError)
    assert "ask='coherence'" in str(error)
    assert lab.final_files(folder) == files
    code, said, _ = ask(traitmill, folder)
    assert code == ExitCode.OK, said
    assert again(folder) is None
    assert lab.final_files(folder) == files


class Coherent(fakes.FakeJudge):
    """Says of half of the responses that they hold together."""

    async def judge(self, trait: Trait, response: Response) -> Verdict:
        score = 90.0 if int(response.sample.id[0], 16) < 8 else 10.0
        return replace(await super().judge(trait, response), status="scored", score=score)


def incoherent(folder: Path) -> set[str]:
    ids = {row["sample_id"] for row in lab.rows(folder, "responses")}
    return {each for each in ids if int(each[0], 16) >= 8}


async def judged(folder: Path) -> None:
    """Ask of coherence, and let the files show what the answers keep."""

    @asynccontextmanager
    async def open_judge(work: Work) -> AsyncIterator[Backends]:
        yield Backends(judge=Coherent(work.settings.judge))

    url = "http://127.0.0.1:9/v1"
    await judge(folder.parent, ask="coherence", backends=open_judge, judge_base_url=url)
    fakes.export_again(folder, coherence=50.0)


def test_rounds_do_not_count_what_is_known_to_be_incoherent(folder: Path) -> None:
    asyncio.run(judged(folder))
    kept = min(len(rows(folder, side)) for side in ("pos", "neg"))
    assert kept < 30
    settings = fakes.settings(counts=SampleCounts(n_examples=60, min_kept=30))
    runs = fakes.open_runs([folder], settings)
    asyncio.run(fakes.pipeline(runs, settings).run())
    assert runs[0].state.plan.n_planned["pos"] == 120
    assert runs[0].decided  # what is not asked about yet holds nothing up
    for _ in range(3):
        asyncio.run(judged(folder))
        runs = fakes.open_runs([folder], settings)
        asyncio.run(fakes.pipeline(runs, settings).run())
    assert all(len(rows(folder, side)) >= 30 for side in ("pos", "neg"))


@pytest.mark.parametrize("paired", [False, True])
def test_capture_of_what_is_kept_leaves_out_what_is_known_to_be_incoherent(
    folder: Path, paired: bool
) -> None:
    asyncio.run(judged(folder))
    other = JudgeSettings(model="another")
    settings = fakes.settings(80, judge=other, capture_rows="kept", paired=paired)
    settings = replace(settings, capture=CaptureSettings(pools=("response_last",)))
    known, capturer = incoherent(folder), fakes.FakeCapture(settings.capture)
    runs = fakes.open_runs([folder], settings)
    asyncio.run(fakes.pipeline(runs, settings, capturer=capturer).run())
    captured = {response.sample.id for response in capturer.rows}
    assert captured
    assert not captured & known
    assert captured & (incoherent(folder) - known)  # of the new ones nobody knows yet
    assert fakes.open_runs([folder], settings)[0].uncaptured().size == 0
