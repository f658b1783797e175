"""Pages of several traits: one in trouble does not keep the others from being written."""

from __future__ import annotations

import re

import pytest

from tests.report.pages import write_trait
from tests.support import planted
from traitmill.engine.errors import ExitCode, LockedError, UsageError
from traitmill.engine.report import page as page_module
from traitmill.engine.report import write_report
from traitmill.engine.report.picture import NAMES, Picture
from traitmill.engine.storage import TraitFolder, lock_traits
from traitmill.engine.vectors import fit_experiment


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Drawing takes a second a page, and is not what is tested here."""
    pictures = [Picture(name, name, 1.0, b"", b"") for name in NAMES]
    monkeypatch.setattr(page_module, "trait_pictures", lambda *_: pictures)


@pytest.fixture
def root(tmp_path):
    """An experiment with two fitted traits."""
    for name in ("a", "b"):
        write_trait(tmp_path / "exp" / name, n_layers=1)
    return tmp_path / "exp"


def test_pages_of_all_traits_and_of_the_experiment(root):
    result = write_report(str(root), notice=pytest.fail)
    expected = (root / "a" / "report.html", root / "b" / "report.html", root / "report.html")
    assert result.pages == expected
    assert all(path.is_file() for path in expected)
    assert (result.errors, result.exit_code) == ((), ExitCode.OK)


def test_only_the_traits_that_are_named(root):
    for traits in ("b", ["b"]):
        result = write_report(root, traits)
        assert result.pages == (root / "b" / "report.html", root / "report.html")
    assert not (root / "a" / "report.html").exists()
    with pytest.raises(UsageError, match="does not exist"):
        write_report(root, ["b", "c"])


def test_a_page_in_trouble_does_not_hold_up_the_others(root):
    (root / "a" / "evaluation.parquet").write_bytes(b"PAR1")
    notices: list[str] = []
    result = write_report(root, notice=notices.append)
    assert result.pages == (root / "b" / "report.html", root / "report.html")
    assert not (root / "a" / "report.html").exists()
    (error,) = result.errors
    assert (error.step.name, error.step.folder) == ("vectors", root / "a")
    assert result.exit_code == ExitCode.USAGE
    assert re.match(
        r"a is left out of the experiment's report: .*a/evaluation.parquet", notices[-1]
    )


def test_without_any_page_there_is_none_of_the_experiment(root):
    for name in ("a", "b"):
        (root / name / "evaluation.parquet").unlink()
    result = write_report(root)
    assert result.pages == ()
    assert [error.exit_code for error in result.errors] == [ExitCode.USAGE] * 2
    assert not (root / "report.html").exists()


def test_a_transfer_table_in_trouble_leaves_the_traits_their_pages(root):
    (root / "evaluation.parquet").write_bytes(b"PAR1")
    result = write_report(root)
    assert result.pages == (root / "a" / "report.html", root / "b" / "report.html")
    assert len(result.errors) == 1


def test_a_trait_that_another_run_holds_stops_all_before_anything_is_written(root):
    with lock_traits([TraitFolder(root / "b")]), pytest.raises(LockedError, match="in use"):
        write_report(root)
    assert not (root / "a" / "report.html").exists()
    assert write_report(root).exit_code == ExitCode.OK


def test_traits_that_can_be_fitted_have_their_pages(tmp_path):
    """What a run does: fit what it finished, and write the pages of what could be fitted."""
    root = tmp_path / "exp"
    for name in ("a", "b"):
        planted.write_trait(root / name, n_layers=1)
    metadata = planted.read_metadata(root / "a")
    csv = root / "a" / "responses" / "neg.csv"
    csv.write_text("question,instruction,prompt,response,trait_score\n")
    planted.write_metadata(root / "a", metadata)
    fitted = fit_experiment(root, methods=["mean_diff"], notice=pytest.fail)
    assert fitted.exit_code == ExitCode.NOTHING_KEPT
    assert write_report(root, list(fitted.fitted)).exit_code == ExitCode.OK
    assert (root / "b" / "report.html").is_file()
    assert (root / "report.html").is_file()
