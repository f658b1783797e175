"""The numbers of the pages, each computed from the files without the program and looked up in the
cell or sentence where it belongs."""

from __future__ import annotations

import json
import re

import polars as pl
import pytest

from tests.conftest import ROOT
from tests.report.pages import (
    Evaluation,
    Page,
    metadata_of,
    responses_of,
    with_page,
    write_trait,
)
from tests.support import planted
from traitmill.engine.errors import UsageError
from traitmill.engine.report import experiment as experiment_module
from traitmill.engine.report import page as page_module
from traitmill.engine.report import write_experiment_report, write_trait_report
from traitmill.engine.storage import TraitFolder
from traitmill.engine.vectors import update_transfer


def numbers_in(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"-?\d+(?:\.\d+)?", text)]


def test_the_recommendation_states_the_corrected_auroc_and_its_baselines(experiment):
    folder = TraitFolder(experiment / "poem")
    found, said = Evaluation(folder), Page(folder.report()).said("recommendation")
    method, layer = found.best()
    selected = found.row("selected_auroc", split="question")
    low, high = f"{selected['low']:.2f}", f"{selected['high']:.2f}"
    assert said.startswith(
        f"Use {method} at layer {layer}, for these instructions only. Held-out AUROC "
        f"{selected['value']:.2f}, 95 % interval {low} to {high}, for unseen questions, corrected "
        "for choosing the best of 12."
    )
    other = found.row("selected_auroc", split="instruction")
    reach = f"{other['value']:.2f}, 95 % interval {other['low']:.2f} to {other['high']:.2f}"
    assert f" {reach}, for unseen instructions" in said
    shuffled = found.row("shuffled_auroc", method=method, layer=layer)["value"]
    random = found.row("random_auroc", split="question", layer=layer)
    margin = found.row("over_random")
    baselines = re.search(r"Shuffled labels give.*?97\.5th", said)[0].replace("97.5th", "")
    stated = [shuffled, random["value"], margin["value"], margin["low"], margin["high"]]
    assert numbers_in(baselines) == [round(value, 2) for value in [*stated, random["high"]]]
    assert selected["value"] - random["value"] == pytest.approx(margin["value"])


def test_the_table_of_methods_has_each_at_its_best_layer(experiment):
    folder = TraitFolder(experiment / "poem")
    found, page = Evaluation(folder), Page(folder.report())
    assert [row[0] for row in page.tables["layers"][1:]] == ["mean_diff", "probe", "pca"]
    for method in ("mean_diff", "probe", "pca"):
        curve = found.table.filter(measure="auroc", split="question", method=method).to_dicts()
        layer = max(curve, key=lambda row: row["value"])["layer"]
        if method == found.best()[0]:
            layer = found.best()[1]
        at = {"method": method, "layer": layer}
        assert page.cell("layers", method, "Layer") == str(layer)
        for split in ("question", "instruction"):
            shown = page.cell("layers", method, f"AUROC, unseen {split}s")
            assert shown == found.shown("auroc", split=split, **at)
        accuracy = found.shown("accuracy", split="question", **at)
        assert page.cell("layers", method, "Accuracy") == accuracy
        cohens_d = found.shown("cohens_d", split="question", **at)
        assert page.cell("layers", method, "Cohen's d") == cohens_d
        shuffled = found.row("shuffled_auroc", **at)["value"]
        assert page.cell("layers", method, "Shuffled labels") == f"{shuffled:.2f}"


@pytest.mark.parametrize("trait", ["poem", "noise", "lone"])
def test_yield_cost_and_judge_are_those_of_the_metadata(experiment, trait):
    folder = TraitFolder(experiment / trait)
    metadata, page = metadata_of(folder), Page(folder.report())
    for side in ("pos", "neg"):
        counts = metadata["counts"][side]
        assert page.cell("yield", "planned", side) == str(counts["planned"])
        assert page.cell("yield", "response: ok", side) == str(counts["responses"]["ok"])
        assert page.cell("yield", "verdict: scored", side) == str(counts["verdicts"]["scored"])
        assert page.cell("yield", "captured", side) == str(counts["captured"])
        assert page.cell("yield", "kept", side) == str(metadata[f"n_examples_{side}"])
    shown = {row[0] for row in page.tables["yield"]}
    assert not shown & {"response: overlong", "verdict: refused", "capture failed"}  # none has any
    assert page.terms["yield"]["input tokens"] == "1,234,567"
    assert page.terms["yield"]["calls"] == str(metadata["cost"]["calls"])
    said = page.said("judge")
    assert f"Judge: {planted.JUDGE}. A score is the whole number it answered (integer)." in said
    assert f"Scores that {planted.JUDGE} gave to all judged responses" in said
    assert "the threshold of 50, neg below it" in said
    assert "AUROC 0.91, 0.85 to 0.96, before any is left out" in said


