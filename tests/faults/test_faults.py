"""Faults met by whole runs: real processes, real signals, real files, a real full disk."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT
from tests.support import fakes, lab
from traitmill.engine.errors import DefinitionError, ExitCode
from traitmill.engine.generation.sizing import EngineSize
from traitmill.engine.generation.vllm_engine import VllmEngine
from traitmill.engine.outputs.audit import audit_table
from traitmill.engine.records import Response, Sample
from traitmill.engine.run import RunResult, Work
from traitmill.engine.run.progress import trait_results
from traitmill.engine.traits.definition import fill, load_traits, parse_definition


def wait_for(condition) -> None:
    """Until a condition holds; a test that waits in vain fails."""
    deadline = time.monotonic() + lab.WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def stored(work: lab.Work, kind: str) -> int:
    return sum(len(lab.rows(folder, kind)) for folder in work.folders)


def ok_responses(work: lab.Work) -> int:
    return sum(
        row["status"] == "ok" for folder in work.folders for row in lab.rows(folder, "responses")
    )


def prepared(root: Path, **how: object) -> lab.Work:
    work = lab.Work(root, **how)  # type: ignore[arg-type]
    for name in work.traits:
        fakes.make_trait(root, name)
    return work


# --- 01: killed ---


@pytest.mark.slow
def test_f01_killed_at_random_moments_nothing_is_lost_repeated_or_changed(tmp_path: Path) -> None:
    soaked = lab.soak(tmp_path, kills=2, seed=1, n=65)
    assert soaked.kills == 2
    assert (soaked.lost, soaked.duplicated, soaked.changed, soaked.differing) == (0, 0, 0, [])
    assert soaked.most_repeated <= lab.REPEATED_PER_KILL


@pytest.mark.slow
def test_f01_t53_killed_over_and_over_pays_for_what_was_in_flight_alone(tmp_path: Path) -> None:
    soaked = lab.soak(tmp_path, kills=8, seed=2)
    assert (soaked.lost, soaked.duplicated, soaked.changed, soaked.differing) == (0, 0, 0, [])
    assert len(soaked.phases) >= 3, soaked.phases
    assert soaked.most_repeated <= lab.REPEATED_PER_KILL


@pytest.mark.slow
def test_f01_a_text_written_anew_after_a_kill_is_judged_and_captured_anew(tmp_path: Path) -> None:
    """Real sampling writes another text after a kill: no verdict of the lost text may stay."""
    work = prepared(tmp_path, n=150, generation_delay=0.03, flush_seconds=20.0)
    for attempt in range(3):
        running = lab.Running(replace(work, wild=f" (attempt {attempt})", generates=90))
        wait_for(lambda: stored(work, "verdicts") > 60 * (attempt + 1))  # noqa: B023 - used before the next round
        running.process.kill()
        running.process.join()
    assert lab.run_to_end(replace(work, wild=" (at last)")) == ExitCode.OK
    [folder] = work.folders
    texts = {
        row["sample_id"]: row["response"]
        for row in lab.rows(folder, "responses")
        if row["status"] == "ok"
    }
    verdicts = {row["sample_id"]: row["raw"] for row in lab.rows(folder, "verdicts")}
    assert verdicts == texts
    assert len({text.rpartition(" (")[2] for text in texts.values()}) == 4, (
        "every attempt left texts behind"
    )
    assert lab.duplicates(folder) == 0


# --- 02: interrupted ---


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_f02_an_interrupt_flushes_exits_130_and_is_resumable(
    tmp_path: Path, number: signal.Signals
) -> None:
    work = prepared(tmp_path, n=150, generation_delay=0.2, judge_delay=0.02, flush_seconds=30.0)
    running = lab.Running(replace(work, generates=60))
    wait_for(lambda: stored(work, "verdicts") > 0)
    running.signal(number)
    assert running.wait() == ExitCode.INTERRUPTED
    assert "stopping" in running.said
    [folder] = work.folders
    done = lab.row_digests(folder)
    generated = stored(work, "responses")
    assert 0 < generated < 300
    ok = {row["sample_id"] for row in lab.rows(folder, "responses") if row["status"] == "ok"}
    judged = {row["sample_id"] for row in lab.rows(folder, "verdicts")}
    assert judged == ok, "answers in flight were waited for"
    calm = prepared(tmp_path / "calm", n=150)
    assert (
        lab.run_to_end(calm) == lab.run_to_end(replace(work, generation_delay=0.0)) == ExitCode.OK
    )
    assert lab.final_files(folder) == lab.final_files(calm.folders[0])
    after = lab.row_digests(folder)
    assert {key: after[key] for key in done} == done


@pytest.mark.slow
def test_f02_a_second_press_leaves_at_once(tmp_path: Path) -> None:
    work = prepared(tmp_path, n=30, hang=True, flush_seconds=0.2)
    running = lab.Running(replace(work, drain=600.0))
    wait_for(lambda: stored(work, "responses") == 60)
    running.signal(signal.SIGINT)
    wait_for(lambda: "stopping" in running.said)
    assert running.wait(1.0) is None, "the first press waits for answers"
    running.signal(signal.SIGINT)
    assert running.wait() == ExitCode.INTERRUPTED
    assert lab.run_to_end(replace(work, hang=False)) == ExitCode.OK


# --- 13: disk full ---


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, too small for a run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "none", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a file system of its own needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    "leave", [100, *(pytest.param(k, marks=pytest.mark.slow) for k in (60, 140, 200, 260, 300))]
)
def test_f13_a_full_disk_stops_loudly_keeps_what_was_written_and_is_resumable(
    small_disk: Path, leave: int
) -> None:
    """With so many KiB to spare, in all: the disk fills at different points of the run."""
    work = prepared(small_disk, n=600, generation_delay=0.005, flush_seconds=0.2)
    (small_disk / "ballast").write_bytes(bytes((400 - leave) * 1024 // 4096 * 4096))
    running = lab.Running(work)
    code = running.wait()
    grown = subprocess.run(["mount", "-o", "remount,size=20m", small_disk], capture_output=True)
    assert grown.returncode == 0, grown.stderr
    assert code == ExitCode.RESOURCES, running.said
    assert "the disk is full" in running.said
    assert "free space and run again" in running.said
    [folder] = work.folders
    for kind in lab.KINDS:
        for path in fakes.part_files(folder, kind):
            pq.read_table(path, partitioning=None)
    before = lab.row_digests(folder)
    assert lab.run_to_end(work) == ExitCode.OK
    after = lab.row_digests(folder)
    assert {key: after[key] for key in before} == before
    assert lab.duplicates(folder) == 0
    calm = prepared(small_disk.parent / "calm", n=600)
    assert lab.run_to_end(calm) == ExitCode.OK
    assert lab.final_files(folder) == lab.final_files(calm.folders[0])


def test_f13_a_full_disk_under_the_log_does_not_hide_how_the_run_ended(small_disk: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from traitmill.engine.errors import ResourceError
from traitmill.engine.run.log import redirected
root = Path(sys.argv[1])
try:
    with redirected(root / ".logs/log"):
        with (root / "ballast").open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    break
        print("a library's words")
        raise ResourceError("the disk is full")
except ResourceError as error:
    os.write(1, f"ended: {error}".encode())
    os._exit(error.exit_code)
"""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", program, small_disk]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=buffered)
    assert result.returncode == ExitCode.RESOURCES, result.stderr
    assert "ended: the disk is full" in result.stdout


