"""What a later run finds: records that fit each other, settings that bind only samples that exist,
files that agree."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.support import fakes, lab
from traitmill.engine.errors import EngineDiedError, SettingsChangedError, StoppedError
from traitmill.engine.records import Activation, Response, Sample, Verdict
from traitmill.engine.settings import CaptureSettings, RunSettings, SampleCounts, Sampling
from traitmill.engine.storage import TraitFolder, response_row
from traitmill.engine.traits.definition import Trait


def work_through(folder: Path, settings: object = None, **backends: object):
    settings = settings or fakes.settings()
    work = fakes.pipeline(fakes.open_runs([folder], settings), settings, **backends)
    asyncio.run(asyncio.wait_for(work.run(), 60))
    return work


class SlowToStore(fakes.FakeCapture):
    """Notes, whenever it is called, whether what is on disk could be exported."""

    def __init__(self, folder: Path) -> None:
        super().__init__(fakes.settings().capture)
        self.folder = folder
        self.fits: list[bool] = []
        self.most = self.now = 0

    async def capture(self, rows: Sequence[Response]) -> list[Activation]:
        self.now += 1
        self.most = max(self.most, self.now)
        results = await super().capture(rows)
        await asyncio.sleep(0.15)  # longer than the recorder's tick
        sets = [path.parent for path in fakes.part_files(self.folder, "activations")]
        self.fits.append(all((folder / "facts.json").is_file() for folder in sets))
        self.now -= 1
        return results


def test_what_describes_activations_is_on_disk_before_they_are(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    capturer = SlowToStore(folder)
    work = work_through(folder, fakes.settings(200), capturer=capturer)
    assert not work.errors
    assert len(capturer.fits) > 3
    assert all(capturer.fits)
    assert capturer.most == 2, "the next call computes while the results of one are stored"


def final_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for name in ("responses", "activations")
        for path in (folder / name).iterdir()
    }


class Broken(fakes.FakeCapture):
    """Cannot be loaded, or dies before its first row."""

    async def capture(self, rows: Sequence[Response]) -> list[Activation]:
        raise EngineDiedError("the capture process died")


@pytest.mark.parametrize(
    "other", [{"layers": (0, 2)}, {"pools": ("response_mean", "prompt_last")}, {"dtype": "float16"}]
)
def test_capture_settings_that_gave_no_row_leave_the_activation_set_in_use(
    tmp_path: Path, other: dict
) -> None:
    folder = fakes.make_trait(tmp_path)
    work_through(folder, fakes.settings(20))
    before, choice = final_files(folder), fakes.state(folder).choice
    changed = fakes.settings(20, capture=CaptureSettings(**other))
    stopped = work_through(folder, changed, capturer=Broken(changed.capture))
    assert stopped.errors
    assert fakes.state(folder).choice == choice
    fakes.export_again(folder)
    assert final_files(folder) == before


def test_a_run_that_captures_nothing_changes_no_capture_settings(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    work_through(
        folder, fakes.settings(20, capture=CaptureSettings(pools=("response_mean", "prompt_last")))
    )
    before = final_files(folder)
    work_through(folder, fakes.settings(20, capture_rows="none"))
    assert final_files(folder) == before


def test_a_pool_added_later_leaves_the_stored_rows_as_they_are(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    work_through(folder, fakes.settings(20))
    before = lab.row_digests(folder)
    both = fakes.settings(20, capture=CaptureSettings(pools=("response_mean", "prompt_last")))
    work_through(folder, both)
    after = lab.row_digests(folder)
    assert lab.duplicates(folder) == 0
    assert before.items() <= after.items()
    assert len(after) > len(before)
    assert fakes.state(folder).choice.pools == ("response_mean", "prompt_last")
    exported = final_files(folder)
    assert any("prompt_last" in name for name in exported)
    fakes.export_again(folder)
    assert {**final_files(folder)} == exported
    metadata = json.loads((folder / "activations/metadata.json").read_text())
    assert metadata["pooling"].startswith("response_mean: mean over")
    assert "prompt_last: the prompt's last token" in metadata["pooling"]
    assert metadata["versions"]["traitmill"]


class Counted(fakes.FakeJudge):
    """Stops without quota after some verdicts."""

    def __init__(self, settings: RunSettings, last: int) -> None:
        super().__init__(settings.judge)
        self.last, self.judged = last, 0

    async def judge(self, trait: Trait, response: Response) -> Verdict:
        if self.judged == self.last:
            raise StoppedError("no quota left")
        self.judged += 1
        return await super().judge(trait, response)


def test_a_new_run_that_was_stopped_goes_on_and_a_finished_one_is_moved_aside(
    tmp_path: Path,
) -> None:
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(20, sampling=Sampling(model="fake", revision="r0", seed=1))
    work_through(folder, fakes.settings(20))
    notices: list[str] = []

    def new_run(judge: Counted) -> None:
        runs = fakes.open_runs([folder], settings, notices, new_run=True)
        asyncio.run(fakes.pipeline(runs, settings, judge=judge).run())

    new_run(first := Counted(settings, 15))
    new_run(second := Counted(settings, 1000))
    n_ok = sum(row["status"] == "ok" for row in lab.rows(folder, "responses"))
    assert first.judged + second.judged == n_ok
    assert len(list(folder.glob("run-*"))) == 1
    assert "goes on" in notices[1]
    TraitFolder(folder).renewing.unlink()  # as a command's end does
    new_run(third := Counted(settings, 1000))
    assert third.judged == n_ok
    assert len(list(folder.glob("run-*"))) == 2


def test_files_of_another_program_are_moved_aside(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    foreign = {
        "responses/pos.csv": b"theirs",
        "activations/all_layers.pt": b"\x00",
        "vectors/probe_layer3.pt": b"v",
    }
    for name, data in foreign.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    notices: list[str] = []
    settings = fakes.settings(20)
    asyncio.run(fakes.pipeline(fakes.open_runs([folder], settings, notices), settings).run())
    [aside] = folder.glob("before-*")
    assert str(aside) in notices[0]
    assert {name: (aside / name).read_bytes() for name in foreign} == foreign
    assert (folder / "responses/pos.csv").read_bytes() != b"theirs"
    assert not (folder / "vectors").exists()


def test_records_without_their_manifest_are_used_and_not_moved_aside(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    work_through(folder, fakes.settings(20))
    (folder / "parquet/run.json").unlink()
    generator = fakes.FakeGenerator()
    work_through(folder, fakes.settings(20), generator=generator)
    assert not generator.calls
    assert not list(folder.glob("before-*"))
    assert lab.duplicates(folder) == 0


def test_an_export_leaves_a_persons_own_copies(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    work_through(folder, fakes.settings(20))
    own = folder / "activations/all_layers_threshold50.pt"
    own.write_bytes(b"mine")
    fakes.export_again(folder, threshold=70.0)
    assert own.read_bytes() == b"mine"


class Dies(fakes.FakeGenerator):
    """The engine is dead after some responses."""

    async def generate(self, sample: Sample) -> Response:
        if len(self.calls) >= 15:
            raise EngineDiedError("the generation engine died: boom")
        return await super().generate(sample)


def test_f22_when_the_engine_dies_while_rounds_may_be_added_what_is_done_is_captured(
    tmp_path: Path,
) -> None:
    """Capture waits for the engine to be done with: a dead one is, however many rounds are still
    wanted."""
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(counts=SampleCounts(n_examples=20, min_kept=19))
    capturer = fakes.FakeCapture(settings.capture)
    capturer.beside_generation = False
    work = work_through(folder, settings, generator=Dies(), capturer=capturer)
    assert isinstance(work.errors["generation"], EngineDiedError)
    view = work.runs[0].state
    assert view.captured().sum() == view.responses.having("ok").sum() > 5
    assert work_through(folder, settings).runs[0].finished


def test_settings_bind_only_once_there_are_samples(tmp_path: Path) -> None:
    """A dtype the engine refuses must not be the folder's for ever."""
    folder = fakes.make_trait(tmp_path)
    refused = fakes.settings(sampling=Sampling(model="fake", revision="r0", dtype="float16"))
    other = fakes.settings(sampling=Sampling(model="fake", revision="r0", dtype="float32"))
    fakes.open_runs([folder], refused)  # the engine does not start
    work_through(folder, other)
    assert fakes.state(folder).record.sampling.dtype == "float32"
    with pytest.raises(SettingsChangedError, match="float16"):
        fakes.open_runs([folder], refused)


