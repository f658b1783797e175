"""The page of all responses in a real browser, and what marks saved there amount to."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Traitmill
from tests.report.pages import HOSTILE, responses_of, with_page
from tests.support import fakes, lab, planted
from traitmill.engine.errors import ExitCode, UsageError
from traitmill.engine.outputs import audit_table, read_agreement, text_mark
from traitmill.engine.report import page as page_module
from traitmill.engine.report import write_trait_report
from traitmill.engine.report.page import readable
from traitmill.engine.run import export
from traitmill.engine.statistics import cohens_kappa
from traitmill.engine.storage import TraitFolder
from traitmill.engine.vectors import fit_trait


def ids_on(page) -> list[str]:
    return page.locator("article.response").evaluate_all("all => all.map((one) => one.dataset.id)")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_responses_can_be_read_filtered_and_marked(tmp_path, browser, scheme, width):
    folder = with_page(tmp_path / "exp" / "poem")
    table = responses_of(folder)
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((folder.path / "report.html").as_uri())
    page.get_by_role("link", name="All responses").click()
    assert page.title() == "responses of poem · exp"
    assert ids_on(page) == table["sample_id"].to_list()[:50]
    for low, high in (("#low", "#high"), ("#shortest", "#longest"), ("#back", "#on")):
        tops = [page.locator(each).bounding_box()["y"] for each in (low, high)]
        assert tops[0] == pytest.approx(tops[1], abs=3), "what is one question stands on one line"
    assert f"of {len(table)} that match" in page.locator("#count").inner_text()
    page.locator("#on_below").click()
    assert ids_on(page) == table["sample_id"].to_list()[50:100]
    assert page.locator("article.response").first.bounding_box()["y"] > -5, "from its top"
    page.locator("#back_below").click()
    assert ids_on(page) == table["sample_id"].to_list()[:50]
    page.evaluate("window.scrollTo(0, 0)")
    assert page.locator("blockquote").first.inner_text().startswith(HOSTILE[:20])
    page.get_by_label("Side").select_option("neg")
    page.get_by_label("Kept").select_option("false")
    page.get_by_label("Order").select_option("high")
    wanted = table.filter(polarity="neg", kept=False).sort(
        "score", descending=True, nulls_last=True
    )
    assert ids_on(page) == wanted["sample_id"].to_list()
    page.get_by_label("Score from").fill("52")
    above = wanted.filter(wanted["score"] >= 52)
    assert ids_on(page) == above["sample_id"].to_list()
    page.get_by_label("Status").select_option("refused")
    assert ids_on(page) == []
    page.get_by_label("Status").select_option("")
    page.get_by_label("Words").fill("no such words")
    assert ids_on(page) == []
    page.get_by_label("Words").fill("hacked")
    first, second = page.locator("article.response").all()[:2]
    first.get_by_role("button", name="the judge is wrong").click()
    second.get_by_role("button", name="the judge is right").click()
    assert page.locator("#marked").inner_text() == "2 marked"
    # On a busy machine Chromium loses what a page stored where it is left at once.
    page.wait_for_timeout(3000)
    page.reload()
    assert page.locator("#marked").inner_text() == "2 marked", "marks outlive the page"
    with page.expect_download() as download:
        page.get_by_role("button", name="save marks as CSV").click()
    assert download.value.suggested_filename == "poem-marks.csv"
    with Path(download.value.path()).open(newline="") as file:
        saved = {row["sample_id"]: row for row in csv.DictReader(file)}
    marks = {above["sample_id"][0]: "wrong", above["sample_id"][1]: "right"}
    assert {name: row["mark"] for name, row in saved.items()} == marks
    for name, row in saved.items():
        own = above.filter(sample_id=name)
        assert float(row["score"]) == own["score"].item()
        assert row["said"] == ("yes" if own["score"].item() >= 50 else "no")
        assert row["text"] == text_mark(own["response"].item())
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.title() == "responses of poem · exp", "a response runs nothing"
    assert complaints == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
    page.close()


@pytest.mark.slow
def test_marks_outlive_the_page_where_a_browser_stores_nothing(tmp_path, browser):
    folder = with_page(tmp_path / "exp" / "poem")
    page = browser.new_page()
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new Error('off'); } })"
    )
    page.goto((folder.path / "responses.html").as_uri())
    page.locator("article.response").first.get_by_role("button", name="judge is wrong").click()
    assert page.locator("#marked").inner_text() == "1 marked"
    page.wait_for_timeout(1000)
    page.reload()
    assert page.locator("#marked").inner_text() == "1 marked"
    page.close()


@pytest.mark.slow
def test_each_file_of_a_trait_keeps_its_own_marks(tmp_path, monkeypatch, browser):
    monkeypatch.setattr(page_module, "ROWS_A_FILE", 30)
    folder = with_page(tmp_path / "exp" / "poem", n_layers=1)
    context = browser.new_context()
    first, second = context.new_page(), context.new_page()
    first.goto(folder.responses_page(0).as_uri())
    second.goto(folder.responses_page(1).as_uri())
    for page, count in ((first, 2), (second, 1), (first, 3)):
        buttons = page.get_by_role("button", name="the judge is right")
        for place in range(count):
            if buttons.nth(place).get_attribute("aria-pressed") == "false":
                buttons.nth(place).click()
        assert page.locator("#marked").inner_text() == f"{count} marked"
    first.wait_for_timeout(3000)
    for number, count in ((0, 3), (1, 1), (2, 0)):
        anew = context.new_page()
        anew.goto(folder.responses_page(number).as_uri())
        assert anew.locator("#marked").inner_text() == f"{count} marked"
        assert anew.locator("[aria-pressed=true]").count() == count
    context.close()


def test_the_page_of_responses_links_to_the_report_that_is_there(tmp_path):
    pools = ("response_mean", "prompt_last")
    folder = TraitFolder(planted.write_trait(tmp_path / "exp" / "poem", n_layers=1, pools=pools))
    fit_trait(folder, ["mean_diff"], pool="prompt_last")
    write_trait_report(folder, "prompt_last")
    page = folder.responses_page().read_text()
    assert 'href="report.prompt_last.html"' in page
    assert 'href="report.html"' not in page


def test_many_responses_are_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "ROWS_A_FILE", 30)
    folder = with_page(tmp_path / "exp" / "poem")
    table = responses_of(folder)
    names = sorted(path.name for path in folder.path.glob("responses*.html"))
    assert len(names) == -(-len(table) // 30)
    found = []
    for name in ["responses.html", *[f"responses-{i}.html" for i in range(2, len(names) + 1)]]:
        text = (folder.path / name).read_text()
        data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
        assert data is not None
        found += [row["sample_id"] for row in json.loads(data[1])]
        assert f'<a href="{names[-1] if name != names[-1] else names[0]}">' in text
    assert found == table["sample_id"].to_list()
    monkeypatch.setattr(page_module, "ROWS_A_FILE", 2000)
    again = with_page(tmp_path / "exp" / "poem")
    assert [path.name for path in again.path.glob("responses*.html")] == ["responses.html"]


def test_kappa_is_never_below_what_it_can_be():
    first, second = np.array([True] * 9 + [False]), np.array([False] + [True] * 9)
    assert cohens_kappa(first, second).low == -1


def test_kappa_is_that_of_the_textbook_and_keeps_an_interval():
    """Of 50 grant proposals two readers say yes to 20 and no to 15 together: kappa is 0.40."""
    first = np.array([True] * 25 + [False] * 25)
    second = np.array([True] * 20 + [False] * 5 + [True] * 10 + [False] * 15)
    value, low, high = cohens_kappa(first, second)
    assert value == pytest.approx(0.40)
    # Wilson's interval of 35 in 50, at a chance agreement of one half
    assert (low, high) == pytest.approx((2 * 0.56248 - 1, 2 * 0.80897 - 1), abs=1e-4)
    assert cohens_kappa(first, first) == pytest.approx((1.0, 0.857, 1.0), abs=2e-3)
    assert cohens_kappa(np.ones(5, bool), np.ones(5, bool)) is None
    with pytest.raises(ValueError, match="at least one"):
        cohens_kappa(first[:0], first[:0])


@pytest.fixture
def work(tmp_path: Path) -> lab.Work:
    made = lab.Work(tmp_path / "work", n=30)
    (tmp_path / "work").mkdir()
    fakes.make_trait(made.root, "trait")
    assert lab.run_to_end(made) == ExitCode.OK
    return made


def test_agree_says_what_marks_amount_to(work: lab.Work, tmp_path: Path, traitmill: Traitmill):
    sides = {row["sample_id"]: row["polarity"] for row in lab.rows(work.folders[0], "responses")}
    scored = [r for r in lab.rows(work.folders[0], "verdicts") if r["status"] == "scored"][:40]
    lines = ["sample_id,polarity,score,mark"]
    judge, person = [], []
    for place, row in enumerate(scored):
        wrong = place % 5 == 0
        judge.append(row["score"] >= 50)
        person.append((row["score"] >= 50) != wrong)
        mark = "wrong" if wrong else "right"
        lines.append(f"{row['sample_id']},{sides[row['sample_id']]},{row['score']},{mark}")
    marks = tmp_path / "marks.csv"
    marks.write_text("\n".join(lines))
    found = read_agreement(work.folders[0], marks)
    agreed = np.mean(np.array(judge) == np.array(person))
    both = np.mean(judge) * np.mean(person) + (1 - np.mean(judge)) * (1 - np.mean(person))
    assert (found.n, found.wrong, found.outdated) == (40, 8, 0)
    assert found.share.value == pytest.approx(0.8)
    assert found.kappa is not None
    assert found.kappa.value == pytest.approx((agreed - both) / (1 - both))
    on = ["--experiment", "exp", "--trait", "trait", "--experiments_dir", work.root]
    code, said = traitmill("agree", *on, "--marks", marks)
    assert code == ExitCode.OK
    assert "40 marked, 8 of them as wrong: you agree with the judge on 80%" in said
    assert f"Cohen's kappa {found.kappa.value:.2f}, 95 % interval" in said
    # Which ones: those left out that the judge got wrong, and those kept.
    wrong_ids = [row["sample_id"] for row in scored[::5]]
    passed = {
        r["sample_id"] for r in scored if (r["score"] >= 50) == (sides[r["sample_id"]] == "pos")
    }
    assert set(found.passed) == passed & set(wrong_ids)
    assert set(found.rejected) == set(wrong_ids) - passed
    named = ", ".join(each[:8] for each in found.rejected)
    assert f"wrongly left out, as you read them: {named}" in said
    assert "wrongly let pass, as you read them: " in said
    lines[1] = lines[1].replace(f",{scored[0]['score']},", ",0.5,")
    marks.write_text("\n".join(lines))
    assert read_agreement(TraitFolder(work.folders[0]), marks).outdated == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "has no column sample_id"),
        ("sample_id,polarity,score,mark\nx,pos,50,right\n", "'x' is no response of"),
        ("sample_id,polarity,score,mark\nx,pos,50,maybe\n", "line 2: a mark is right or wrong"),
        ("sample_id,polarity,score,mark\nx,pos,much,right\n", "line 2"),
        ("polarity,score,mark,sample_id\npos,50,right\n", "line 2: a mark is right or wrong"),
        ("sample_id,polarity,score,mark\n", "holds no mark that counts"),
    ],
)
def test_a_file_of_no_marks_is_refused(work: lab.Work, tmp_path: Path, text: str, words: str):
    marks = tmp_path / "marks.csv"
    marks.write_text(text)
    with pytest.raises(UsageError, match=re.escape(words)):
        read_agreement(work.folders[0], marks)
    with pytest.raises(UsageError, match="cannot be read"):
        read_agreement(work.folders[0], tmp_path / "none.csv")


def test_what_is_left_out_for_its_twin_is_not_wrongly_left_out(tmp_path: Path) -> None:
    """Marked wrong, the judge should have said no: leaving it out is right."""
    fakes.make_trait(tmp_path, "trait")
    work = lab.Work(tmp_path, n=30)
    lab.run_to_end(work)
    export(work.folders[0].parent, ["trait"], paired=True)
    table = audit_table(work.folders[0])
    alone = table.filter(
        (table["polarity"] == "pos") & (table["score"] >= 50) & ~table["kept"]
    ).head(1)
    lines = ["sample_id,polarity,score,mark"]
    lines += [f"{row['sample_id']},pos,{row['score']},wrong" for row in alone.to_dicts()]
    assert len(lines) == 2
    marks = tmp_path / "marks.csv"
    marks.write_text("\n".join(lines))
    found = read_agreement(work.folders[0], marks)
    passed = (alone["sample_id"].item(),)
    assert (found.wrong, found.rejected, found.passed) == (1, (), passed)
    assert alone["left_out"].item() == "its twin is not kept (paired)"
    beside = table.filter(table["score"].is_null())["left_out"].drop_nulls()
    assert beside.is_empty()
    assert table.filter(kept=True)["left_out"].drop_nulls().is_empty()
    low = table.filter((table["polarity"] == "pos") & (table["score"] < 50))
    assert set(low["left_out"]) == {"by its score"}
    # A column that begins with none of a reason is one of text all the same.
    first = table.filter((table["polarity"] == "pos") & table["score"].is_not_null())[0]
    export(work.folders[0].parent, ["trait"], threshold=first["score"].item(), paired=False)
    again = audit_table(work.folders[0]).filter(table["score"].is_not_null())
    assert again.filter(sample_id=first["sample_id"].item())["left_out"].item() is None
    assert again["left_out"].drop_nulls().len() > 0


def test_marks_keep_what_a_person_said_under_another_threshold(tmp_path: Path) -> None:
    """And are of the text that was read: the same id may come back with another."""
    fakes.make_trait(tmp_path, "trait")
    work = lab.Work(tmp_path, n=30)
    lab.run_to_end(work)
    rows = readable(audit_table(work.folders[0]))
    marked = [row for row in rows if row["score"] is not None][:12]
    said = {row["sample_id"]: (row["score"] >= 50) == bool(n % 3) for n, row in enumerate(marked)}
    lines = ["sample_id,polarity,score,mark,said,text"]
    for row in marked:
        yes = row["score"] >= 50
        assert row["yes"] == yes
        mark = "right" if said[row["sample_id"]] == yes else "wrong"
        head = f"{row['sample_id']},{row['polarity']},{row['score']},{mark}"
        lines.append(f"{head},{'yes' if yes else 'no'},{row['text']}")
    marks = tmp_path / "marks.csv"
    marks.write_text("\n".join(lines))
    assert read_agreement(work.folders[0], marks).wrong == 4
    middle = sorted(row["score"] for row in marked)[9]
    export(work.folders[0].parent, ["trait"], threshold=middle)
    found = read_agreement(work.folders[0], marks)
    judge = {row["sample_id"]: row["score"] >= middle for row in marked}
    assert found.wrong == sum(judge[each] != said[each] for each in said)
    assert any(judge[row["sample_id"]] != (row["score"] >= 50) for row in marked)
    other = lines[1].rpartition(",")[0] + ",0000000000000000"
    marks.write_text("\n".join([lines[0], other, *lines[2:]]))
    assert read_agreement(work.folders[0], marks).outdated == 1
    marks.write_text(
        "\n".join([lines[0], lines[1].replace("yes,", "maybe,").replace("no,", "maybe,")])
    )
    with pytest.raises(UsageError, match="line 2: a mark is"):
        read_agreement(work.folders[0], marks)


def test_kappa_is_not_given_where_a_rater_has_only_one_answer():
    """By construction it would be 0: of what one side of the threshold holds, the judge says one
    thing."""
    judge, person = np.zeros(6, bool), np.array([True, False, True, False, False, False])
    assert cohens_kappa(judge, person) is None
    assert cohens_kappa(person, judge) is None