# --- 14, 15, 16: definitions ---

BROKEN = {
    "syntax": (b'{"instruction": [}', "line 1 column 18"),
    "bom": (b"\xef\xbb\xbf" + json.dumps(fakes.definition()).encode(), "byte order mark"),
    "latin": (b'{"questions": ["caf\xe9"]}', "not UTF-8"),
    "twice": (
        json.dumps(fakes.definition()).encode()[:-1] + b', "questions": ["again?"]}',
        "questions: appears 2 times",
    ),
    "list": (b"[1]", "must be a JSON object"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "empty_instruction": (
        json.dumps(fakes.definition() | {"instruction": []}).encode(),
        "instruction: is empty",
    ),
    "empty_questions": (
        json.dumps(fakes.definition() | {"questions": []}).encode(),
        "questions: is empty",
    ),
    "blank": (
        json.dumps(fakes.definition() | {"questions": ["a?", " \n"]}).encode(),
        "questions[1]: is empty",
    ),
    "number": (
        json.dumps(fakes.definition() | {"questions": ["a?", 3]}).encode(),
        "questions[1]: must be a string",
    ),
    "text": (
        json.dumps(fakes.definition() | {"questions": "a?"}).encode(),
        "questions: must be a list",
    ),
    "half": (
        json.dumps(fakes.definition() | {"instruction": [{"pos": "x"}]}).encode(),
        "instruction[0].neg: must be",
    ),
    "flat": (
        json.dumps(fakes.definition() | {"instruction": ["x"]}).encode(),
        "instruction[0]: must be",
    ),
    "null": (
        json.dumps(fakes.definition() | {"eval_prompt": None}).encode(),
        "eval_prompt: must be a string",
    ),
    "surrogate": (
        json.dumps(fakes.definition() | {"questions": ["\ud800?"]}).encode(),
        "lone surrogate",
    ),
}


def test_f14_every_fault_of_every_file_is_in_one_report(tmp_path: Path) -> None:
    for name, (content, _) in BROKEN.items():
        (fakes.make_trait(tmp_path, name) / "trait_definition.json").write_bytes(content)
    several = {"instruction": [], "questions": ["", 1], "eval_prompt": "no placeholders"}
    fakes.make_trait(tmp_path, "several", several)
    fakes.make_trait(tmp_path, "sound")
    names = [*BROKEN, "several", "sound", "missing"]
    (tmp_path / "exp/missing").mkdir()
    with pytest.raises(DefinitionError) as caught:
        load_traits({name: tmp_path / "exp" / name for name in names})
    report = str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE
    for name, (_, words) in BROKEN.items():
        own = [
            fault for fault in caught.value.faults if f"/{name}/trait_definition.json: " in fault
        ]
        assert any(words in fault for fault in own), (name, own)
    assert report.count("/several/trait_definition.json: ") == 5
    assert "/missing/trait_definition.json: missing" in report
    assert "/sound/" not in report


@pytest.mark.parametrize("key", ["eval_prompt", "yes_no_prompt"])
@pytest.mark.parametrize("placeholder", ["question", "answer"])
def test_f15_a_missing_placeholder_is_named_with_its_file(key: str, placeholder: str) -> None:
    prompts = {"eval_prompt": "{question} {answer}", "yes_no_prompt": "{question} {answer}"}
    prompts[key] = prompts[key].replace("{" + placeholder + "}", "{ " + placeholder + " }")
    with pytest.raises(DefinitionError) as caught:
        parse_definition("t", json.dumps(fakes.definition() | prompts).encode(), "some/where.json")
    assert caught.value.faults == (
        (
            f"some/where.json: {key}: lacks the placeholder {{{placeholder}}}: write it for "
            f"{{ {placeholder} }}"
        ),
    )


def test_f16_prompts_are_filled_in_one_pass_and_other_braces_stay() -> None:
    template = 'JSON {"score": 1} {} {0} {answer!r} {unknown} {{question}} Q={question} A={answer} {question}'
    filled = fill(template, question="why {answer}?", answer=r"{question} \1 {answer} {x}")
    assert filled == (
        'JSON {"score": 1} {} {0} {answer!r} {unknown} {why {answer}?} Q=why {answer}? '
        r"A={question} \1 {answer} {x} why {answer}?"
    )


# --- 18, 19, 20: samples ---


class Odd(fakes.FakeGenerator):
    """Question 0 gets white space, question 1 is cut off, question 2 does not fit, all others are
    plain."""

    async def generate(self, sample: Sample) -> Response:
        self.calls.append(sample.id)
        if sample.question_index == 0:
            return Response(
                sample, "empty", response=" \n\t", response_token_ids=(7, 2), finish_reason="stop"
            )
        if sample.question_index == 1:
            return Response(sample, "ok", "cut o", (5,) * 150, "length")
        if sample.question_index == 2:
            return Response(sample, "overlong", error="prompt of 9000 tokens, context of 2048")
        return Response(sample, "ok", "plain", (5, 2), "stop")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory):
    folder = fakes.make_trait(tmp_path_factory.mktemp("odd"), content=fakes.definition(2, 5))
    settings = fakes.settings(20)
    runs = fakes.open_runs([folder], settings)
    judge, capturer = fakes.FakeJudge(settings.judge), fakes.FakeCapture(settings.capture)
    work = fakes.pipeline(runs, settings, generator=Odd(), judge=judge, capturer=capturer)
    said: list[str] = []
    work.notice = said.append
    asyncio.run(work.run())
    return folder, work, judge, capturer, said