def test_dollars_are_tokens_at_the_list_price(experiment):
    folder = TraitFolder(experiment / "poem")
    prices = json.loads((ROOT / "engine" / "judging" / "prices.json").read_bytes())["models"]
    price, cost = prices[planted.JUDGE], metadata_of(folder)["cost"]
    dollars = cost["input tokens"] * price["input"] + cost["output tokens"] * price["output"]
    shown = Page(folder.report()).terms["yield"]["US dollars, at most"]
    assert shown.startswith(f"{dollars / 1e6:.4f} (by the price list")


@pytest.mark.parametrize("model", ["local", None])
def test_what_has_no_price_has_no_dollars(tmp_path, model):
    judge = {"model": model, "mode": "local_relative", "auroc": None, "auroc_interval": None}
    folder = with_page(tmp_path / "exp" / "poem", change={"judge": judge})
    page = Page(folder.report())
    assert "US dollars" not in page.html
    named = "google/gemma-2-2b-it itself" if model else "an unknown judge"
    assert f"Judge: {named}. A score is its yes against" in page.said("judge")
    assert "AUROC" not in page.said("judge")


def test_settings_keep_their_digits(experiment):
    terms = Page(TraitFolder(experiment / "poem").report()).terms["settings"]
    assert terms["sampling seed"] == str(planted.SEED)
    assert terms["threshold"] == "50"
    assert terms["sampling temperature"] == "0.7"
    assert terms["judge model"] == planted.JUDGE
    assert terms["pools"] == "response_mean"
    assert terms["versions torch"] == "2.13.0"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", terms["extraction_date"])
    assert not {"sha256", "judge auroc", "judge histogram pos", "sample_ids"} & set(terms)


def test_what_was_measured_is_rounded_and_what_was_asked_for_is_not(tmp_path):
    change = {"self_check": {"max_error": 0.012345678}, "threshold": 12.345678}
    folder = with_page(tmp_path / "exp" / "poem", change=change)
    terms = Page(folder.report()).terms["settings"]
    assert terms["self_check max_error"] == "0.012"
    assert terms["threshold"] == "12.345678"


def test_rows_that_could_not_be_captured_are_not_called_kept(tmp_path):
    counts = planted.read_metadata(planted.write_trait(tmp_path / "exp" / "other"))["counts"]
    for side in counts.values():
        side |= {"kept": 43, "capture_failed": 3}
    page = Page(with_page(tmp_path / "exp" / "poem", change={"counts": counts}).report())
    assert page.cell("yield", "passed the judge", "pos") == "43"
    assert page.cell("yield", "capture failed", "neg") == "3"
    assert page.cell("yield", "kept", "pos") == "40"


def test_metadata_without_its_counts_is_one_clear_line(tmp_path):
    folder = write_trait(tmp_path / "exp" / "poem")
    whole = metadata_of(folder)
    for change in ({"counts": {}}, {"counts": {"pos": {}}}, {"counts": {"pos": 3}}):
        folder.metadata.write_text(json.dumps(whole | change))
        with pytest.raises(UsageError, match=r"metadata\.json .*") as raised:
            write_trait_report(folder)
        assert raised.value.step.name == "export"
    assert not folder.report().exists()


def test_the_sample_to_read_is_stratified(experiment):
    folder = TraitFolder(experiment / "poem")
    shown = Page(folder.report()).responses
    records = {
        f"score {row['score']:g}": row
        for row in responses_of(folder).drop_nulls("score").to_dicts()
    }
    scored = [row for row in shown if row[1].startswith("score ")]
    assert len(scored) == 4 * 4
    for side, score, kept in scored:
        assert records[score]["polarity"] == side
        assert records[score]["kept"] == (kept == "kept")
    ends = ("51.25", "90.25", "44.5", "49.5", "48.75", "9.75", "50.5", "55.5")  # of every stratum
    assert {f"score {end}" for end in ends} <= {row[1] for row in scored}
    refused = [row for row in shown if row not in scored]
    assert refused == [[side, "no score: refused", "left out"] for side in ("pos", "neg")]


def test_responses_without_a_verdict_say_why(tmp_path, monkeypatch):
    folder = write_trait(tmp_path / "exp" / "poem", n_layers=1)
    kept = responses_of(folder).filter(kept=True)
    whys = [("ok", "truncated"), ("ok", None), ("empty", None)]
    lost = [
        {"sample_id": f"x{i}", "response_status": response, "verdict_status": verdict}
        for i, (response, verdict) in enumerate(whys)
    ]
    row = {**kept.to_dicts()[0], "score": None, "kept": False, "response": "long " * 400}
    added = pl.DataFrame([{**row, **each} for each in lost], schema=kept.schema)
    responses = pl.concat([kept, added])
    monkeypatch.setattr(page_module, "exported_table", lambda _: responses)
    page = Page(write_trait_report(folder))
    assert [said for side, said, _ in page.responses if side == "pos"][4:] == [
        "no score: truncated",
        "no score: not judged",
        "no score: empty",
    ]
    assert [row[2] for row in page.responses if row[0] == "neg"] == ["kept"] * 4
    assert f"<blockquote>{'long ' * 300} …</blockquote>" in page.html


