"""One experiment with pages, shared by the tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.report.pages import responses_of, with_page
from traitmill.engine.report import page as page_module
from traitmill.engine.report import write_experiment_report
from traitmill.engine.vectors import update_transfer


@pytest.fixture(autouse=True)
def planted_records(monkeypatch):
    """Planted folders have no records: this is what they would be."""
    monkeypatch.setattr(page_module, "exported_table", responses_of)


@pytest.fixture(scope="package")
def experiment(tmp_path_factory) -> Path:
    """A strong trait with three methods, one of noise, and one with too little to hold out."""
    root = tmp_path_factory.mktemp("experiments") / "exp"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_module, "exported_table", responses_of)
        strong = {"n_layers": 4, "dim": 48, "signal": (0.0, 1.0, 9.0, 0.5)}
        with_page(root / "poem", ("mean_diff", "probe", "pca"), **strong)
        with_page(root / "noise", signal=0.0, seed=3, dim=48)
        with_page(root / "lone", n_questions=1, n_pairs=1, n_layers=1, dim=48)
        update_transfer(root, pytest.fail)
        write_experiment_report(root, pytest.fail)
    return root


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.skip("no chromium on this machine; CI installs one")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()
