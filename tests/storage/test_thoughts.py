"""Thoughts on disk, and part files that were written before there were any."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support import fakes
from tests.support.rows import response_row
from traitmill.cli.remarks import remarks
from traitmill.engine.records import Response, Sample
from traitmill.engine.run.progress import trait_results
from traitmill.engine.storage.parts import PartSet
from traitmill.engine.storage.schemas import (
    RESPONSE_SCHEMA,
    check_schema,
    response_of,
    row_table,
)
from traitmill.engine.storage.schemas import (
    response_row as stored_row,
)

LATER = ["thought", "thought_token_ids", "thought_span"]


def test_a_thought_comes_back_as_it_was_stored() -> None:
    made = replace(response_row("r", (1, 2), (7, 8, 9), 2, thought=(3, 4, 5, 6)), thought="so")
    table = row_table("responses", [stored_row(made)])
    assert response_of("trait", table.to_pylist()[0]) == made
    assert made.token_ids == (1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert made.spans == {"prompt": (0, 2), "thought": (3, 5), "response": (6, 8)}


def test_part_files_without_thoughts_are_read_beside_those_with(tmp_path: Path) -> None:
    parts = PartSet(tmp_path / "responses", "responses", tmp_path / "q", print, owned=True)
    (tmp_path / "responses").mkdir()
    old, new = (response_row(name, (1, 2), (7, 8, 9), 2) for name in ("old", "new"))
    new = replace(new, thought="so", thought_token_ids=(3, 4), thought_span=(0, 1))
    table = row_table("responses", [stored_row(old)]).drop_columns(LATER)
    check_schema("responses", table.schema)
    pq.write_table(table, tmp_path / "responses/part-00000001.parquet")
    parts.append(row_table("responses", [stored_row(new)]))
    found = []
    for _ in range(2):
        paths = parts.paths()
        for path in paths:
            piece = parts.take(path, np.array([0]), RESPONSE_SCHEMA.names)
            assert piece.schema.equals(RESPONSE_SCHEMA)
            found += [response_of("trait", row) for row in piece.to_pylist()]
        assert [
            thought
            for _, piece in parts.read(["sample_id", "thought"])
            for thought in piece["thought"].to_pylist()
        ] == [None, "so"]
        parts.compact()
    assert found == [old, new, old, new]
    assert not parts.damaged
    assert not (tmp_path / "q").exists()


def test_a_part_file_that_lacks_another_column_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "responses").mkdir()
    row = stored_row(response_row("old", (1,), (7,), 1))
    table = row_table("responses", [row]).drop_columns(["thought_span", "error"])
    pq.write_table(table, tmp_path / "responses/part-00000001.parquet")
    parts = PartSet(tmp_path / "responses", "responses", tmp_path / "q", print, owned=False)
    assert parts.paths() == []
    assert "its columns are not those of responses" in parts.damaged[0]


class Thinking(fakes.FakeGenerator):
    """Every other thought does not end."""

    async def generate(self, sample: Sample) -> Response:
        made = await super().generate(sample)
        made = replace(made, thought="hm", thought_token_ids=(3, 4, 5), thought_span=(1, 2))
        if int(sample.id[5], 16) % 2:
            why = "length" if int(sample.id[6], 16) % 2 else "stop"
            lost = {"status": "unfinished", "response": "", "response_token_ids": ()}
            return replace(made, finish_reason=why, **lost)
        return made


@pytest.mark.parametrize("thinks", [True, False])
async def test_r04_an_unfinished_thought_is_counted_and_neither_judged_nor_captured(
    tmp_path: Path, thinks: bool
) -> None:
    run = fakes.settings()
    folder = fakes.make_trait(tmp_path)
    jobs = fakes.open_runs([folder], run)
    if thinks:
        record = jobs[0].state.record.model_copy(update={"thinks": True})
        jobs[0].state.record = record
        record.save(jobs[0].folder.run_record)
    judge, capture = fakes.FakeJudge(run.judge), fakes.FakeCapture(run.capture)
    backends = {"generator": Thinking(), "judge": judge, "capturer": capture}
    await fakes.pipeline(jobs, run, **backends).run()
    ids = jobs[0].state.plan.ids.astype(str).tolist()
    unfinished = {id_ for id_ in ids if int(id_[5], 16) % 2}
    counts = fakes.state(folder).counts()
    stored = sum(counts[side]["responses"]["unfinished"] for side in ("pos", "neg"))
    assert stored == len(unfinished) >= 10
    assert not unfinished & set(judge.calls)
    assert not unfinished & {row.sample.id for row in capture.rows}
    assert all(row.thought_token_ids == (3, 4, 5) for row in capture.rows)
    header = (folder / "responses/pos.csv").read_text().splitlines()[0]
    expected = "question,instruction,prompt,response,trait_score"
    assert header == (f"{expected},thought" if thinks else expected)
    again = fakes.open_runs([folder], run)
    assert again[0].ungenerated() == []
    # More tokens are advised for those thoughts alone that met their limit.
    [result] = trait_results(again).values()
    said = "\n".join(remarks(result))
    at_limit = {id_ for id_ in unfinished if int(id_[6], 16) % 2}
    assert 0 < len(at_limit) < len(unfinished)
    counted = [int(n) for n in re.findall(r"(\d+) (?:pos|neg) thoughts did not end", said)]
    ended = [int(n) for n in re.findall(r"in (\d+) (?:pos|neg) samples the model ended", said)]
    assert (sum(counted), sum(ended)) == (len(at_limit), len(unfinished - at_limit))
