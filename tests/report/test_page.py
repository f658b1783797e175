"""The pages: every number traced to its file, text escaped, nothing fetched, rendered in a real
browser."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from tests.conftest import ROOT
from tests.support import planted
from traitmill.cli.main import cli
from traitmill.cli.run import _fit_and_report
from traitmill.engine.errors import ExitCode, UsageError
from traitmill.engine.outputs.load import load_activations
from traitmill.engine.report import page as report
from traitmill.engine.vectors.evaluation import evaluate_vectors, write_evaluation
from traitmill.engine.vectors.fit import fit_vectors, write_vectors
from traitmill.engine.vectors.transfer import update_transfer

HOSTILE = '<script>document.title = "hacked"</script><img src="http://example.invalid/x.png"> & "quotes" \u2028 {{ 7 * 7 }}'


def responses_of(folder):
    """What the records of a planted folder would be: kept rows, some left out, one refused on each
    side."""
    ids = iter(planted.read_metadata(folder)["sample_ids"])
    rows = []
    for side, sign in (("pos", 1), ("neg", -1)):
        with (folder / "responses" / f"{side}.csv").open(newline="") as file:
            kept = list(csv.DictReader(file))
        common = {
            "polarity": side,
            "instruction_index": 0,
            "question_index": 0,
            "rollout": 0,
            "finish_reason": "stop",
        }
        common |= {"response_status": "ok", "verdict_status": "scored", "response": HOSTILE}
        for index, row in enumerate(kept):
            texts = {"instruction": row["instruction"], "question": row["question"]}
            rows.append(
                {
                    "sample_id": next(ids),
                    **common,
                    **texts,
                    "score": 50 + sign * (index + 1.25),
                    "kept": True,
                }
            )
        for index in range(6):
            rows.append(
                {
                    **rows[-1],
                    "sample_id": f"{side}{index}",
                    "score": 50 - sign * (index + 0.5),
                    "kept": False,
                }
            )
        rows.append(
            {
                **rows[-1],
                "sample_id": f"{side}r",
                "verdict_status": "refused",
                "score": None,
                "kept": False,
            }
        )
    return pl.DataFrame(rows)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Three traits with pages: a strong one with all methods, one of noise, and one with too little
    to hold out."""
    root = tmp_path_factory.mktemp("experiments") / "exp"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "audit_table", responses_of)
        for name, methods, how in (
            ("poem", ("mean_diff", "probe", "pca", "random"), {"signal": (0.0, 1.0, 9.0, 0.5)}),
            ("noise", ("mean_diff",), {"signal": 0.0, "seed": 3, "n_layers": 2}),
            ("lone", ("mean_diff",), {"n_questions": 1, "n_pairs": 1, "n_layers": 1}),
        ):
            folder = planted.write_trait(root / name, **how)
            activations = load_activations(folder)
            vectors = fit_vectors(activations, methods)
            write_vectors(folder, vectors)
            write_evaluation(folder, evaluate_vectors(activations, vectors))
            report.write_trait_report(folder)
        update_transfer(root, pytest.fail)
        report.write_experiment_report(root, pytest.fail)
    return root


def measure(folder, methods, pool="response_mean"):
    activations = load_activations(folder, pool)
    vectors = fit_vectors(activations, methods)
    write_vectors(folder, vectors)
    write_evaluation(folder, evaluate_vectors(activations, vectors))


def with_page(folder, methods=("mean_diff",), change=None, **how):
    """A small trait with its page, its metadata changed first."""
    planted.write_trait(folder, **{"n_layers": 2, "dim": 16, **how})
    planted.write_metadata(folder, planted.read_metadata(folder) | (change or {}))
    measure(folder, methods)
    report.write_trait_report(folder)
    return folder


