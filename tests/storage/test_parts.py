"""What is on disk: parts whole or not at all, damage set aside, merges that may be cut off, one row
that counts."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import fakes, lab
from traitmill.engine.errors import ResourceError, UsageError
from traitmill.engine.records import Response, Verdict
from traitmill.engine.run.trait_run import TraitRun
from traitmill.engine.settings import SampleCounts
from traitmill.engine.storage import (
    KINDS,
    Kind,
    PartSet,
    response_row,
    row_table,
    select_traits,
    verdict_row,
)
from traitmill.engine.storage import parts as parts_module
from traitmill.engine.traits.plan import load_plan


def run(
    folder: Path, settings: object = None, notices: list[str] | None = None, **backends: object
) -> TraitRun:
    settings = settings or fakes.settings()
    runs = fakes.open_runs([folder], settings, notices)
    asyncio.run(fakes.pipeline(runs, settings, **backends).run())
    return runs[0]


def part_set(folder: Path, kind: Kind, *, owned: bool = True) -> PartSet:
    """The one record set of a kind that a folder has."""
    root = folder / "parquet" / kind
    sets = [root] if kind == "responses" else [path for path in root.iterdir() if path.is_dir()]
    return PartSet(sets[0], kind, folder / "parquet/quarantine", lambda _: None, owned=owned)


def small_parts(folder: Path, count: int = 7) -> None:
    """Cut each kind's rows into `count` parts, as a run that was killed leaves them."""
    for kind in KINDS:
        paths = fakes.part_files(folder, kind)
        table = pa.concat_tables([pq.read_table(path, partitioning=None) for path in paths])
        for path in paths:
            path.unlink()
        writer = part_set(folder, kind)
        edges = np.linspace(0, len(table), count + 1).astype(int)
        for start, end in pairwise(edges):
            writer.append(table.slice(start, end - start))


# --- merging ---


def test_merged_parts_hold_the_same_rows_in_the_same_order(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder)
    before = {kind: lab.rows(folder, kind) for kind in KINDS}
    small_parts(folder)
    for kind in KINDS:
        store = part_set(folder, kind)
        assert len(store.paths()) == 7
        store.compact()
        assert [path.name for path in store.paths()] == ["part-00000001-00000007.parquet"]
        assert lab.rows(folder, kind) == before[kind]
        assert (
            store.append(pq.read_table(store.paths()[0]).slice(0, 1)).name
            == "part-00000008.parquet"
        )


@pytest.mark.parametrize("kept", [0, 3, 7])
def test_a_merge_cut_off_anywhere_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """Cut off with the merged part in place and only some of the parts it replaces removed."""
    folder = fakes.make_trait(tmp_path)
    run(folder)
    files, before = lab.final_files(folder), {kind: lab.rows(folder, kind) for kind in KINDS}
    small_parts(folder)
    removed = 0
    unlink = Path.unlink

    class Cut(BaseException):
        """The process is gone."""

    def dying(path: Path, *, missing_ok: bool = False) -> None:
        nonlocal removed
        if path.name.startswith("part-"):
            if removed == 7 - kept:
                raise Cut
            removed += 1
        unlink(path, missing_ok=missing_ok)

    for kind in KINDS:
        removed = 0
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", dying)
            try:
                part_set(folder, kind).compact()
            except Cut:
                assert kept
        assert len(fakes.part_files(folder, kind)) == 1 + kept
        assert len(fakes.state(folder).parts[kind].paths()) == 1, (
            "a reader without the lock sees each row once"
        )
    generator = fakes.FakeGenerator()
    job = run(folder, generator=generator)
    assert job.finished
    assert not generator.calls
    assert {kind: lab.rows(folder, kind) for kind in KINDS} == before
    assert lab.final_files(folder) == files


def test_large_parts_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder)
    small_parts(folder, 4)
    sizes = [path.stat().st_size for path in part_set(folder, "activations").paths()]
    monkeypatch.setattr(parts_module, "_PART_BYTES", sizes[0] + sizes[1])
    before = lab.rows(folder, "activations")
    part_set(folder, "activations").compact()
    assert len(part_set(folder, "activations").paths()) == 2
    assert lab.rows(folder, "activations") == before


