"""Vectors and pages of other rows than a folder holds now are told, in it and through us."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Traitmill
from tests.support import fakes, lab
from traitmill.engine import run
from traitmill.engine.errors import ExitCode
from traitmill.engine.outputs import stale_files
from traitmill.engine.report import write_report
from traitmill.engine.storage import TraitFolder
from traitmill.engine.vectors import StaleWarning, fit_experiment, load_vectors

ALL = ["vectors/", "evaluation.parquet", "report.html"]


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
        "report.html",
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
    assert "vectors/, evaluation.parquet, report.html show other rows" in said
    assert "traitmill vectors --experiment exp --trait trait" in said
    code, said = traitmill("status", *on)
    assert "trait: vectors/, evaluation.parquet, report.html show other rows" in said
    code, said = traitmill("vectors", *on, "--trait", "trait", "--methods", "mean_diff")
    assert "the report shows earlier rows" in said
    traitmill("report", *on, "--trait", "trait")
    code, said = traitmill("status", *on)
    assert "other rows" not in said


def test_vectors_that_lie_alone_are_not_stale(folder, tmp_path):
    alone = tmp_path / "elsewhere" / "trait" / "vectors"
    alone.mkdir(parents=True)
    for path in folder.vectors.iterdir():
        (alone / path.name).write_bytes(path.read_bytes())
    assert load_vectors(alone.parent).stale == ""
    assert stale_files(TraitFolder(alone.parent)) == ["vectors/"]
