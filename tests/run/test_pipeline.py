"""The whole flow over deterministic backends: every record arrives, in the right row of every file."""

from __future__ import annotations

import asyncio
import csv
import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.support import fakes, lab
from traitmill.engine.capture import CaptureFacts
from traitmill.engine.errors import EngineDiedError, SettingsChangedError, StoppedError
from traitmill.engine.outputs.audit import audit_table
from traitmill.engine.records import Activation, Response, Sample, Verdict
from traitmill.engine.settings import Execution, SampleCounts
from traitmill.engine.traits import Trait


def run(folders: list[Path], settings: object = None, **backends: object):
    settings = settings or fakes.settings()
    runs = fakes.open_runs(folders, settings)
    work = fakes.pipeline(runs, settings, **backends)
    asyncio.run(work.run())
    return work


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def all_files(folder: Path) -> dict[str, bytes]:
    names = [
        "responses/pos.csv",
        "responses/neg.csv",
        "activations/all_layers.pt",
        "activations/metadata.json",
    ]
    return {name: (folder / name).read_bytes() for name in names}


def test_every_row_of_the_tensor_is_the_row_of_the_csv(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    work = run([folder], fakes.settings(60))
    assert not work.errors
    metadata = json.loads((folder / "activations/metadata.json").read_text())
    tensor = torch.load(folder / "activations/all_layers.pt", weights_only=True)
    rows = [
        (side, row) for side in ("pos", "neg") for row in read_csv(folder / f"responses/{side}.csv")
    ]
    assert tensor.shape == (len(rows), fakes.N_LAYERS, fakes.HIDDEN_DIM)
    assert tensor.dtype == torch.float32
    assert len(rows) == metadata["n_examples"] == len(metadata["sample_ids"])
    assert 30 < len(rows) < 120
    for (side, row), sample_id, values in zip(rows, metadata["sample_ids"], tensor, strict=True):
        assert list(row) == ["question", "instruction", "prompt", "response", "trait_score"]
        assert row["response"].endswith(sample_id[:6])
        assert float(row["trait_score"]) == fakes.expected_score(sample_id, side)
        assert (float(row["trait_score"]) >= 50) == (side == "pos")
        assert row["prompt"] == f"{row['instruction']}\n\n{row['question']}"
        np.testing.assert_array_equal(values, fakes.expected_values(sample_id, "response_mean"))


def test_all_records_are_stored_rejected_ones_too(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    run([folder], fakes.settings(60))
    table = audit_table(folder)
    assert table.height == 120
    assert set(table["response_status"]) == {"ok", "empty"}
    scored = table.filter(table["verdict_status"] == "scored")
    assert scored["score"].null_count() == 0
    rest = table.filter(table["verdict_status"].is_null() | (table["verdict_status"] != "scored"))
    assert rest.height > 0
    assert rest["score"].null_count() == rest.height
    assert not rest["kept"].any()


def test_a_second_run_does_nothing_and_changes_nothing(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    run([folder])
    before = all_files(folder)
    generator, judge = fakes.FakeGenerator(), fakes.FakeJudge(fakes.settings().judge)
    run([folder], generator=generator, judge=judge)
    assert not generator.calls
    assert not judge.calls
    assert all_files(folder) == before


def test_a_larger_n_only_adds_and_a_smaller_one_selects(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    run([folder], fakes.settings(13))
    small = all_files(folder)
    generator = fakes.FakeGenerator()
    run([folder], fakes.settings(30), generator=generator)
    assert len(generator.calls) == 2 * (30 - 13)
    run([folder], fakes.settings(13))
    assert all_files(folder) == small


def test_a_trait_is_exported_while_later_ones_are_still_generated(tmp_path: Path) -> None:
    folders = [fakes.make_trait(tmp_path, name) for name in ("a", "b", "c")]
    settings = fakes.settings(40)
    runs = fakes.open_runs(folders, settings)

    class Waiting(fakes.FakeGenerator):
        """The last trait's responses come only after the first trait's files are there."""

        async def generate(self, sample: Sample) -> Response:
            while sample.trait == "c" and not runs[0].finished:
                await asyncio.sleep(0.01)
            return await super().generate(sample)

    work = fakes.pipeline(runs, settings, generator=Waiting(max_in_flight=8))
    asyncio.run(asyncio.wait_for(work.run(), 60))
    assert all(run.finished for run in runs)


@pytest.mark.parametrize("device", ["cuda:0", "cpu"])
def test_beside_generation_a_gpus_capture_waits_for_a_calls_worth(
    tmp_path: Path, device: str
) -> None:
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(150, execution=Execution(flush_seconds=30.0))
    sizes: list[int] = []

    class Counting(fakes.FakeCapture):
        async def open(self) -> CaptureFacts:
            return replace(fakes.FACTS, device=device)

        async def capture(self, rows: Sequence[Response]) -> list[Activation]:
            sizes.append(len(rows))
            return await super().capture(rows)

    work = run(
        [folder],
        settings,
        generator=fakes.FakeGenerator(0.02, 16),
        capturer=Counting(settings.capture),
    )
    assert not work.errors
    assert sum(sizes) > 280
    if device == "cpu":  # where it comes after generation in a real run
        assert len(sizes) > 5
    else:
        assert sizes[0] == 256
        assert len(sizes) == 2


def test_sequences_in_flight_stay_full_until_the_queue_is_empty(tmp_path: Path) -> None:
    folders = [fakes.make_trait(tmp_path, name) for name in ("a", "b")]
    settings = fakes.settings(100)

    class Counting(fakes.FakeGenerator):
        running = 0
        seen: list[int] = []

        async def generate(self, sample: Sample) -> Response:
            self.running += 1
            self.seen.append(self.running)
            try:
                return await super().generate(sample)
            finally:
                self.running -= 1

    generator = Counting(0.25, 32)
    run(folders, settings, generator=generator)
    steady = generator.seen[32:]
    assert np.mean(steady) >= 0.8 * 32


def test_one_failing_sample_fails_alone_and_is_retried(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    broken: list[str] = []

    class Breaking(fakes.FakeGenerator):
        async def generate(self, sample: Sample) -> Response:
            if sample.polarity == "pos" and sample.question_index == 1 and not broken:
                broken.append(sample.id)
                return Response(sample, "failed", error="refused by the engine")
            return await super().generate(sample)

    work = run([folder], generator=Breaking())
    assert work.runs[0].finished
    assert fakes.state(folder).counts()["pos"]["responses"]["failed"] == 1
    generator = fakes.FakeGenerator()
    run([folder], generator=generator)
    assert generator.calls == broken
    assert fakes.state(folder).counts()["pos"]["responses"]["failed"] == 0


def test_f22_when_the_engine_dies_what_is_done_is_judged_captured_and_resumable(
    tmp_path: Path,
) -> None:
    folder = fakes.make_trait(tmp_path)
    undisturbed = fakes.make_trait(tmp_path / "other")
    run([undisturbed], fakes.settings(40))

    class Dying(fakes.FakeGenerator):
        async def generate(self, sample: Sample) -> Response:
            if len(self.calls) > 25:
                raise EngineDiedError("the generation engine died: boom")
            return await super().generate(sample)

    work = run([folder], fakes.settings(40), generator=Dying(0.002))
    assert isinstance(work.errors["generation"], EngineDiedError)
    counts = fakes.state(folder).counts()
    done = sum(counts[s]["responses"]["ok"] for s in ("pos", "neg"))
    assert done > 0
    assert sum(counts[s]["verdicts"]["unjudged"] for s in ("pos", "neg")) == 0
    assert sum(counts[s]["captured"] for s in ("pos", "neg")) == done
    run([folder], fakes.settings(40))
    for name, data in all_files(undisturbed).items():
        if not name.endswith(".json"):
            assert (folder / name).read_bytes() == data


def test_f05_a_judge_without_quota_stops_alone(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)

    class Broke(fakes.FakeJudge):
        async def judge(self, trait, response):
            if len(self.calls) >= 5:
                raise StoppedError("no quota left; add credit and run again")
            return await super().judge(trait, response)

    settings = fakes.settings()
    work = run([folder], settings, judge=Broke(settings.judge))
    assert isinstance(work.errors["judging"], StoppedError)
    counts = fakes.state(folder).counts()
    assert sum(counts[s]["responses"]["pending"] for s in ("pos", "neg")) == 0
    assert sum(counts[s]["captured"] for s in ("pos", "neg")) == sum(
        counts[s]["responses"]["ok"] for s in ("pos", "neg")
    )
    judge = fakes.FakeJudge(settings.judge)
    work = run([folder], settings, judge=judge)
    assert work.runs[0].finished
    assert len(judge.calls) == sum(counts[s]["verdicts"]["unjudged"] for s in ("pos", "neg"))


def test_a_slow_judge_delays_neither_generation_nor_capture(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(50)
    runs = fakes.open_runs([folder], settings)
    capturer = fakes.FakeCapture(settings.capture)

    class Slow(fakes.FakeJudge):
        """Answers only once all that can be captured is."""

        async def judge(self, trait: Trait, response: Response) -> Verdict:
            while len(capturer.rows) < ok:
                await asyncio.sleep(0.01)
            return await super().judge(trait, response)

    judge = Slow(settings.judge)
    work = fakes.pipeline(runs, settings, judge=judge, capturer=capturer)
    ok = sum(int(sample_id[:4], 16) % 50 > 0 for sample_id in runs[0].state.plan.ids)

    asyncio.run(asyncio.wait_for(work.run(), 60))
    assert runs[0].finished
    assert len(judge.calls) == len(capturer.rows) == ok > 90


def test_a_verdict_waits_for_no_thread_before_it_is_safe(tmp_path: Path) -> None:
    """A kill loses the answers under way, and none that came: the first of a trait as well."""
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(20)
    runs = fakes.open_runs([folder], settings)
    judge = fakes.FakeJudge(settings.judge)
    work = fakes.pipeline(runs, settings, judge=judge, capturer=None)
    ok = sum(int(sample_id[:4], 16) % 50 > 0 for sample_id in runs[0].state.plan.ids)
    writes = threading.Event()

    async def main() -> int:
        work._writer._thread.submit(writes.wait)
        running = asyncio.create_task(work.run())
        try:
            async with asyncio.timeout(60):
                while work.clocks["judging"].records < ok:
                    await asyncio.sleep(0.01)
            return len(lab.journaled(folder, "verdicts"))
        finally:
            writes.set()
            await running

    assert asyncio.run(main()) == ok


def test_f30_an_activation_that_is_not_finite_is_named_and_left_out(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    run([folder])
    metadata = json.loads((folder / "activations/metadata.json").read_text())
    bad = metadata["sample_ids"][2]
    other = fakes.make_trait(tmp_path / "other")
    settings = fakes.settings()
    work = run(
        [other], settings, capturer=fakes.FakeCapture(settings.capture, bad=frozenset([bad]))
    )
    assert work.runs[0].finished
    written = json.loads((other / "activations/metadata.json").read_text())
    assert written["sample_ids"] == [id_ for id_ in metadata["sample_ids"] if id_ != bad]
    assert written["n_excluded"] == 1
    tensor = torch.load(other / "activations/all_layers.pt", weights_only=True)
    assert torch.isfinite(tensor).all()
    rows = [row for side in ("pos", "neg") for row in read_csv(other / f"responses/{side}.csv")]
    assert len(rows) == len(tensor) == len(written["sample_ids"])


def test_f25_settings_that_define_samples_are_refused_with_a_diff(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    run([folder])
    changed = fakes.settings(sampling=replace(fakes.settings().sampling, temperature=1.0))
    before = all_files(folder)
    with pytest.raises(SettingsChangedError, match=r"temperature: 0\.7 -> 1\.0"):
        fakes.open_runs([folder], changed)
    assert all_files(folder) == before
    notices: list[str] = []
    runs = fakes.open_runs([folder], changed, notices, new_run=True)
    asyncio.run(fakes.pipeline(runs, changed).run())
    aside = next(folder.glob("run-*"))
    assert (aside / "responses/pos.csv").read_bytes() == before["responses/pos.csv"]
    assert str(aside) in notices[0]
    assert fakes.state(folder).record.sampling.temperature == 1.0


def test_f25_appended_questions_extend_and_edited_ones_are_refused(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path, content=fakes.definition(2, 5))
    run([folder])
    fakes.make_trait(tmp_path, content=fakes.definition(2, 6))
    generator = fakes.FakeGenerator()
    work = run([folder], generator=generator)
    assert work.runs[0].finished
    assert 0 < len(generator.calls) < 40, "questions both plans share are not generated again"
    edited = fakes.definition(2, 6) | {"questions": ["Other?"]}
    fakes.make_trait(tmp_path, content=edited)
    with pytest.raises(SettingsChangedError, match="questions were edited"):
        fakes.open_runs([folder], fakes.settings())


def test_a_new_threshold_exports_again_without_any_backend(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    run([folder])
    run(
        [folder],
        fakes.settings(threshold=80.0),
        generator=None,
        judge=None,
        capturer=None,
    )
    for row in read_csv(folder / "responses/pos.csv"):
        assert float(row["trait_score"]) >= 80
    for row in read_csv(folder / "responses/neg.csv"):
        assert float(row["trait_score"]) < 80


def test_min_kept_adds_whole_rounds_until_enough_pass(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(counts=SampleCounts(n_examples=10, min_kept=25, max_examples=60))
    work = run([folder], settings)
    counts = fakes.state(folder).counts()
    for side in ("pos", "neg"):
        assert counts[side]["kept"] >= 25 or counts[side]["planned"] == 60
        assert counts[side]["planned"] % 10 == 0
        assert counts[side]["planned"] > 20
    assert work.runs[0].finished
    generator = fakes.FakeGenerator()
    run([folder], settings, generator=generator)
    assert not generator.calls, "finished rounds decide; a second run adds none"


def test_capture_kept_captures_only_what_passes(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(capture_rows="kept")
    capturer = fakes.FakeCapture(settings.capture)
    run([folder], settings, capturer=capturer)
    view = fakes.state(folder)
    assert len(capturer.rows) == int(view.passing().sum()) == int(view.captured().sum())


def test_an_interrupt_flushes_and_the_next_run_goes_on(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(100)
    runs = fakes.open_runs([folder], settings)
    work = fakes.pipeline(runs, settings, generator=fakes.FakeGenerator(0.05, 16))

    async def interrupt() -> None:
        stop = asyncio.Event()
        running = asyncio.create_task(work.run(stop))
        while work.clocks["generation"].records < 30:
            await asyncio.sleep(0.01)
        stop.set()
        await running

    asyncio.run(interrupt())
    stored = int((fakes.state(folder).responses.status >= 0).sum())
    assert 30 <= stored < 200
    generator = fakes.FakeGenerator()
    run([folder], settings, generator=generator)
    assert len(generator.calls) == 200 - stored


def test_only_a_scored_verdict_carries_a_number_to_the_csv(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(40)

    class Troubled(fakes.FakeJudge):
        async def judge(self, trait, response):
            verdict = await super().judge(trait, response)
            statuses = ("scored", "refused", "unparsable", "truncated", "failed")
            status = statuses[int(response.sample.id[8:12], 16) % 5]
            score = 50.0 if status == "scored" else None
            return replace(verdict, status=status, score=score, raw="the answer is 77")

    run([folder], settings, judge=Troubled(settings.judge))
    rows = [
        row
        for table in fakes.part_files(folder, "verdicts")
        for row in pq.read_table(table).to_pylist()
    ]
    assert {row["status"] for row in rows} == {
        "scored",
        "refused",
        "unparsable",
        "truncated",
        "failed",
    }
    assert all((row["score"] is None) == (row["status"] != "scored") for row in rows)
    kept = [row for side in ("pos", "neg") for row in read_csv(folder / f"responses/{side}.csv")]
    assert {row["trait_score"] for row in kept} == {"50"}
    scored = {row["sample_id"][:6] for row in rows if row["status"] == "scored"}
    assert {row["response"][-6:] for row in kept} <= scored


@pytest.mark.parametrize("score", [0.0, 50.0])
@pytest.mark.parametrize("status", ["refused", "unparsable", "truncated", "failed"])
def test_a_verdict_that_is_not_scored_cannot_hold_a_number(status: str, score: float) -> None:
    with pytest.raises(ValueError, match="exactly when it is scored"):
        Verdict("t", "0", "k", status, score, "integer", "m")