def test_a_reader_without_the_lock_outlives_a_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder)
    expected = fakes.state(folder).counts()
    small_parts(folder)
    read = parts_module.read_columns
    merged = []

    def merging(path: Path, columns: list[str]) -> pa.Table:
        if path.name == "part-00000004.parquet" and not merged:
            merged.append(path)
            for kind in KINDS:
                part_set(folder, kind).compact()
        return read(path, columns)

    monkeypatch.setattr(parts_module, "read_columns", merging)
    assert fakes.state(folder).counts() == expected
    assert merged


# --- damage ---


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip(path: Path) -> None:
    """Turn the last byte of a column that is read for the final files."""
    metadata = pq.read_metadata(path)
    group = metadata.row_group(metadata.num_row_groups - 1)
    columns = [group.column(place) for place in range(group.num_columns)]
    read = next(each for each in columns if each.path_in_schema in ("response", "score", "values"))
    start = read.data_page_offset
    if read.dictionary_page_offset:
        start = min(start, read.dictionary_page_offset)
    data = bytearray(path.read_bytes())
    data[start + read.total_compressed_size - 1] ^= 0xFF
    path.write_bytes(data)


def _flip_first_column(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[64] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_truncate, _empty, _flip, _flip_first_column])
@pytest.mark.parametrize("kind", KINDS)
def test_f12_a_damaged_part_is_set_aside_named_and_its_samples_are_done_again(
    tmp_path: Path, kind, damage
) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder, fakes.settings(30))
    files, before = lab.final_files(folder), lab.row_digests(folder)
    small_parts(folder)
    part = part_set(folder, kind).paths()[2]
    healthy = part.read_bytes()
    damage(part)
    (folder / "responses/pos.csv").unlink()  # so that every row is read
    damaged = part.read_bytes()
    notices: list[str] = []
    for _ in range(
        2
    ):  # damage behind the index shows while the rows are read, and is mended by the next run
        job = run(folder, fakes.settings(30), notices)
        if job.finished:
            break
        assert isinstance(job.error, ResourceError)
    assert job.finished, notices
    quarantined = list((folder / "parquet/quarantine").glob(f"{kind}-*"))
    assert len(quarantined) == 1
    assert quarantined[0].read_bytes() == damaged != healthy
    assert any(str(part) in notice for notice in notices) or str(part) in str(job.error or "")
    assert lab.final_files(folder) == files
    assert lab.row_digests(folder) == before
    assert lab.duplicates(folder) == 0


def test_f12_a_new_text_never_inherits_the_verdict_or_activation_of_a_lost_one(
    tmp_path: Path,
) -> None:
    folder = fakes.make_trait(tmp_path)

    class Quoting(fakes.FakeJudge):
        async def judge(self, trait, response: Response) -> Verdict:
            return replace(await super().judge(trait, response), raw=response.response)

    class Second(fakes.FakeGenerator):
        async def generate(self, sample) -> Response:
            response = await super().generate(sample)
            return replace(response, response=f"{response.response}, told anew")

    settings = fakes.settings(30)
    run(folder, settings, judge=Quoting(settings.judge))
    small_parts(folder)
    _truncate(part_set(folder, "responses").paths()[2])
    notices: list[str] = []
    generator, capturer = Second(), fakes.FakeCapture(settings.capture)
    run(
        folder,
        settings,
        notices,
        generator=generator,
        judge=Quoting(settings.judge),
        capturer=capturer,
    )
    texts = {
        row["sample_id"]: row["response"]
        for row in lab.rows(folder, "responses")
        if row["status"] == "ok"
    }
    verdicts = lab.rows(folder, "verdicts")
    assert generator.calls
    assert {row["sample_id"]: row["raw"] for row in verdicts} == texts
    assert len(verdicts) == len(texts)
    assert {row.sample.id for row in capturer.rows} == set(generator.calls) & texts.keys()
    kept = list((folder / "parquet/quarantine").glob("orphans-*"))
    assert sum(pq.read_metadata(path).num_rows for path in kept) > 0
    assert any("lost" in notice for notice in notices)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_f12_a_footer_damaged_anywhere_is_met(tmp_path: Path, kind: Kind) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder, fakes.settings(30))
    expected = lab.final_files(folder)
    [part] = part_set(folder, kind).paths()
    whole = part.read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")
    rng = np.random.default_rng(0)
    for at in rng.integers(len(whole) - 8 - length, len(whole), 60):
        for old in fakes.part_files(folder, kind):
            old.unlink()
        data = bytearray(whole)
        data[at] ^= 1 << rng.integers(8)
        part.write_bytes(data)
        (folder / "responses/pos.csv").unlink()
        for _ in range(3):  # what is found only while rows are used ends one run
            job = run(folder, fakes.settings(30))
            if job.finished:
                break
        assert lab.final_files(folder) == expected, at


