"""The pages: text escaped, sound markup, nothing fetched, legible in a real browser."""

from __future__ import annotations

import re
from io import BytesIO

import numpy as np
import pytest
from matplotlib.image import imread

from tests.report.pages import Page, metadata_of, with_page, write_trait
from tests.support import planted
from traitmill.engine.errors import UsageError
from traitmill.engine.report import write_experiment_report, write_trait_report
from traitmill.engine.storage import TraitFolder
from traitmill.engine.vectors import update_transfer


def test_what_is_said_follows_the_claim(experiment):
    said = {
        trait: Page(experiment / trait / "report.html").said("recommendation")
        for trait in ("poem", "noise", "lone")
    }
    assert said["poem"].startswith("Use ")
    assert said["noise"].startswith("No claim.")
    assert "Use " not in said["noise"]
    assert said["lone"].startswith("Nothing could be held out, so nothing is recommended.")


@pytest.mark.parametrize(("low", "warned"), [(0.47, True), (0.85, False)])
def test_a_judge_that_cannot_tell_the_sides_apart_is_called_out(tmp_path, low, warned):
    folder = write_trait(tmp_path / "exp" / "poem", n_layers=1)
    metadata = metadata_of(folder)
    metadata["judge"]["auroc_interval"] = [low, 0.96]
    planted.write_metadata(folder.path, metadata)
    page = Page(write_trait_report(folder))
    assert ("do not tell the two sides apart" in page.said("judge")) == warned


def test_the_experiment_links_only_to_pages_that_exist(tmp_path):
    with_page(tmp_path / "exp" / "a")
    write_trait(tmp_path / "exp" / "b")
    assert Page(write_experiment_report(tmp_path / "exp", pytest.fail)).links == ["a/report.html"]


def test_a_trait_that_changed_since_is_left_out_with_a_notice(tmp_path):
    root = tmp_path / "exp"
    for name in ("a", "b"):
        with_page(root / name)
    update_transfer(root, pytest.fail)
    planted.write_trait(root / "b", n_layers=2, dim=16, seed=5)
    notices: list[str] = []
    page = Page(write_experiment_report(root, notices.append))
    assert [row[0] for row in page.tables["traits"]] == ["Trait", "a"]
    assert [row[:2] for row in page.tables["transfer"]] == [["Vector of", "On rows of"], ["a", "a"]]
    assert len(notices) == 2
    assert all(re.search(r"\bb\b", notice) for notice in notices)


def test_the_experiment_says_why_a_trait_has_no_page_or_no_claim(tmp_path):
    root = tmp_path / "exp"
    with_page(root / "few", n_questions=4, n_per_side=16)
    with_page(root / "noise", signal=0.0, seed=3, n_questions=12, n_per_side=48)
    with_page(root / "poem", n_questions=12, n_per_side=48)
    with_page(root / "stale")
    planted.write_trait(root / "stale", n_layers=2, dim=16, seed=5)
    planted.write_trait(root / "unfitted")
    (root / "new").mkdir()
    (root / "new" / "trait_definition.json").write_text("{}")
    fitted = planted.write_trait(root / "empty", n_layers=1)
    planted.write_metadata(fitted, planted.read_metadata(fitted) | {"n_examples_neg": 0})
    page = Page(write_experiment_report(root, lambda _: None))
    assert page.cell("traits", "few", "Claim") == "no too few questions: 4, 10 are needed"
    assert page.cell("traits", "noise", "Claim") == "no not shown to beat chance"
    assert page.cell("traits", "poem", "Claim").startswith(("yes", "for its"))
    why = page.terms["traits"]
    assert why.keys() == {"stale", "unfitted", "new", "empty"}
    assert why["new"] == "no run yet"
    assert why["unfitted"] == "no vectors of response_mean were fitted yet"
    assert why["empty"] == "the neg side kept nothing; a vector needs two a side or more"
    assert "other activations" in why["stale"]


def test_who_judged_is_named_where_scores_are(tmp_path):
    folder = write_trait(tmp_path / "exp" / "poem")
    metadata = metadata_of(folder)
    metadata["judge"]["model"] = "local"
    planted.write_metadata(folder.path, metadata)
    write_trait_report(folder)
    page = Page(folder.report())
    for section in ("judge", "audit"):
        assert f"{planted.MODEL} itself" in page.said(section)
    whole = Page(write_experiment_report(folder.experiment, pytest.fail))
    assert whole.cell("traits", "poem", "Judged by") == f"{planted.MODEL} itself"


def test_text_is_escaped(experiment):
    html = Page(experiment / "poem" / "report.html").html
    assert "<script" not in html
    assert 'src="http' not in html
    assert "{{ 7 * 7 }}" in html
    assert "&lt;script&gt;document.title" in html