def test_a_tokenizer_that_writes_other_tokens_by_now_makes_nothing_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fakes.make_trait(tmp_path)
    work_through(folder, fakes.settings(10))
    before = lab.rows(folder, "responses")
    written = fakes.tokenize

    def otherwise(*parts: str) -> tuple[int, ...]:
        return (*written(*parts), 5)

    vars(otherwise).update(vars(written))
    monkeypatch.setattr(fakes, "tokenize", otherwise)
    assert work_through(folder, fakes.settings(10)).runs[0].finished  # its plan stands
    with pytest.raises(SettingsChangedError, match="20 of its 20 prompts have other tokens"):
        fakes.open_runs([folder], fakes.settings(12))
    assert lab.rows(folder, "responses") == before


def test_settings_bind_once_a_sample_stands_in_a_journal_alone(tmp_path: Path) -> None:
    """A kill in the first seconds leaves no part, and rows all the same."""
    folder = fakes.make_trait(tmp_path)
    half = fakes.settings(sampling=Sampling(model="fake", revision="r0", dtype="float16"))
    other = fakes.settings(sampling=Sampling(model="fake", revision="r0", dtype="float32"))
    [killed] = fakes.open_runs([folder], half)
    for sample in killed.samples(list(range(6))):
        row = response_row(Response(sample, "ok", "of float16", (1, 2), "length"))
        killed.journals["responses"].add(row)
    assert not list(folder.glob("parquet/responses/part-*"))
    with pytest.raises(SettingsChangedError, match="float16"):
        fakes.open_runs([folder], other)
    work_through(folder, half)
    assert sum(row["response"] == "of float16" for row in lab.rows(folder, "responses")) == 6