def test_the_experiment_lists_its_traits_and_what_transfers(experiment):
    page = Page(experiment / "report.html")
    for trait in ("poem", "noise"):
        folder = TraitFolder(experiment / trait)
        found = Evaluation(folder)
        method, layer = found.best()
        assert page.cell("traits", trait, "Kept pos") == "40"
        assert page.cell("traits", trait, "Judged by") == planted.JUDGE
        assert page.cell("traits", trait, "Method") == method
        assert page.cell("traits", trait, "Layer") == str(layer)
        shown = page.cell("traits", trait, "Held-out AUROC (95 % interval)")
        assert shown == found.shown("selected_auroc", split="question")
    assert page.cell("traits", "poem", "Claim") == "for its instructions"
    assert page.cell("traits", "noise", "Claim") == "no not shown to beat chance"
    assert page.cell("traits", "lone", "Method") == "-"
    assert "the kept rows have only one question" in page.cell("traits", "lone", "Claim")
    transfer = pl.read_parquet(experiment / "evaluation.parquet").to_dicts()
    expected = []
    for row in transfer:
        shown = row["note"]
        if row["value"] is not None:
            shown = f"{row['value']:.2f} {row['low']:.2f} to {row['high']:.2f}"
        expected.append([row["trait"], row["target"], shown])
    assert page.tables["transfer"][1:] == expected
    assert len(expected) == 9


def test_of_many_traits_each_lists_its_own_figure_and_the_farthest(experiment, monkeypatch):
    monkeypatch.setattr("traitmill.engine.report.experiment.MANY", 2)
    monkeypatch.setattr("traitmill.engine.report.numbers.FARTHEST", 1)
    pages = []
    monkeypatch.setattr(
        experiment_module, "write_page", lambda _folder, page, *_: pages.append(page)
    )
    write_experiment_report(experiment, pytest.fail)
    transfer = pl.read_parquet(experiment / "evaluation.parquet")
    expected = []
    for name in ("lone", "noise", "poem"):
        rows = {row["target"]: row for row in transfer.filter(trait=name).to_dicts()}
        own = rows.pop(name)
        measured = [row for row in rows.values() if row["value"] is not None]
        best = sorted(measured, key=lambda row: -abs(row["value"] - 0.5))[:1]
        said = own["note"]
        if own["value"] is not None:
            said = f"{own['value']:.2f} {own['low']:.2f} to {own['high']:.2f}"
        others = "".join(f"{row['target']} {row['value']:.2f}" for row in best)
        expected.append([name, said, others])
    path = experiment / "many.html"
    path.write_text(pages[0])
    assert Page(path).tables["transfer"][1:] == expected
    path.unlink()


def test_pairs_that_were_not_measured_have_their_reason_for_a_number(tmp_path):
    root = tmp_path / "exp"
    write_trait(root / "a", ("pca",), n_layers=3, signal=(0, 0, 9))
    write_trait(root / "b", ("pca",), n_layers=1, signal=0)
    update_transfer(root, pytest.fail)
    page = Page(write_experiment_report(root, pytest.fail))
    shown = {(row[0], row[1]): row[2] for row in page.tables["transfer"]}
    assert shown["a", "b"] == "the target's activations lack the vector's layer"
    assert not re.search(r"\bnan\b", page.html)


@pytest.mark.slow
@pytest.mark.parametrize("n_per_side", [3, 40])
def test_figures_that_could_not_be_measured_are_said_and_not_nan(tmp_path, monkeypatch, n_per_side):
    monkeypatch.setattr("traitmill.engine.vectors.held_out.TRIES", 0)  # no shuffle is found
    how = {"n_per_side": n_per_side, "n_pairs": 1, "n_questions": 3}
    page = Page(with_page(tmp_path / "exp" / "poem", **how).report())
    assert page.cell("layers", "mean_diff", "Shuffled labels") == "not measured"
    assert not re.search(r"\b(nan|none)\b", page.said("layers"), re.IGNORECASE)
    said = page.said("recommendation")
    words = "Too few questions for a claim: 3, 10 are needed."
    if n_per_side == 3:
        words = (
            "Too few rows and questions for a claim (rows: 3 on the smaller side, 10 are needed; "
            "questions: 3, 10 are needed)."
        )
    assert said.startswith(words)
    assert "Use " not in said
    assert not re.search(r"\b(nan|none)\b", said, re.IGNORECASE)