def test_f18_an_empty_response_is_recorded_and_counted_and_goes_no_further(odd) -> None:
    folder, work, judge, capturer, _ = odd
    table = audit_table(folder)
    empty = table.filter(table["response_status"] == "empty")
    assert set(empty["question_index"]) == {0}
    assert empty.height == 8
    assert set(empty["response"]) == {" \n\t"}
    assert empty["verdict_status"].null_count() == 8
    assert not empty["kept"].any()
    assert not set(empty["sample_id"]) & set(judge.calls)
    assert not set(empty["sample_id"]) & {row.sample.id for row in capturer.rows}
    counts = fakes.state(folder).counts()
    assert [counts[side]["responses"]["empty"] for side in ("pos", "neg")] == [4, 4]
    assert work.runs[0].finished


def test_f19_a_response_cut_at_max_new_tokens_is_kept_as_it_is_and_counted(odd) -> None:
    folder, _, judge, capturer, _ = odd
    table = audit_table(folder)
    cut = table.filter(table["finish_reason"] == "length")
    assert set(cut["question_index"]) == {1}
    assert set(cut["response_status"]) == {"ok"}
    assert set(cut["sample_id"]) <= set(judge.calls)
    assert all(
        row.n_pooled == 150 for row in capturer.rows if row.sample.id in set(cut["sample_id"])
    )
    assert cut["kept"].any()