def test_f12_a_part_of_other_columns_is_set_aside_and_named(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder)
    expected = lab.final_files(folder)
    [part] = part_set(folder, "verdicts").paths()
    pq.write_table(pq.read_table(part, partitioning=None).drop_columns("hidden_tokens"), part)
    notices: list[str] = []
    assert run(folder, notices=notices).finished
    assert any("its columns are not those of verdicts" in notice for notice in notices)
    assert lab.final_files(folder) == expected


def test_f12_a_plan_damaged_anywhere_is_made_again(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder)
    path = folder / "parquet/plan.parquet"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(whole), 300):
        data = bytearray(whole)
        data[at] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        load_plan(path)  # a plan, or None


@pytest.mark.parametrize("name", ["run.json", "selection.json", "facts.json"])
def test_f12_a_typed_file_that_lacks_something_is_damaged(tmp_path: Path, name: str) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder)
    for path in (folder / "parquet").rglob(name):
        raw = json.loads(path.read_text())
        for key in [key for key in raw if key != "schema_version"][:2]:
            path.write_text(json.dumps({k: v for k, v in raw.items() if k != key} | {"xyz": 1}))
            with pytest.raises(UsageError, match="is damaged"):
                fakes.state(folder)
            path.write_text(json.dumps(raw))


def test_f12_a_reader_without_the_lock_moves_nothing(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder)
    part = part_set(folder, "verdicts").paths()[0]
    _truncate(part)
    counts = fakes.state(folder).counts()
    assert counts["pos"]["verdicts"]["scored"] == 0
    assert part.exists()
    assert not (folder / "parquet/quarantine").exists()


def test_a_file_that_cannot_be_opened_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(pq, "read_schema", refuse)
    with pytest.raises(ResourceError, match="Too many open files"):
        fakes.open_runs([folder], fakes.settings())
    assert not (folder / "parquet/quarantine").exists()


def test_a_path_that_arrow_cannot_spell_is_no_damage(tmp_path: Path) -> None:
    """Healthy parts were set aside and all was paid for again, in each run."""
    folder = fakes.make_trait(tmp_path / "experiments")
    run(folder)
    moved = tmp_path / os.fsdecode("M\xfcller".encode("latin-1"))
    folder.parents[1].rename(moved)
    with pytest.raises(UsageError, match=r"M.udcfcller.* is not in UTF-8"):
        select_traits(moved, folder.parent.name, None)
    trait = moved / folder.parent.name / folder.name
    with pytest.raises(ResourceError, match="what is stored is safe"):
        part_set(trait, "verdicts").paths()
    assert not (trait / "parquet/quarantine").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"created": 1}'])
def test_f12_a_damaged_run_record_is_named_and_nothing_is_touched(
    tmp_path: Path, content: bytes
) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder)
    (folder / "parquet/run.json").write_bytes(content)
    before = lab.final_files(folder)
    with pytest.raises(UsageError, match=r"run\.json is damaged"):
        fakes.open_runs([folder], fakes.settings())
    assert lab.final_files(folder) == before


def test_a_run_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder)
    path = folder / "parquet/run.json"
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 99'))
    with pytest.raises(UsageError, match="newer"):
        fakes.state(folder)


def test_a_damaged_plan_is_made_again(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder)
    files = lab.final_files(folder)
    _truncate(folder / "parquet/plan.parquet")
    assert load_plan(folder / "parquet/plan.parquet") is None
    generator = fakes.FakeGenerator()
    assert run(folder, generator=generator).finished
    assert not generator.calls
    assert lab.final_files(folder) == files


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder)
    places = (
        "",
        "parquet",
        "parquet/responses",
        "parquet/verdicts",
        "parquet/activations",
        "responses",
        "activations",
    )
    leftovers = [folder / place / ".something.123.tmp" for place in places]
    for path in leftovers:
        path.write_bytes(b"half")
    fakes.open_runs([folder], fakes.settings())
    assert not [path for path in leftovers if path.exists()]