def test_markup_is_sound(experiment):
    for folder in (experiment, experiment / "poem", experiment / "lone"):
        page = Page(folder / "report.html")
        assert len(page.ids) == len(set(page.ids))
        assert page.headings[0] == "h1"
        assert page.headings.count("h1") == 1
        for earlier, later in zip(page.headings, page.headings[1:], strict=False):
            assert later <= f"h{int(earlier[1]) + 1}"
        assert page.images
        for image in page.images.values():
            assert len(image["alt"]) > 40
        for link in page.links:
            assert link.startswith("data:image/svg+xml;base64,") or link.endswith(
                ("/report.html", "responses.html")
            )


def test_the_same_files_give_the_same_page(experiment):
    folder = TraitFolder(experiment / "poem")
    paths = [folder.report(), *folder.plots.iterdir()]
    before = {path: path.read_bytes() for path in paths}
    write_trait_report(folder)
    assert before == {path: path.read_bytes() for path in before}


def test_missing_and_stale_inputs_leave_nothing_half_written(tmp_path):
    folder = TraitFolder(planted.write_trait(tmp_path / "exp" / "poem"))
    with pytest.raises(UsageError, match="missing") as raised:
        write_trait_report(folder)
    assert raised.value.step.name == "vectors"
    assert not folder.report().exists()
    assert not folder.plots.exists()


# --- in a browser ---


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_and_fetches_nothing(experiment, browser, scheme, width):
    for folder, pictures in ((experiment / "poem", 5), (experiment, 1)):
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        requests, complaints = [], []
        page.on("request", lambda request, kept=requests: kept.append(request.url))
        page.on("console", lambda message, kept=complaints: kept.append(message.text))
        page.on("pageerror", lambda error, kept=complaints: kept.append(str(error)))
        address = (folder / "report.html").as_uri()
        page.goto(address)
        assert [url for url in requests if not url.startswith("data:")] == [address]
        assert complaints == []
        assert page.title() == ("poem · exp" if folder.name == "poem" else "exp")
        assert page.get_by_role("heading", level=1).is_visible()
        assert page.get_by_role("img").count() == pictures
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        for index in range(pictures):
            image = page.locator("figure img").nth(index)
            assert image.evaluate("image => image.naturalWidth") > 100
            assert image.bounding_box()["height"] > 100
            seen = imread(BytesIO(image.screenshot()))[..., :3].mean(axis=2)
            ground = np.median(seen[:, 0])
            assert ground > 0.9 if scheme == "light" else ground < 0.2
            letters = seen[-seen.shape[0] // 8 :]  # the lowest line has only letters
            assert np.abs(letters - ground).max() > 0.5
        page.close()


@pytest.mark.slow
def test_many_traits_are_found_by_typing(tmp_path, monkeypatch, browser):
    monkeypatch.setattr("traitmill.engine.report.experiment.FILTERED", 3)
    for name in ("brave", "calm", "bravado"):
        with_page(tmp_path / "exp" / name, n_layers=1)
    update_transfer(tmp_path / "exp", pytest.fail)
    path = write_experiment_report(tmp_path / "exp", pytest.fail)
    page = browser.new_page()
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(path.as_uri())
    rows = page.locator("#traits tbody tr:visible th")
    assert rows.all_inner_texts() == ["bravado", "brave", "calm"]
    page.locator("#filter").fill("BRAV")
    assert rows.all_inner_texts() == ["bravado", "brave"]
    page.locator("#filter").fill("brav ado")
    assert rows.all_inner_texts() == ["bravado"]
    assert page.locator("#shown").inner_text() == "1 of 3"
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    assert complaints == []
    page.close()


@pytest.mark.slow
def test_what_is_looked_for_first_is_seen_without_scrolling(tmp_path, browser):
    """At 1200 pixels all of the traits' table, at 400 what its trait is worth."""
    folder = write_trait(tmp_path / "exp" / "sycophancy", n_questions=4, n_per_side=16)
    metadata = metadata_of(folder)
    metadata["model"], metadata["judge"]["model"] = "embedded/SmolLM2-135M-Instruct", "local"
    planted.write_metadata(folder.path, metadata)
    write_trait_report(folder)
    path = write_experiment_report(folder.experiment, pytest.fail)
    for width, seen in ((1200, 8), (400, 3)):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(path.as_uri())
        heads = page.locator("#traits thead th")
        assert heads.all_inner_texts()[2] == "Claim"
        boxes = [heads.nth(place).bounding_box() for place in range(seen)]
        assert max(box["x"] + box["width"] for box in boxes) <= width
        page.close()


@pytest.mark.slow
def test_tables_scroll_on_a_narrow_screen(experiment, browser):
    page = browser.new_page(viewport={"width": 400, "height": 900})
    page.goto((experiment / "poem" / "report.html").as_uri())
    table = page.locator("#layers .scroll", has=page.locator("table"))
    assert table.evaluate("area => area.scrollWidth > area.clientWidth")
    last = table.locator("th").last
    table.evaluate("area => area.scrollLeft = area.scrollWidth")
    box = last.bounding_box()
    assert box["x"] + box["width"] <= 400
    page.close()