class Page(HTMLParser):
    """Numbers with their sources, and the text that is outside them, pictures and quoted responses."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.numbers: list[tuple[float, str, str]] = []
        self.prose: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self._skipped = 0
        self._number: list[str] | None = None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [
            given[name] for name in ("src", "href", "xlink:href", "action") if name in given
        ]
        self.headings += [tag] if re.fullmatch("h[1-6]", tag) else []
        if (
            tag in ("svg", "style", "title", "code", "a")
            or "content" in (given.get("class") or "").split()
        ):
            self._skipped += 1
            self._until = tag
        if tag == "data":
            self._number = [given["value"], given["data-from"], ""]

    def handle_endtag(self, tag):
        if tag in ("svg", "style", "title", "code", "a") or (
            self._skipped and tag in ("p", "blockquote")
        ):
            self._skipped -= 1
        if tag == "data":
            self.numbers.append((float(self._number[0]), self._number[2], self._number[1]))
            self._number = None

    def handle_data(self, text):
        if self._number is not None:
            self._number[2] += text
        elif not self._skipped:
            self.prose.append(text)


def page_of(folder) -> tuple[Page, str]:
    html = (folder / "report.html").read_text()
    return Page(html), html


def looked_up(folder, source: str) -> float:
    """The number a source names, read from the files without the program."""
    kind, _, path = source.partition(":")
    if kind == "metadata":
        value = json.loads((folder / "activations" / "metadata.json").read_bytes())
        for key in path.split("/"):
            value = value[int(key)] if isinstance(value, list) else value[key]
        return value
    if kind == "prices":
        price = json.loads((ROOT / "engine" / "judging" / "prices.json").read_bytes())["models"][
            path
        ]
        cost = json.loads((folder / "activations" / "metadata.json").read_bytes())["cost"]
        return (
            cost["input tokens"] * price["input"] / 1e6
            + cost["output tokens"] * price["output"] / 1e6
        )
    if kind == "responses":
        return responses_of(folder).filter(sample_id=path.partition("/")[0])["score"].item()
    if kind == "transfer":
        trait, target, column = path.split("/")
        return (
            pl.read_parquet(folder / "evaluation.parquet")
            .filter(trait=trait, target=target)[column]
            .item()
        )
    measure, split, method, layer, other, column = path.split("/")
    table = pl.read_parquet(folder / "evaluation.parquet").filter(
        measure=measure, split=split, method=method
    )
    table = table.filter(pl.col("layer") == int(layer)) if layer else table
    table = table.filter(other=other) if other else table
    return table[column].unique().item()


@pytest.mark.parametrize("trait", ["poem", "noise", "lone"])
def test_every_number_of_a_trait_is_in_its_files(experiment, trait):
    folder = experiment / trait
    page, _ = page_of(folder)
    assert len(page.numbers) > 30
    for value, text, source in page.numbers:
        assert value == pytest.approx(looked_up(folder, source), rel=1e-12), source
        digits = len(text.partition(".")[2])
        assert float(text) == pytest.approx(value, abs=0.5 * 10**-digits + 1e-12), source
    allowed = re.compile(
        r"95 %|Question \d+|gpt-5-mini|2026-01-02T03:04:05Z|gemma-2-2b-it|float32|\d+\.\d+\.\d+"
    )
    loose = [text for text in page.prose if re.search(r"\d", allowed.sub("", text))]
    assert not loose


def test_long_numbers_keep_their_digits_and_dollars_are_stated(experiment):
    page, html = page_of(experiment / "poem")
    shown = {source: text for _, text, source in page.numbers}
    assert shown["metadata:sampling/seed"] == str(planted.SEED)
    assert shown["metadata:cost/input tokens"] == str(planted.COST["input tokens"])
    assert shown["metadata:threshold"] == "50"
    assert shown["metadata:sampling/temperature"] == "0.7"
    assert shown["prices:gpt-5-mini"] == "0.5062"  # 1.234567 x 0.25 + 0.098765 x 2.00 dollars
    assert "US dollars, at most" in html


@pytest.mark.parametrize("model", ["local", None])
def test_what_has_no_price_has_no_dollars(tmp_path, monkeypatch, model):
    monkeypatch.setattr(report, "audit_table", responses_of)
    folder = with_page(tmp_path / "exp" / "poem", change={"judge": {"model": model}})
    assert "US dollars" not in page_of(folder)[1]


def test_rows_that_could_not_be_captured_are_not_called_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "audit_table", responses_of)
    counts = planted.read_metadata(planted.write_trait(tmp_path / "exp" / "other"))["counts"]
    for side in counts.values():
        side |= {"kept": 43, "capture_failed": 3}
    _, html = page_of(with_page(tmp_path / "exp" / "poem", change={"counts": counts}))
    rows = dict(re.findall(r'<th scope="row">([\w ]+)</th><td class="n"><data [^>]*>(\d+)<', html))
    assert (rows["passed the judge"], rows["capture failed"], rows["kept"]) == ("43", "3", "40")


@pytest.mark.slow
def test_counts_that_are_not_there_are_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "audit_table", responses_of)
    for counts in ({}, {"pos": 3}, {"pos": {"responses": {}, "verdicts": {}}}):
        with pytest.raises(
            UsageError, match=r"metadata\.json of poem holds no (counts/|number ).*export it anew"
        ):
            with_page(tmp_path / "exp" / "poem", change={"counts": counts})


def test_only_random_vectors_are_not_called_nothing_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "audit_table", responses_of)
    _, html = page_of(with_page(tmp_path / "exp" / "poem", methods=("random",)))
    assert "Nothing is recommended" in html
    assert "there is no fitted method to recommend" in html
    assert "held out, so nothing" not in html


@pytest.mark.slow
@pytest.mark.parametrize("n_per_side", [3, 40])
def test_figures_that_could_not_be_measured_are_said_and_not_nan(tmp_path, monkeypatch, n_per_side):
    monkeypatch.setattr(report, "audit_table", responses_of)
    monkeypatch.setattr("traitmill.engine.vectors.held_out.TRIES", 0)  # no shuffle is found
    folder = with_page(tmp_path / "exp" / "poem", n_per_side=n_per_side, n_pairs=1, n_questions=3)
    _, html = page_of(folder)
    assert "not measured" in html
    assert not re.search(
        r"\bnan\b", re.sub("<svg.*?</svg>", "", html, flags=re.DOTALL), re.IGNORECASE
    )
    assert ("<strong>No claim: too few rows.</strong>" in html) == (n_per_side == 3)
    assert "No claim" in html


@pytest.mark.slow
def test_pictures_of_an_earlier_page_and_pages_of_another_pool(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "audit_table", responses_of)
    folder = with_page(tmp_path / "exp" / "poem", pools=("response_mean", "prompt_last"))
    page = (folder / "report.html").read_bytes()
    pictures = {path.name for path in (folder / "plots").iterdir()}
    measure(folder, ("mean_diff",), "prompt_last")
    report.write_trait_report(folder, "prompt_last")
    assert (folder / "report.html").read_bytes() == page
    assert {path.name for path in (folder / "plots").iterdir()} == pictures | {
        name.replace(".", ".prompt_last.") for name in pictures
    }
    measure(folder, ("random",))
    report.write_trait_report(folder)
    left = {path.name for path in (folder / "plots").iterdir()}
    assert "projections.svg" not in left
    assert "projections.prompt_last.svg" in left


def test_the_experiment_links_only_to_pages_that_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "audit_table", responses_of)
    with_page(tmp_path / "exp" / "a")
    measure(planted.write_trait(tmp_path / "exp" / "b"), ("mean_diff",))
    page, _ = page_of(report.write_experiment_report(tmp_path / "exp", pytest.fail).parent)
    assert page.links == ["a/report.html"]


def test_pairs_that_were_not_measured_have_no_number_in_words_either(tmp_path):
    for name, n_layers in (("a", 3), ("b", 1)):
        measure(
            planted.write_trait(
                tmp_path / "exp" / name, n_layers=n_layers, signal=(0, 0, 9)[:n_layers]
            ),
            ("pca",),
        )
    update_transfer(tmp_path / "exp", pytest.fail)
    _, html = page_of(report.write_experiment_report(tmp_path / "exp", pytest.fail).parent)
    assert "a on b not measured" in html
    assert "the target&#39;s activations lack the vector&#39;s layer" in html
    assert not re.search(r"\bnan\b", html)


def test_every_number_of_the_experiment_is_in_its_files(experiment):
    page, _ = page_of(experiment)
    names = iter(sorted(["poem", "noise", "lone"]))
    folder = None
    for value, _text, source in page.numbers:
        if source == "metadata:n_examples_pos":
            folder = experiment / next(names)
        assert value == looked_up(
            experiment if source.startswith("transfer") else folder, source
        ), source
    measured = pl.read_parquet(experiment / "evaluation.parquet")["value"].count()
    assert sum(source.startswith("transfer") for *_, source in page.numbers) == 3 * measured > 0
    allowed = re.compile(r"95 %|gemma-2-2b-it")
    assert not [text for text in page.prose if re.search(r"\d", allowed.sub("", text))]


def test_the_pictures_show_the_figures_of_the_evaluation(experiment):
    _, html = page_of(experiment / "poem")
    table = pl.read_parquet(experiment / "poem" / "evaluation.parquet")
    cosine = table.filter(measure="cosine", method="mean_diff", layer=2, other="probe")[
        "value"
    ].item()
    assert f"mean_diff and probe {cosine:.2f}" in html
    top = table.filter(measure="auroc", method="probe", split="question").sort(
        "value", maintain_order=True
    )
    assert f"probe peaks at {top['value'][-1]:.2f}" in html


def test_what_is_said_follows_the_claim(experiment):
    assert "Use <code>" in page_of(experiment / "poem")[1]
    noise = page_of(experiment / "noise")[1]
    assert "<strong>No claim.</strong>" in noise
    assert "Use <code>" not in noise
    assert "nothing is recommended" in page_of(experiment / "lone")[1]


@pytest.mark.slow
def test_a_judge_that_cannot_tell_the_sides_apart_is_called_out(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "audit_table", responses_of)
    folder = planted.write_trait(tmp_path / "exp" / "poem", n_layers=1)
    metadata = planted.read_metadata(folder)
    activations = load_activations(folder)
    write_evaluation(folder, evaluate_vectors(activations, fit_vectors(activations, ["mean_diff"])))
    for low, warned in ((0.47, True), (0.85, False)):
        planted.write_metadata(
            folder, metadata | {"judge": metadata["judge"] | {"auroc_interval": [low, 0.96]}}
        )
        report.write_trait_report(folder)
        assert ("do not tell the two sides apart" in page_of(folder)[1]) == warned


def test_text_is_escaped_and_the_sample_is_stratified(experiment):
    page, html = page_of(experiment / "poem")
    assert "<script" not in html
    assert "<img" not in html
    assert "{{ 7 * 7 }}" in html
    assert "&lt;script&gt;document.title" in html
    scores = [value for value, _, source in page.numbers if source.startswith("responses:")]
    assert len(scores) == 4 * 4
    assert {51.25, 90.25, 44.5, 49.5, 48.75, 9.75, 50.5, 55.5} <= set(
        scores
    )  # the ends of every stratum
    assert html.count("no score: refused") == 2


def test_markup_is_sound(experiment):
    for folder in (experiment, experiment / "poem", experiment / "lone"):
        page, html = page_of(folder)
        assert len(page.ids) == len(set(page.ids))
        assert page.headings[0] == "h1"
        assert page.headings.count("h1") == 1
        assert not [
            later
            for earlier, later in zip(page.headings, page.headings[1:], strict=False)
            if later > f"h{int(earlier[1]) + 1}"
        ]
        labelled = re.findall(r'<svg role="img" aria-labelledby="([^"]+)"', html)
        assert len(labelled) == html.count("<svg")
        assert set(labelled) <= set(page.ids)
        assert all(len(alt) > 40 for alt in re.findall(r"<title id=[^>]*>([^<]*)</title>", html))
        outside = [
            link
            for link in page.links
            if not link.startswith("#") and not link.endswith("/report.html")
        ]
        assert not outside


def test_every_picture_is_a_file_too(experiment):
    names = {path.name for path in (experiment / "poem" / "plots").iterdir()}
    expected = {"scores", "auroc", "projections", "cosines", "neighbours"}
    assert names == {f"{name}.{kind}" for name in expected for kind in ("svg", "png")}
    assert (experiment / "poem" / "plots" / "auroc.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (experiment / "plots").iterdir()} == {
        "transfer.svg",
        "transfer.png",
    }


def test_the_same_files_give_the_same_page(experiment, monkeypatch):
    monkeypatch.setattr(report, "audit_table", responses_of)
    folder = experiment / "poem"
    before = {
        path: path.read_bytes() for path in [folder / "report.html", *(folder / "plots").iterdir()]
    }
    report.write_trait_report(folder)
    assert before == {path: path.read_bytes() for path in before}


def test_missing_and_stale_inputs_leave_nothing_half_written(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "audit_table", responses_of)
    folder = planted.write_trait(tmp_path / "exp" / "poem")
    with pytest.raises(UsageError, match="traitmill vectors `experiment` exp `trait` poem"):
        report.write_trait_report(folder)
    assert not (folder / "report.html").exists()
    assert not (folder / "plots").exists()


def chromium():
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


@pytest.fixture
def browser():
    if chromium() is None:
        pytest.skip("no chromium on this machine; CI installs one")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield running
        running.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_and_fetches_nothing(experiment, browser, scheme):
    for folder, pictures in ((experiment / "poem", 5), (experiment, 1)):
        page = browser.new_page(color_scheme=scheme, viewport={"width": 1100, "height": 900})
        requests, complaints = [], []
        page.on("request", lambda request, kept=requests: kept.append(request.url))
        page.on("console", lambda message, kept=complaints: kept.append(message.text))
        page.on("pageerror", lambda error, kept=complaints: kept.append(str(error)))
        address = (folder / "report.html").as_uri()
        page.goto(address)
        assert requests == [address]
        assert complaints == []
        assert page.title() == ("poem · exp" if folder.name == "poem" else "exp")
        assert page.locator("figure svg").count() == pictures
        for index in range(pictures):
            box = page.locator("figure svg").nth(index).bounding_box()
            assert box["width"] > 250
            assert box["height"] > 150
        assert page.get_by_role("heading", level=1).is_visible()
        assert page.get_by_role("img").count() == pictures
        assert page.locator("data").first.is_visible()
        background, ink = (
            page.evaluate(f"getComputedStyle({where}).{what}")
            for where, what in (
                ("document.body", "backgroundColor"),
                ("document.querySelector('figure svg text')", "fill"),
            )
        )
        bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in (background, ink)]
        assert (bright[0] > 200) == (scheme == "light")
        assert abs(bright[0] - bright[1]) > 90  # letters in pictures can be read on either ground
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.close()


# --- commands ---


def call(*arguments: str):
    return CliRunner().invoke(cli, list(arguments), standalone_mode=False)


def test_commands_write_vectors_evaluation_and_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "audit_table", responses_of)
    for name in ("a", "b"):
        planted.write_trait(tmp_path / "exp" / name, n_layers=3)
    where = ("`experiment`", "exp", "--experiments-dir", str(tmp_path), "`traits`", "all")
    result = call("vectors", *where, "`methods`", "mean_diff, pca", "`layers`", "0,2")
    assert result.return_value == 0, result.output
    assert "Use mean_diff" in result.output or "Use pca" in result.output
    names = {path.name for path in (tmp_path / "exp" / "a" / "vectors").glob("*.pt")}
    assert names == {"mean_diff_layer0.pt", "mean_diff_layer2.pt", "pca_layer0.pt", "pca_layer2.pt"}
    result = call("report", *where[:4], "`trait`", "a")
    assert result.return_value == 0, result.output
    for path in ("report.html", "a/report.html", "evaluation.parquet"):
        assert (tmp_path / "exp" / path).is_file()


def test_one_trait_in_trouble_does_not_hold_up_the_others(tmp_path):
    for name in ("a", "b"):
        planted.write_trait(tmp_path / "exp" / name, n_layers=1)
    (tmp_path / "exp" / "a" / "activations" / "metadata.json").unlink()
    where = ("`experiment`", "exp", "`experiments_dir`", str(tmp_path), "`methods`", "mean_diff")
    result = call("vectors", *where, "`traits`", "all")
    assert result.return_value == 2
    assert not (tmp_path / "exp" / "a" / "vectors").exists()
    assert (tmp_path / "exp" / "b" / "vectors" / "mean_diff_layer0.pt").is_file()
    alone = call("vectors", *where, "`trait`", "a")
    assert isinstance(alone.exception, UsageError)
    unknown = call("vectors", *where[:4], "`trait`", "b", "`methods`", "mean_dif")
    assert "did you mean mean_diff?" in str(unknown.exception)


def test_a_page_in_trouble_does_not_hold_up_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "audit_table", responses_of)
    for name in ("a", "b"):
        measure(planted.write_trait(tmp_path / "exp" / name, n_layers=1), ("mean_diff",))
    (tmp_path / "exp" / "a" / "evaluation.parquet").write_bytes(b"PAR1")
    result = call(
        "report", "`experiment`", "exp", "`experiments_dir`", str(tmp_path), "`traits`", "all"
    )
    assert result.return_value == 2
    assert not (tmp_path / "exp" / "a" / "report.html").exists()
    assert (tmp_path / "exp" / "b" / "report.html").is_file()
    assert (tmp_path / "exp" / "report.html").is_file()


@pytest.mark.slow
def test_run_writes_the_pages_of_the_traits_it_could_fit(tmp_path, monkeypatch):
    """A trait whose side kept too little has an exit code of its own, and the others their pages."""
    monkeypatch.setattr(report, "audit_table", responses_of)
    folders = [planted.write_trait(tmp_path / "exp" / name, n_layers=1) for name in ("a", "b")]
    measure(
        folders[0], ("mean_diff",)
    )  # vectors of an earlier run, of activations that are others by now
    metadata = planted.read_metadata(folders[0])
    (folders[0] / "responses" / "neg.csv").write_text(
        "question,instruction,prompt,response,trait_score\n"
    )
    planted.write_metadata(folders[0], metadata)
    jobs = [SimpleNamespace(folder=folder, finished=True) for folder in folders]
    assert _fit_and_report(jobs, "response_mean") == ExitCode.NOTHING_KEPT
    assert (folders[1] / "report.html").is_file()
    assert (tmp_path / "exp" / "report.html").is_file()


def test_a_narrower_call_says_what_the_evaluation_no_longer_covers(tmp_path):
    planted.write_trait(tmp_path / "exp" / "a", n_layers=3)
    where = ("`experiment`", "exp", "`experiments_dir`", str(tmp_path), "`trait`", "a")
    assert "no longer covers" not in call("vectors", *where, "`methods`", "mean_diff,pca").output
    narrower = call("vectors", *where, "`methods`", "mean_diff", "`layers`", "1")
    assert "the evaluation no longer covers pca, 2 layers, measured before" in narrower.output
    assert "no longer covers" not in call("vectors", *where, "`methods`", "mean_diff,pca").output


def test_held_out_scores_are_split_by_side(experiment):
    table = pl.read_parquet(experiment / "poem" / "evaluation.parquet").filter(
        measure="held_out_score"
    )
    metadata = planted.read_metadata(experiment / "poem")
    scores = np.array(table["value"])
    means = scores[: metadata["n_examples_pos"]].mean(), scores[metadata["n_examples_pos"] :].mean()
    _, html = page_of(experiment / "poem")
    assert f"pos has mean {means[0]:.2f}, neg {means[1]:.2f}" in html
