"""The documented files say exactly what was generated, in every reader the documentation names."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from tests.conftest import ROOT
from tests.support import fakes, lab, planted
from traitmill.engine.errors import UsageError
from traitmill.engine.outputs import load_activations
from traitmill.engine.outputs.rows import format_score
from traitmill.engine.records import Response, Sample, Verdict

NASTY = (
    "plain",
    "comma, in",
    'quote " in',
    '"quoted"',
    '"',
    '""',
    "two\nlines",
    "\n",
    "\nleading and trailing\n",
    "windows\r\nlines",
    "lone\rreturn",
    "\r",
    "nul \x00 in",
    "\x00",
    "\u2028",
    "line \u2028 separator \u2029 both",
    "\x85 next line, \x0b vertical, \x0c feed, \x1c group",
    "null",
    "NULL",
    "NaN",
    "nan",
    "None",
    "N/A",
    "inf",
    "",
    " ",
    " spaced ",
    "\ttab",
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "1e5",
    "00123",
    "true",
    "2024-01-01",
    "# no comment",
    "back\\slash \\n",
    "'single'",
    "\ufeffmark",
    "é漢🦙",
    'a,b\n"c"\r\nd,""\r,"',
)  # fmt: skip
POLARS = {
    "infer_schema": False,
    "empty_string_is_null": False,
    "schema_overrides": {"trait_score": pl.Float64},
}
PANDAS = {"dtype": {"trait_score": float}, "keep_default_na": False, "engine": "python"}


def _fuzz() -> list[str]:
    rng = random.Random(7)
    return [
        "".join(rng.choices(',"\r\n \x00a\u2028=;\t\\', k=rng.randint(1, 12))) for _ in range(300)
    ]


class Nasty(fakes.FakeGenerator):
    """Texts in turn, each remembered by its sample's id."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.waiting = list(texts)
        self.written: dict[str, str] = {}

    async def generate(self, sample: Sample) -> Response:
        text = self.written[sample.id] = self.waiting.pop() if self.waiting else "filler"
        return Response(sample, "ok", text, (5, 2), "stop")


