"""Rows that are gone: the files that were made from them stay, and the command is named."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import Traitmill
from tests.support import fakes, lab
from traitmill.engine.errors import ExitCode, ResourceError
from traitmill.engine.storage import PartSet


def everything(folder: Path) -> dict[str, bytes]:
    """Final files and records, byte for byte."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished run whose responses stand in two parts, 15 and 5 rows of it."""
    folder = fakes.make_trait(tmp_path)
    runs = fakes.open_runs([folder], fakes.settings(20))
    asyncio.run(fakes.pipeline(runs, fakes.settings(20)).run())
    [path] = fakes.part_files(folder, "responses")
    table = pq.read_table(path, partitioning=None)
    path.unlink()
    records = folder / "parquet"
    writer = PartSet(records / "responses", "responses", records / "quarantine", print, owned=True)
    writer.append(table.slice(0, 25))
    writer.append(table.slice(25))
    return folder


def on(folder: Path) -> list[object]:
    return ["--experiment", "exp", "--trait", "trait", "--experiments_dir", folder.parent.parent]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("loss", ["cut", "deleted"])
@pytest.mark.parametrize("kind", ["responses", "verdicts", "activations"])
def test_t37_t38_an_export_of_records_with_a_gap_touches_no_file(
    traitmill: Traitmill, finished: Path, kind: str, loss: str
) -> None:
    part = fakes.part_files(finished, kind)[-1]
    if loss == "cut":
        cut(part)
    else:
        part.unlink()
    before = everything(finished)
    code, said = traitmill("export", *on(finished), "--threshold", "40")
    assert code == ExitCode.RESOURCES, said
    assert "stay as they are" in said
    step = "activations" if kind == "activations" else "generate"
    assert f"traitmill {step} --experiment exp --trait trait" in said
    assert everything(finished) == before


@pytest.mark.parametrize("loss", ["cut", "deleted"])
def test_t29_judging_records_with_a_gap_is_refused_before_it_costs(
    traitmill: Traitmill, finished: Path, loss: str
) -> None:
    part = fakes.part_files(finished, "responses")[-1]
    if loss == "cut":
        cut(part)
    else:
        part.unlink()
    before = everything(finished)
    code, said = traitmill(
        "judge", *on(finished), "--judge_model", "m", "--judge_base_url", "http://127.0.0.1:9/v1"
    )
    assert code == ExitCode.RESOURCES, said
    assert "traitmill generate --experiment exp --trait trait" in said
    assert everything(finished) == before


def test_t29_generating_makes_the_lost_rows_again(finished: Path) -> None:
    files = lab.final_files(finished)
    cut(fakes.part_files(finished, "responses")[-1])
    with pytest.raises(ResourceError, match="stay as they are"):
        fakes.export_again(finished)
    runs = fakes.open_runs([finished], fakes.settings(20))
    asyncio.run(fakes.pipeline(runs, fakes.settings(20)).run())
    assert runs[0].finished
    assert lab.final_files(finished) == files
    assert lab.duplicates(finished) == 0


def test_t49_status_names_a_damaged_part(traitmill: Traitmill, finished: Path) -> None:
    part = fakes.part_files(finished, "verdicts")[-1]
    cut(part)
    code, said = traitmill("status", *on(finished))
    assert code == ExitCode.RESOURCES
    assert str(part) in said
    assert "is damaged" in said
    _, said = traitmill("status", *on(finished), "--json")
    facts = json.loads(said)["traits"]["trait"]
    assert len(facts["faults"]) == 1
