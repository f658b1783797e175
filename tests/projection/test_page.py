"""The page of a projection shows the tokens of the table, and asks nothing of the network."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import traitmill
from tests.support import planted, talkers
from tests.vectors.helpers import evaluated
from traitmill.engine.projection.page import SHOWN, STEPS, token_texts


class Words(HTMLParser):
    """The articles of a page: the score said, and each token's class, title and text."""

    def __init__(self) -> None:
        super().__init__()
        self.articles: list[dict] = []
        self.links: list[str] = []
        self._in = ""

    def handle_starttag(self, tag, attrs) -> None:
        found = dict(attrs)
        self.links += [found[name] for name in ("href", "src") if name in found]
        if tag == "article":
            self.articles.append({"score": "", "tokens": []})
        if tag == "i" and "title" in found:
            self.articles[-1]["tokens"].append([found.get("class", ""), found["title"], ""])
        self._in = tag

    def handle_endtag(self, _tag) -> None:
        self._in = ""

    def handle_data(self, data) -> None:
        if self._in == "i" and self.articles and self.articles[-1]["tokens"]:
            self.articles[-1]["tokens"][-1][2] += data
        if self._in == "strong" and self.articles:
            self.articles[-1]["score"] += data


@pytest.mark.slow
def test_the_page_shows_what_the_table_says(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "poem", n_layers=3, dim=32)
    evaluated(folder, ("mean_diff",))
    model = talkers.build_talker(tmp_path / "model")
    texts = tmp_path / "t.jsonl"
    rows = [
        {"prompt": f"Say {i}.", "response": f"rain <b>{'& sea' * (i % 5)} ✿{i}"} for i in range(60)
    ]
    texts.write_text("\n".join(json.dumps(row) for row in rows))
    result = traitmill.project(
        texts, folder, tmp_path / "out", methods=["mean_diff"], layers=[1], models=model
    )
    name = "poem.mean_diff.1"
    table = pl.read_parquet(result.table).filter(role="assistant").sort(name, descending=True)
    html = result.page.read_text()
    page = Words()
    page.feed(html)
    assert page.links == []
    assert "default-src 'none'" in html
    assert len(page.articles) == SHOWN
    assert "· 120 turns" in html, "a prompt and a response each, whatever rows are"
    assert '<th scope="col">Model' not in html, "there is one, named above"
    places = np.linspace(0, 59, SHOWN).round().astype(int)
    full = float(re.search(r"\+([0-9.]+) training spreads", html)[1])
    for article, row in zip(page.articles, table[places].iter_rows(named=True), strict=True):
        assert article["score"] == f"{row[name]:+.2f}"
        assert "".join(text for _, _, text in article["tokens"]) == row["text"]
        for (shade, title, _), score in zip(
            article["tokens"], row[f"{name}.by_token"], strict=True
        ):
            assert title == f"{score:+.2f}"
            step = min(STEPS, abs(score) / full * STEPS)
            said = int(shade[1:] or 0)
            assert abs(said - step) <= 0.55
            assert not shade or shade[0] == ("p" if score > 0 else "n")


@pytest.mark.slow
def test_a_first_token_that_counts_in_no_mean_has_no_colour(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "poem", n_layers=3, dim=32)
    evaluated(folder, ("mean_diff",))
    model = Path(talkers.build_talker(tmp_path / "model"))
    (model / "chat_template.jinja").unlink()
    texts = tmp_path / "t.jsonl"
    texts.write_text(json.dumps({"response": "rain in spring"}))
    said: list[str] = []
    result = traitmill.project(texts, folder, tmp_path / "out", models=model, notice=said.append)
    page = Words()
    page.feed(result.page.read_text())
    [article] = page.articles
    assert article["tokens"][0][:2] == ["", "the first token, which counts in no mean"]
    assert sum("counts in no mean" in line for line in said) == 1
    [scores] = pl.read_parquet(result.table).select(pl.col("^.*by_token$")).row(0)
    assert (scores[0], None in scores[1:]) == (None, False)


@pytest.mark.parametrize("family", sorted(talkers.TEMPLATES))
def test_tokens_put_together_are_the_text(family):
    tokenizer = talkers.tokenizer(family)
    text = "Rain in spring ✿✿ — 30 Dec\n\nof the sea…"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts).strip() == text
    assert "\ufffd" not in "".join(texts)
