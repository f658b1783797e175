"""Planted traits with pages, and a reader that finds the cells of a page."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl

from tests.support import planted
from traitmill.engine.report import write_trait_report
from traitmill.engine.storage import TraitFolder
from traitmill.engine.vectors import fit_trait

HOSTILE = (
    '<script>document.title = "hacked"</script><img src="http://example.invalid/x.png"> & "quotes" '
    "\u2028 {{ 7 * 7 }}"
)


def responses_of(folder: TraitFolder) -> pl.DataFrame:
    """What the records of a planted folder would be: on each side kept rows, six left out, and one
    that the judge refused."""
    ids = iter(planted.read_metadata(folder.path)["sample_ids"])
    rows: list[dict[str, Any]] = []
    for side, sign in (("pos", 1), ("neg", -1)):
        with folder.responses_csv(side).open(newline="") as file:
            kept = list(csv.DictReader(file))
        common = {
            "polarity": side,
            "instruction_index": 0,
            "question_index": 0,
            "rollout": 0,
            "finish_reason": "stop",
            "response_status": "ok",
            "verdict_status": "scored",
            "response": HOSTILE,
        }
        for index, row in enumerate(kept):
            texts = {"instruction": row["instruction"], "question": row["question"]}
            judged = {"score": 50 + sign * (index + 1.25), "kept": True, "left_out": None}
            rows.append({"sample_id": next(ids), **common, **texts, **judged})
        for index in range(6):
            judged = {"score": 50 - sign * (index + 0.5), "kept": False, "left_out": "by its score"}
            rows.append({**rows[-1], "sample_id": f"{side}{index}", **judged})
        refused = {"verdict_status": "refused", "score": None, "kept": False, "left_out": None}
        rows.append({**rows[-1], "sample_id": f"{side}r", **refused})
    return pl.DataFrame(rows)


def write_trait(
    path: Path, methods: tuple[str, ...] = ("mean_diff",), change: Any = None, **how: Any
) -> TraitFolder:
    """A fitted trait, its metadata changed first."""
    planted.write_trait(path, **{"n_layers": 2, "dim": 16, **how})
    metadata = planted.read_metadata(path)
    metadata["judge"] |= {"mode": "integer", "kind": "remote"}
    planted.write_metadata(path, metadata | (change or {}))
    folder = TraitFolder(path)
    fit_trait(folder, methods)
    return folder


def with_page(path: Path, *arguments: Any, **how: Any) -> TraitFolder:
    """A fitted trait with its page."""
    folder = write_trait(path, *arguments, **how)
    write_trait_report(folder)
    return folder


class Page(HTMLParser):
    """A page taken apart: what is in which section, and in which cell of its tables and lists."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text()
        self.texts: dict[str, str] = defaultdict(str)
        """By section."""
        self.tables: dict[str, list[list[str]]] = defaultdict(list)
        """Rows of cells by section, the headings first."""
        self.terms: dict[str, dict[str, str]] = defaultdict(dict)
        self.links: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.images: dict[str, dict[str, str]] = {}
        """Attributes by picture."""
        self.responses: list[list[str]] = []
        """Side, score and kept or not of each response to read."""
        self._section = self._figure = self._term = ""
        self._in_header = False
        self._cell: str | None = None
        self.feed(self.html)

    def cell(self, section: str, row: str, column: str) -> str:
        """The cell of the row and column with these headings."""
        head, *body = self.tables[section]
        (found,) = [cells for cells in body if cells[0] == row]
        return found[head.index(column)]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        if "id" in given:
            self.ids.append(given["id"])
        for name in ("src", "href", "xlink:href", "action"):
            self.links += [given[name]] if name in given else []
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)
        if tag == "section":
            self._section = given["id"]
        if tag == "figure":
            self._figure = given["id"].removeprefix("picture-")
        if tag == "img":
            self.images[self._figure] = given
        if tag == "tr":
            self.tables[self._section].append([])
        if tag == "header":
            self.responses.append([])
            self._in_header = True
        if tag in ("th", "td", "dt", "dd") or (tag in ("strong", "span") and self._in_header):
            self._cell = ""

    def handle_endtag(self, tag: str) -> None:
        text = " ".join((self._cell or "").split())
        if tag in ("th", "td"):
            self.tables[self._section][-1].append(text)
        if tag == "dt":
            self._term = text
        if tag == "dd":
            self.terms[self._section][self._term] = text
        if tag in ("strong", "span") and self._in_header:
            self.responses[-1].append(text)
        if tag == "header":
            self._in_header = False
        if tag in ("th", "td", "dt", "dd") or self._in_header:
            self._cell = None

    def handle_data(self, text: str) -> None:
        if self._cell is not None:
            self._cell += text
        self.texts[self._section] += text

    def said(self, section: str) -> str:
        """The text of a section on one line."""
        return " ".join(self.texts[section].split())


class Evaluation:
    """Figures read from `evaluation.parquet` without the program."""

    def __init__(self, folder: TraitFolder) -> None:
        self.table = pl.read_parquet(folder.path / "evaluation.parquet")

    def row(self, measure: str, **where: Any) -> dict[str, Any]:
        rows = self.table.filter(measure=measure, **where).to_dicts()
        assert len(rows) == 1, (measure, where, len(rows))
        return rows[0]

    def shown(self, measure: str, **where: Any) -> str:
        """The figure as a cell should show it."""
        row = self.row(measure, **where)
        return f"{row['value']:.2f} {row['low']:.2f} to {row['high']:.2f}"

    def best(self) -> tuple[str, int]:
        """Method and layer with the best AUROC for unseen questions; ties go to Cohen's d."""
        rows = self.table.filter(measure="auroc", split="question").to_dicts()

        def rank(row: dict[str, Any]) -> tuple[float, float]:
            where = {"method": row["method"], "layer": row["layer"]}
            return row["value"], self.row("cohens_d", split="question", **where)["value"]

        top = max(rows, key=rank)
        return top["method"], top["layer"]


def metadata_of(folder: TraitFolder) -> dict[str, Any]:
    return json.loads((folder.path / "activations" / "metadata.json").read_bytes())