class Keeping(fakes.FakeJudge):
    """Keeps everything."""

    async def judge(self, trait, response: Response) -> Verdict:
        verdict = await super().judge(trait, response)
        return replace(
            verdict, status="scored", score=99.5 if response.sample.polarity == "pos" else 0.25
        )


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory):
    texts = [*NASTY, *_fuzz()]
    folder = fakes.make_trait(tmp_path_factory.mktemp("nasty"))
    content = fakes.definition(2, 3)
    content["questions"] = ['What, "exactly"?', "=cmd|' /C calc'!A0", "Two\nlines?\r"]
    content["instruction"] = [
        {"pos": "-be, it", "neg": '@not "it"'},
        {"pos": "null", "neg": "+NaN\n"},
    ]
    (folder / "trait_definition.json").write_text(json.dumps(content))
    settings = fakes.settings(-(-len(texts) // 2))
    runs = fakes.open_runs([folder], settings)
    generator = Nasty(texts)
    asyncio.run(
        fakes.pipeline(runs, settings, generator=generator, judge=Keeping(settings.judge)).run()
    )
    assert runs[0].finished
    assert set(generator.written.values()) >= set(texts)
    return folder, generator.written


def expected_rows(
    folder: Path, written: dict[str, str], side: str
) -> list[tuple[str, str, str, str, float]]:
    """From the metadata's ids, the definition and what was generated: nothing of it read from
    Parquet or CSV."""
    metadata = json.loads((folder / "activations/metadata.json").read_text())
    n_pos = metadata["n_examples_pos"]
    ids = metadata["sample_ids"][:n_pos] if side == "pos" else metadata["sample_ids"][n_pos:]
    definition = json.loads((folder / "trait_definition.json").read_text())
    out = []
    view = fakes.state(folder)
    for id_ in ids:
        position = int(view.plan.positions(np.array([id_], "S32"))[0])
        instruction = definition["instruction"][view.plan.instruction_index[position]][side]
        question = definition["questions"][view.plan.question_index[position]]
        score = 99.5 if side == "pos" else 0.25
        out.append((question, instruction, f"{instruction}\n\n{question}", written[id_], score))
    return out


@pytest.mark.parametrize("side", ["pos", "neg"])
def test_f17_every_text_comes_back_from_parquet(nasty, side: str) -> None:
    folder, written = nasty
    stored = {
        row["sample_id"]: row["response"]
        for row in lab.rows(folder, "responses")
        if row["polarity"] == side
    }
    assert stored == {id_: written[id_] for id_ in stored}
    assert len(stored) == 171


@pytest.mark.parametrize("side", ["pos", "neg"])
def test_f17_every_text_comes_back_from_the_csv_in_polars(nasty, side: str) -> None:
    folder, written = nasty
    frame = pl.read_csv(folder / f"responses/{side}.csv", **POLARS)
    assert frame.rows() == expected_rows(folder, written, side)


@pytest.mark.parametrize("side", ["pos", "neg"])
def test_f17_every_text_comes_back_from_the_csv_in_pandas(nasty, side: str) -> None:
    folder, written = nasty
    frame = pd.read_csv(folder / f"responses/{side}.csv", **PANDAS)
    assert list(frame.itertuples(index=False, name=None)) == expected_rows(folder, written, side)


@pytest.mark.parametrize("side", ["pos", "neg"])
def test_f17_every_text_comes_back_from_the_csv_in_the_standard_library(nasty, side: str) -> None:
    folder, written = nasty
    with (folder / f"responses/{side}.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["question", "instruction", "prompt", "response", "trait_score"]
    assert [(*row[:4], float(row[4])) for row in rows] == expected_rows(folder, written, side)


def test_f17_the_documented_options_are_the_tested_ones() -> None:
    page = " ".join((ROOT / "docs/reliability.md").read_text().split())
    assert (
        'infer_schema=False, empty_string_is_null=False, schema_overrides={"trait_score": pl.Float64}'
        in page
    )
    assert 'dtype={"trait_score": float}, keep_default_na=False, engine="python"' in page


def test_the_csv_is_utf8_with_bare_line_feeds_and_quotes_only_where_needed(nasty) -> None:
    folder, _ = nasty
    sides = [(folder / f"responses/{side}.csv").read_bytes() for side in ("pos", "neg")]
    assert all(data.startswith(b"question,") and data.endswith(b"\n") for data in sides)
    both = b"".join(sides)
    for cell in (
        b"plain",
        b'"comma, in"',
        b"null",
        b"=1+1",
        b'"quote "" in"',
        b"#" + b" no comment",
    ):
        assert b"," + cell + b",99.5\n" in both or b"," + cell + b",0.25\n" in both


@pytest.mark.parametrize(
    ("score", "text"),
    [(0, "0"), (100, "100"), (50.0, "50"), (99.5, "99.5"), (0.25, "0.25"), (33.333333, "33.33")],
)
def test_scores_have_two_decimals_at_most(score: float, text: str) -> None:
    assert format_score(score) == text


@pytest.mark.parametrize(
    ("score", "text"), [(49.998, "49.998"), (50.0, "50"), (49.98, "49.98"), (50.001, "50")]
)
def test_a_score_in_a_file_is_on_its_side_of_the_threshold(score: float, text: str) -> None:
    assert format_score(score, [50.0, 30.0]) == text


# --- thresholds ---


def run(folder: Path, settings=None, **backends: object) -> None:
    settings = settings or fakes.settings(60)
    runs = fakes.open_runs([folder], settings)
    asyncio.run(fakes.pipeline(runs, settings, **backends).run())
    assert runs[0].finished


def test_another_threshold_gives_the_files_a_run_with_it_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    one, other = fakes.make_trait(tmp_path / "one"), fakes.make_trait(tmp_path / "other")
    run(one)
    run(other, fakes.settings(60, threshold=65.0))
    files = lab.final_files(one)
    exported = fakes.export_again(one, threshold=65.0)
    assert lab.final_files(one) == lab.final_files(other) != files
    assert exported.shape is not None
    assert exported.shape[0] == sum(exported.kept.values())
    fakes.export_again(one, threshold=50.0)
    assert lab.final_files(one) == files


def test_kept_rows_that_were_not_captured_are_counted_and_the_command_named(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder, fakes.settings(60, capture_rows="kept"))
    before = lab.final_files(folder)
    selection = (folder / "parquet/selection.json").read_bytes()
    rows = [row for row in lab.rows(folder, "verdicts") if row["score"] is not None]
    side = {row["sample_id"]: row["polarity"] for row in lab.rows(folder, "responses")}
    missing = sum(side[row["sample_id"]] == "pos" and 20 <= row["score"] < 50 for row in rows)
    assert missing
    with pytest.raises(UsageError, match=rf"{missing} of \d+ kept") as caught:
        fakes.export_again(folder, threshold=20.0)
    assert caught.value.step is not None
    assert caught.value.step.name == "activations"
    assert lab.final_files(folder) == before
    assert (folder / "parquet/selection.json").read_bytes() == selection


def test_a_side_with_nothing_kept_is_a_header_only(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder)
    exported = fakes.export_again(folder, threshold=0.0)
    assert exported.kept["neg"] == 0
    assert (
        folder / "responses/neg.csv"
    ).read_text() == "question,instruction,prompt,response,trait_score\n"
    tensor = torch.load(folder / "activations/all_layers.pt", weights_only=True)
    assert tensor.shape == (exported.kept["pos"], fakes.N_LAYERS, fakes.HIDDEN_DIM)


def test_the_tensors_bytes_are_torchs_own(tmp_path: Path) -> None:
    """Assembled through a mapped file, yet what torch.save writes of the same values."""
    folder = fakes.make_trait(tmp_path)
    run(folder)
    ids = json.loads((folder / "activations/metadata.json").read_text())["sample_ids"]
    values = torch.from_numpy(
        np.stack([fakes.expected_values(id_, "response_mean") for id_ in ids])
    )
    buffer = io.BytesIO()
    torch.save(values, buffer)
    assert (folder / "activations/all_layers.pt").read_bytes() == buffer.getvalue()


def test_a_runs_metadata_numbers_each_rows_texts(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder)
    definition = json.loads((folder / "trait_definition.json").read_text())
    metadata = planted.read_metadata(folder)
    numbers = iter(zip(metadata["instruction_index"], metadata["question_index"], strict=True))
    for side in ("pos", "neg"):
        with (folder / "responses" / f"{side}.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                pair, question = next(numbers)
                assert row["instruction"] == definition["instruction"][pair][side]
                assert row["question"] == definition["questions"][question]
    assert next(numbers, None) is None
    assert len(load_activations(folder).labels) == metadata["n_examples"] > 0


class Thinking(fakes.FakeGenerator):
    """Every second response holds a thought, as of a model whose template names no tags."""

    async def generate(self, sample: Sample) -> Response:
        response = await super().generate(sample)
        thoughts = ("", "<think>\nHm.\n</think>\n\n", "Hm.\n</think>\n\n", " [THINK]Hm.[/THINK]")
        thought = thoughts[int(sample.id[:2], 16) % 4]
        return replace(response, response=thought + response.response)


@pytest.mark.parametrize("generator", [Thinking, fakes.FakeGenerator])
def test_kept_responses_that_hold_a_thought_are_told_of(tmp_path: Path, generator) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder, fakes.settings(20), generator=generator())
    text = (folder / "responses/pos.csv").read_text() + (folder / "responses/neg.csv").read_text()
    held = text.count("Hm.")
    assert (held > 0) == (generator is Thinking)
    said = fakes.export_again(folder).thinking
    if held:
        assert said.startswith(f"{held} kept responses hold a thought")
    else:
        assert said == ""
