"""Vectors and pages of other rows than a folder holds now are told, in it and through us."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import Traitmill
from tests.support import fakes, lab, planted
from traitmill.cli.render import command
from traitmill.engine import run
from traitmill.engine.errors import ExitCode
from traitmill.engine.outputs import Metadata, is_exported, renewing, stale_files
from traitmill.engine.report import write_report
from traitmill.engine.steering.figures import COLUMNS
from traitmill.engine.storage import TraitFolder, load_state
from traitmill.engine.vectors import (
    StaleWarning,
    fit_experiment,
    fit_trait,
    load_vectors,
    write_table,
)

PAGES = ["report.html", "responses.html"]
ALL = ["vectors/", "evaluation.parquet", *PAGES]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """An experiment whose only trait has vectors and a page."""
    work = lab.Work(tmp_path_factory.mktemp("made"), n=40)
    fakes.make_trait(work.root, "trait")
    assert lab.run_to_end(work) == ExitCode.OK
    return work.root / "exp"


@pytest.fixture(params=["pt", "safetensors"])
def folder(made, request) -> TraitFolder:
    run.export(made, threshold=50)
    fit_experiment(made, methods=["mean_diff"], format=request.param)
    other = {"pt": "safetensors", "safetensors": "pt"}[request.param]
    for path in (made / "trait" / "vectors").glob(f"*.{other}"):
        path.unlink()
    assert write_report(made).exit_code == ExitCode.OK
    return TraitFolder(made / "trait")


@pytest.mark.slow
def test_t10_an_export_that_changes_rows_says_what_is_stale(folder):
    notes = [folder.stale_note, folder.vectors / "STALE.txt"]
    assert stale_files(folder) == []
    assert not any(note.exists() for note in notes)
    assert load_vectors(folder.path).stale == ""

    exported = run.export(folder.experiment, threshold=60).exported["trait"]
    assert list(exported.stale) == ALL == stale_files(folder)
    for note in notes:
        assert all(name in note.read_text() for name in ALL)
        assert "traitmill vectors --experiment exp --trait trait" in note.read_text()
    with pytest.warns(StaleWarning, match="fitted to other activations"):
        assert load_vectors(folder.path).recommended is None

    # The same rows as before are those that the vectors were fitted to.
    assert run.export(folder.experiment, threshold=50).exported["trait"].stale == ()
    assert not any(note.exists() for note in notes)

    run.export(folder.experiment, threshold=60)
    assert fit_experiment(folder.experiment, methods=["mean_diff"]).fitted["trait"].stale == (
        *PAGES,
    )
    assert not notes[1].exists()
    assert "report.html" in notes[0].read_text()
    write_report(folder.experiment)
    assert not any(note.exists() for note in notes)
    assert load_vectors(folder.path).stale == ""


@pytest.mark.slow
def test_t10_commands_say_it(folder, traitmill: Traitmill):
    on = ["--experiment", "exp", "--experiments_dir", str(folder.experiment.parent)]
    code, said = traitmill("status", *on)
    assert (code, "other rows" in said) == (0, False)
    code, said = traitmill("export", *on, "--trait", "trait", "--threshold", "60")
    assert code == 0
    assert f"{', '.join(ALL)} show other rows" in said
    assert "traitmill vectors --experiment exp --trait trait" in said
    code, said = traitmill("status", *on)
    assert f"trait: {', '.join(ALL)} show other rows" in said
    code, said = traitmill("vectors", *on, "--trait", "trait", "--methods", "mean_diff")
    assert "the report shows earlier rows" in said
    traitmill("report", *on, "--trait", "trait")
    code, said = traitmill("status", *on)
    assert "other rows" not in said


def test_a_page_of_the_same_rows_by_another_threshold_is_stale(folder):
    exported = run.export(folder.experiment, threshold=50.001).exported["trait"]
    assert list(exported.stale) == PAGES
    assert list(renewing(folder)) == [folder.step("report", pool="response_mean")]
    # A page of an earlier version says its activations alone.
    sha256 = Metadata.read(folder).tensor_sha256("response_mean")
    old = f'<meta name="traitmill-activations" content="{sha256}">'
    page = re.sub('<meta name="traitmill-metadata"[^>]*>', old, folder.report().read_text())
    folder.report().write_text(page)
    assert stale_files(folder) == ["responses.html"]
    write_report(folder.experiment)
    assert stale_files(folder) == []


@pytest.mark.slow
def test_an_old_study_of_steering_asks_for_steering(folder, traitmill: Traitmill):
    digest = Metadata.read(folder).tensor_sha256("response_mean")
    study = pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.String))
    write_table(folder.steering_table, study, {"claim": {}, "activations_sha256": digest})
    on = ["--experiment", "exp", "--experiments_dir", str(folder.experiment.parent)]
    said = traitmill("export", *on, "--trait", "trait", "--threshold", "60")[1]
    for name in ("vectors", "steer", "report"):
        assert f"    {name} --experiment exp" in said.replace("traitmill ", "")
    fit_experiment(folder.experiment, methods=["mean_diff"])
    write_report(folder.experiment)
    assert stale_files(folder) == ["steering.parquet"]
    # Pasted elsewhere, it would renew another folder of that name.
    where = f" --experiments_dir {folder.experiment.parent.name}"
    steer = f"traitmill steer --experiment exp --trait trait{where}\n"
    assert steer in folder.stale_note.read_text()
    assert "traitmill vectors" not in folder.stale_note.read_text()
    page = folder.report().read_text()
    assert "of earlier rows than these" in page[page.index('id="steering"') :]
    said = traitmill("vectors", *on, "--trait", "trait", "--methods", "mean_diff")[1]
    assert "trait: steering.parquet show earlier rows; to renew: " in said
    assert "the report shows earlier rows" not in said
    folder.steering_table.unlink()


def test_each_pool_has_a_step_of_its_own(tmp_path):
    pools = ("response_mean", "prompt_last")
    folder = TraitFolder(planted.write_trait(tmp_path / "exp" / "poem", n_layers=1, pools=pools))
    for pool in pools:
        fit_trait(folder, ["mean_diff"], pool=pool)
    planted.write_trait(folder.path, n_layers=1, pools=pools, seed=5)
    steps = renewing(folder)
    assert steps == {
        folder.step("vectors", pool="response_mean"): ["vectors/", "evaluation.parquet"],
        folder.step("vectors", pool="prompt_last"): ["vectors/", "evaluation.prompt_last.parquet"],
    }
    # Of two pools none may be left out: without it the last fit's is meant.
    assert [command(step).rpartition(" --pool ")[2] for step in steps] == list(pools)
    fit_trait(folder, ["mean_diff"])
    assert list(renewing(folder)) == [folder.step("vectors", pool="prompt_last")]
    assert "--pool prompt_last" in folder.stale_note.read_text()


def test_steering_is_renewed_for_the_pool_that_it_was_of(tmp_path):
    """Without it another pool's study was paid for, over this one."""
    pools = ("response_mean", "prompt_last")
    folder = TraitFolder(planted.write_trait(tmp_path / "exp" / "poem", n_layers=1, pools=pools))
    study = pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.String))
    facts = {"claim": {}, "activations_sha256": "another", "pool": "response_mean"}
    write_table(folder.steering_table, study, facts)
    fit_trait(folder, ["mean_diff"], pool="prompt_last")
    [step] = renewing(folder)
    assert step == folder.step("steer", pool="response_mean")
    assert command(step).endswith(" --pool response_mean")
    where = f" --experiments_dir {tmp_path.name}"
    assert f" steer --experiment exp --trait poem{where} --pool response_mean\n" in (
        folder.stale_note.read_text()
    )


