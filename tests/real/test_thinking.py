"""Thoughts on real vLLM: a tiny model that thinks, its spans, their pools, and what is not judged."""

from __future__ import annotations

import asyncio
import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.support import fakes, lab
from tests.support.oracle import Oracle
from tests.support.thinker import BEGUN, OPENED, make_thinker
from traitmill.engine.run import RunResult
from traitmill.engine.run.commands import generate
from traitmill.engine.settings import DEFAULTS
from traitmill.engine.storage import TraitFolder, load_state
from traitmill.engine.storage.schemas import response_of

pytestmark = pytest.mark.slow

ALLOWANCE, LIMIT = 30, 12
CONTENT = {
    "instruction": [{"pos": "Be brave.", "neg": "Be shy."}],
    "questions": ["Who are you?", "What is the sea?"],
    "eval_prompt": "Score {question} {answer}",
    "yes_no_prompt": "{question}\n\n{answer}\n\nIs this brave? Answer Yes or No.",
}


def run(folder: Path, model: Path, n: int) -> RunResult:
    return asyncio.run(
        generate(
            folder.parent,
            [folder.name],
            model=str(model),
            judge_model="local",
            n_examples=n,
            dtype="float32",
            capture_dtype="float32",
            temperature=1.0,
            top_p=1.0,
            max_new_tokens=LIMIT,
            thinking="on",
            max_thinking_tokens=ALLOWANCE,
            pool="response_mean,thought_mean",
            self_check="all",
        )
    )


@pytest.mark.parametrize("template", [OPENED, BEGUN], ids=["opened", "begun"])
def test_r04_a_thought_is_a_span_of_its_own(
    tmp_path: Path, model_folder: Path, template: str
) -> None:
    model = make_thinker(tmp_path / "thinker", model_folder, template)
    folder = fakes.make_trait(tmp_path, content=CONTENT)
    result = run(folder, model, 24)
    assert not result.errors
    rows = lab.rows(folder, "responses")
    assert len(rows) == 48
    counts = Counter(row["status"] for row in rows)
    assert counts["unfinished"] >= 3
    assert counts["ok"] >= 10
    tokenizer = AutoTokenizer.from_pretrained(model)
    for row in rows:
        _check_spans(row, tokenizer, opened=template == OPENED)
    assert any(row["finish_reason"] == "length" for row in rows if row["status"] == "ok")
    _check_counts(folder, result, rows)
    _check_pools(folder, model, rows)
    _check_files(folder)


def _check_spans(row: dict[str, Any], tokenizer: Any, *, opened: bool) -> None:
    opening, closing = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    thought, response = row["thought_token_ids"], row["response_token_ids"]
    first, end = row["thought_span"]
    if row["status"] == "unfinished":
        assert not response
        assert not row["response"]
        assert closing not in thought
        assert len(thought) == ALLOWANCE or thought[-1] == tokenizer.eos_token_id
        return
    assert tokenizer.decode(response, skip_special_tokens=True) == row["response"]
    assert len(response) <= LIMIT
    assert (len(response) == LIMIT) >= (row["finish_reason"] == "length")
    if not thought:
        assert not opened
        assert response[0] != opening
        return
    assert thought.index(closing) == end < ALLOWANCE
    assert not tokenizer.decode(thought[end + 1 :]).strip()
    assert tokenizer.decode(response[:1]).strip() or len(thought) == end + 5 or not response
    assert (thought[0] == opening) == (not opened)
    assert first >= (not opened)
    assert tokenizer.decode(thought[first:end]).strip() == row["thought"]


def _check_counts(folder: Path, result: RunResult, rows: list[dict[str, Any]]) -> None:
    state = load_state(TraitFolder(folder))
    counts = state.counts()
    for status in ("ok", "empty", "unfinished"):
        stored = sum(row["status"] == status for row in rows)
        assert sum(counts[side]["responses"][status] for side in ("pos", "neg")) == stored
    ok = {row["sample_id"] for row in rows if row["status"] == "ok"}
    assert {row["sample_id"] for row in lab.rows(folder, "verdicts")} == ok
    mute = {row["sample_id"] for row in rows if row["thought_span"][0] == row["thought_span"][1]}
    assert {row["sample_id"] for row in lab.rows(folder, "activations")} == ok
    assert not state.capture_failed().any()
    assert set(state.plan.ids[state.unpoolable()].astype(str).tolist()) == ok & mute
    passing = np.asarray(state.plan.ids[state.passing()], str)
    assert len(passing) > 0
    assert ok.issuperset(passing.tolist())
    check = state.capture.self_check if state.capture else None
    assert check
    assert check["logprob_rows"] >= 2
    assert check["worst_logprob_deviation"] < 1e-3


def _check_pools(folder: Path, model: Path, rows: list[dict[str, Any]]) -> None:
    oracle = Oracle(model)
    responses = {row["sample_id"]: response_of("trait", row) for row in rows}
    compared = 0
    for row in lab.rows(folder, "activations"):
        if row["status"] != "ok":
            continue
        found = np.frombuffer(row["values"], "<f4").reshape(3, -1)
        expected = oracle.of(responses[row["sample_id"]])[row["pool"]][1:]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        compared += 1
    assert compared >= 16


def _check_files(folder: Path) -> None:
    metadata = json.loads((folder / "activations/metadata.json").read_text())
    assert metadata["pools"] == ["response_mean", "thought_mean"]
    assert metadata["sampling"]["max_thinking_tokens"] == ALLOWANCE
    assert metadata["sampling"]["thinking"] == "on"
    assert (folder / "activations/all_layers.thought_mean.pt").exists()
    stored = {row["response"]: row["thought"] for row in lab.rows(folder, "responses")}
    for side in ("pos", "neg"):
        with (folder / f"responses/{side}.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        for line in lines:
            assert list(line)[-2:] == ["trait_score", "thought"]
            assert line["thought"] == stored[line["response"]]


def test_a_pool_of_thoughts_is_refused_where_there_are_none(
    tmp_path: Path, model_folder: Path
) -> None:
    from traitmill.engine.errors import UsageError

    folder = fakes.make_trait(tmp_path, content=CONTENT)
    assert DEFAULTS.sampling.thinking == "auto"
    with pytest.raises(UsageError, match="`pool` thought_mean: trait has no thoughts"):
        asyncio.run(
            generate(
                folder.parent,
                model=str(model_folder),
                judge_model="local",
                pool="response_mean,thought_mean",
            )
        )
    assert not (folder / "parquet/run.json").exists()