def test_f20_a_prompt_longer_than_the_context_fails_by_name_and_the_exit_code_tells(odd) -> None:
    folder, work, _, _, said = odd
    overlong = audit_table(folder).filter(audit_table(folder)["response_status"] == "overlong")
    assert overlong.height == 8
    for id_ in overlong["sample_id"]:
        assert any(
            id_ in line and "prompt of 9000 tokens, context of 2048" in line for line in said
        )
    assert work.runs[0].finished, "the run goes on"
    result = RunResult(trait_results(work.runs), {}, False, {}, 0.0, None, None)
    assert result.exit_code == ExitCode.FAILED_SAMPLES


async def test_f20_the_engine_refuses_a_prompt_without_room() -> None:
    settings = fakes.settings()
    engine = VllmEngine(
        fakes.REF, settings.sampling, settings.execution, EngineSize(4, 64, 32, None), on_gpu=False
    )
    sample = Sample("t", "0" * 32, "pos", 0, 0, 0, "i", "q", "p", tuple(range(32)), 1)
    response = await engine.generate(sample)
    assert response.status == "overlong"
    assert response.error == "prompt of 32 tokens, context of 32"


def test_f20_prompts_that_cannot_fit_do_not_size_the_engine(tmp_path: Path) -> None:
    content = fakes.definition(1, 3)
    content["questions"] = ["Short?", "x" * 5000, "Also short?"]
    folder = fakes.make_trait(tmp_path, content=content)
    settings = fakes.settings(3)
    runs = fakes.open_runs([folder], settings)
    ref = replace(fakes.REF, config={"hidden_size": 8, "max_position_embeddings": 2048})
    work = Work(
        ref=ref,
        settings=settings,
        runs=runs,
        generates=True,
        judges=True,
        captures=True,
        log=tmp_path / "log",
        notice=print,
    )
    fitting = [len(sample.prompt_token_ids) for sample in runs[0].samples(list(range(6)))]
    assert work.longest() == max(n for n in fitting if n < 2048) + 150


# --- 24: two runs ---


def test_f24_a_second_run_exits_at_once_naming_the_first(tmp_path: Path) -> None:
    work = prepared(tmp_path, traits=("one", "two"), n=30, hang=True, flush_seconds=0.2)
    first = lab.Running(work)
    wait_for(
        lambda: (
            lab.phase(work.folders, 120) == "judging"
            and stored(work, "activations") == ok_responses(work)
        )
    )
    first.signal(signal.SIGSTOP)  # what changes from now on is not its doing
    held = psutil.Process(first.process.pid)
    wait_for(lambda: held.status() == psutil.STATUS_STOPPED)
    before = {folder: sorted((folder / "parquet").rglob("*")) for folder in work.folders}
    second = lab.Running(replace(work, traits=("two",)))
    assert second.wait() == ExitCode.LOCKED
    assert f"pid {first.process.pid} on " in second.said
    assert first.wait(0) is None
    assert {folder: sorted((folder / "parquet").rglob("*")) for folder in work.folders} == before
    first.process.kill()
    first.process.join()
    assert lab.run_to_end(replace(work, hang=False)) == ExitCode.OK, (
        "a dead holder's lock is taken over"
    )


# --- 29: one side keeps nothing ---


def test_f29_a_side_that_keeps_nothing_leaves_the_other_whole_and_has_its_own_exit_code(
    tmp_path: Path,
) -> None:
    work = prepared(tmp_path, n=40, threshold=0.0)
    assert lab.run_to_end(work) == ExitCode.NOTHING_KEPT
    [folder] = work.folders
    metadata = json.loads((folder / "activations/metadata.json").read_text())
    assert (
        folder / "responses/neg.csv"
    ).read_text() == "question,instruction,prompt,response,trait_score\n"
    assert metadata["n_examples_neg"] == 0
    assert metadata["n_examples_pos"] == metadata["n_examples"] > 20
    assert stored(work, "responses") == 80, "rejected responses are stored"