def test_vectors_that_lie_alone_are_not_stale(folder, tmp_path):
    alone = tmp_path / "elsewhere" / "trait" / "vectors"
    alone.mkdir(parents=True)
    for path in folder.vectors.iterdir():
        (alone / path.name).write_bytes(path.read_bytes())
    assert load_vectors(alone.parent).stale == ""
    assert stale_files(TraitFolder(alone.parent)) == ["vectors/"]


@pytest.mark.slow
def test_a_page_of_an_interrupted_extension_is_refused(tmp_path):
    """Its figures would be of the files, and its responses of the records."""
    work = lab.Work(tmp_path / "work", n=40, drain=0.5)
    work.root.mkdir()
    fakes.make_trait(work.root, "trait")
    assert lab.run_to_end(work) == ExitCode.OK
    folder = TraitFolder(work.folders[0])
    fit_experiment(folder.experiment, methods=["mean_diff"])
    assert write_report(folder.experiment).exit_code == ExitCode.OK
    pages = [folder.report(), folder.responses_page()]
    before = [page.read_bytes() for page in pages]

    rows = len(lab.rows(folder.path, "verdicts"))
    running = lab.Running(replace(work, n=80, generates=20))
    while len(lab.rows(folder.path, "verdicts")) == rows:
        assert running.wait(0.1) is None, running.said
    running.signal(signal.SIGINT)
    assert running.wait() == ExitCode.INTERRUPTED

    (error,) = write_report(folder.experiment).errors
    assert "since its files were written" in error.message or "no activations yet" in error.message
    assert error.step is not None
    assert error.step.name in ("export", "activations")
    assert [page.read_bytes() for page in pages] == before
    assert lab.run_to_end(replace(work, n=80)) == ExitCode.OK
    fit_experiment(folder.experiment)
    assert write_report(folder.experiment).exit_code == ExitCode.OK


def test_a_threshold_is_the_same_as_a_whole_number(made):
    run.export(made, threshold=50)
    assert is_exported(load_state(TraitFolder(made / "trait")))