def test_stage_one_alone_on_a_captured_folder_writes_the_tables_and_says_what_lacks(
    tmp_path: Path,
) -> None:
    from dataclasses import replace

    folder = fakes.make_trait(tmp_path)
    work_through(folder, fakes.settings(20))
    before = (folder / "responses/pos.csv").read_text()
    alone = replace(fakes.settings(40), capture_rows="none")
    work = work_through(folder, alone)
    assert not work.runs[0].error
    assert len((folder / "responses/pos.csv").read_text()) > len(before)
    assert work.runs[0].exported.uncaptured > 0
    assert not (folder / "activations/all_layers.pt").exists(), (
        "a tensor of other rows would not fit the tables"
    )
    assert not (folder / "activations/metadata.json").exists()
    later = work_through(folder, fakes.settings(40), generator=None, judge=None)
    metadata = json.loads((folder / "activations/metadata.json").read_text())
    tensor = torch.load(folder / "activations/all_layers.pt", weights_only=True)
    assert later.runs[0].exported.uncaptured == 0
    for sample_id, values in zip(metadata["sample_ids"], tensor, strict=True):
        np.testing.assert_array_equal(values, fakes.expected_values(sample_id, "response_mean"))


def test_f12_a_verdict_whose_text_was_lost_is_an_orphan_though_an_earlier_failure_is_left(
    tmp_path: Path,
) -> None:
    folder = fakes.make_trait(tmp_path)
    work_through(folder)
    [path] = fakes.part_files(folder, "responses")
    table = pq.read_table(path, partitioning=None)
    lost = table["sample_id"][0].as_py()
    failed = table.slice(0, 1).set_column(
        table.column_names.index("status"), "status", pa.array(["failed"], pa.string())
    )
    pq.write_table(
        pa.concat_tables([failed, table.slice(1)]), path
    )  # as if its second try had been in a damaged part
    notices: list[str] = []
    fakes.open_runs([folder], fakes.settings(), notices)
    for kind in ("verdicts", "activations"):
        ids = [
            i
            for p in fakes.part_files(folder, kind)
            for i in pq.read_table(p)["sample_id"].to_pylist()
        ]
        assert lost not in ids
        assert len(ids) > 30
    assert any("lost" in notice for notice in notices)


@pytest.mark.parametrize("dtype", ["nonsense", "FLOAT32", ""])
def test_an_unknown_dtype_is_refused_at_once(dtype: str) -> None:
    from traitmill.engine.errors import UsageError

    with pytest.raises(UsageError, match="auto, bfloat16, float16, float32"):
        Sampling(model="m", revision="r", dtype=dtype)