# --- what a crash may find ---


@pytest.mark.slow
def test_no_verdict_or_activation_is_on_disk_before_its_response(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a crash between the two leaves a verdict of a text that a rerun replaces by
    another."""
    folder = fakes.make_trait(tmp_path)
    appended: list[tuple[str, list[str]]] = []
    append = PartSet.append

    def noting(self: PartSet, table: pa.Table) -> Path:
        appended.append((self.kind, table["sample_id"].to_pylist()))
        return append(self, table)

    monkeypatch.setattr(PartSet, "append", noting)
    settings = fakes.settings(
        100, execution=replace(fakes.settings().execution, flush_seconds=30.0)
    )
    run(folder, settings, generator=fakes.FakeGenerator(0.05, 8))
    written: set[str] = set()
    for kind, ids in appended:
        if kind == "responses":
            written |= set(ids)
        assert set(ids) <= written, f"{kind} before their responses"
    assert Counter(kind for kind, _ in appended)["verdicts"] > 1


def test_rounds_added_while_capture_lags_keep_every_row_with_its_sample(tmp_path: Path) -> None:
    """`min_kept` moves positions in the plan while activations of earlier rounds are still on their
    way."""
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(counts=SampleCounts(n_examples=10, min_kept=25, max_examples=60))
    capturer = fakes.FakeCapture(settings.capture, delay=0.3)
    job = run(folder, settings, capturer=capturer)
    assert job.finished
    assert job.state.plan.n_planned["pos"] > 10
    assert len({row.sample.id for row in capturer.rows}) == len(capturer.rows), (
        "no row is captured twice"
    )
    view = fakes.state(folder)
    for index in (job.state.activations["response_mean"], view.activations["response_mean"]):
        np.testing.assert_array_equal(index.having("ok"), view.responses.having("ok"))
    positions = np.flatnonzero(view.captured())
    for table in view.tables("activations", positions, ["sample_id", "values"], "response_mean"):
        for row in table.to_pylist():
            expected = fakes.expected_values(row["sample_id"], "response_mean")
            np.testing.assert_array_equal(np.frombuffer(row["values"], "<f4"), expected.ravel())
    assert [i.decode() for i in view.plan.ids[positions]] == [
        row["sample_id"]
        for table in view.tables("activations", positions, ["sample_id"], "response_mean")
        for row in table.to_pylist()
    ]


@pytest.mark.parametrize(
    "dies_at", ["responses/pos.csv", "responses/neg.csv", "all_layers.pt", "metadata.json"]
)
def test_files_of_an_export_cut_off_never_pass_as_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    """Killed while files were replaced for another threshold, then run with the first threshold
    again."""
    folder = fakes.make_trait(tmp_path)
    run(folder)
    files = lab.final_files(folder)
    replace_file = Path.replace

    class Cut(BaseException):
        """The process is gone."""

    def dying(path: Path, target: Path) -> Path:
        done = replace_file(path, target)
        if str(target).endswith(dies_at):
            raise Cut
        return done

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(Path, "replace", dying)
        run(folder, fakes.settings(threshold=80.0))
    assert lab.final_files(folder) != files
    run(folder)
    assert lab.final_files(folder) == files


def test_text_that_arrow_refuses_is_kept_readable() -> None:
    [job_sample] = [
        fakes.Sample("t", "0" * 32, "pos", 0, 0, 0, "i", "q", "p", (1,), 1)  # type: ignore[attr-defined]
    ]
    table = row_table(
        "responses", [response_row(Response(job_sample, "ok", "half \ud800 of a pair"))]
    )
    assert table["response"].to_pylist() == [r"half \ud800 of a pair"]
    verdict = Verdict("t", "0" * 32, "k", "unparsable", None, "integer", "m", raw="\udfff")
    assert row_table("verdicts", [verdict_row(verdict)])["raw"].to_pylist() == [r"\udfff"]
