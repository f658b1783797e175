"""`status` and `show`: from one trait to 240, on 80 columns and in a pipe."""

from __future__ import annotations

import copy
import io
import json
import re
import zlib
from typing import Any

import pytest
from rich.console import Console

from tests.conftest import Traitmill
from tests.support import fakes, lab
from traitmill.cli.status_table import shown
from traitmill.engine.errors import ExitCode


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> lab.Work:
    work = lab.Work(tmp_path_factory.mktemp("made"), n=30)
    fakes.make_trait(work.root, "trait")
    assert lab.run_to_end(work) == ExitCode.OK
    return work


def on(work: lab.Work) -> list[str]:
    return ["--experiment", "exp", "--trait", "trait", "--experiments_dir", str(work.root)]


def render(found: dict[str, Any], columns: int) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=columns, highlight=False)
    for part in shown("exp", found):
        console.print(part)
    return out.getvalue().splitlines()


def test_a_column_of_troubles_is_there_where_there_is_one(
    made: lab.Work, traitmill: Traitmill
) -> None:
    _, said = traitmill("status", *on(made), "--json")
    one = json.loads(said)["traits"]["trait"]
    assert "to see to" not in "\n".join(render({"a": one}, 80))
    failing = copy.deepcopy(one)
    failing["counts"]["pos"]["responses"]["failed"] = 3
    for other, what in ((failing, "3 failed"), (None, "no run yet")):
        lines = "\n".join(render({"a": one, "b": other}, 80))
        assert "to see to" in lines
        assert what in lines


def test_rows_that_a_killed_run_left_in_its_journal_are_told(
    made: lab.Work, traitmill: Traitmill
) -> None:
    code, said = traitmill("status", *on(made))
    assert "last seconds" not in said
    folder = made.root / "exp" / "trait" / "parquet" / "responses"
    journal = folder / ".journal-00000099.jsonl"
    lines = [b'{"sample_id":"a","status":"ok"}', b'{"sample_id":"b","status":"ok"}']
    journal.write_bytes(b"".join(b"%08x %s\n" % (zlib.crc32(line), line) for line in lines))
    with journal.open("ab") as file:
        file.write(b"00000000 {cut off")
    try:
        now, said = traitmill("status", *on(made))
    finally:
        journal.unlink()
    assert now == code
    assert "trait: 2 responses of the run's last seconds are stored, and counted" in said


def test_t17_240_traits_have_a_total_and_trouble_comes_first(
    made: lab.Work, traitmill: Traitmill
) -> None:
    _, said = traitmill("status", *on(made), "--json")
    one = json.loads(said)["traits"]["trait"]
    found = {f"trait_of_some_length_{i:03d}": copy.deepcopy(one) for i in range(240)}
    failing, behind = found["trait_of_some_length_200"], found["trait_of_some_length_100"]
    failing["counts"]["pos"]["responses"]["failed"] = 3
    behind["counts"]["neg"]["responses"]["pending"] = 7
    lines = render(found, 80)
    assert max(map(len, lines)) <= 80
    head = " ".join(" ".join(lines).partition("trait ")[0].split())
    assert head.startswith("exp: 240 traits, 239 generated in full; ")
    assert f"{240 * 60 - 7:,} of {240 * 60:,} responses" in head
    sides = one["counts"]
    kept = {side: 240 * sides[side]["kept"] for side in ("pos", "neg")}
    assert f"kept {kept['pos']:,} pos + {kept['neg']:,} neg" in head
    assert "1 with failures" in head
    rows = [line for line in lines if re.match(r"trait_of_some", line)]
    assert len(rows) == 240
    assert rows[0].startswith("trait_of_some_length_200")
    assert "3 failed" in rows[0] + lines[lines.index(rows[0]) + 1]
    assert rows[1].startswith("trait_of_some_length_100")
    assert [line[:24] for line in rows[2:4]] == [f"trait_of_some_length_{i:03d}" for i in (0, 1)]


def test_t17_status_in_a_pipe_is_one_line_a_trait(made: lab.Work, traitmill: Traitmill) -> None:
    code, said = traitmill("status", *on(made))
    assert code == ExitCode.OK
    rows = [row for row in lab.rows(made.folders[0], "responses") if row["status"] == "ok"]
    [line] = [line for line in said.splitlines() if line.startswith("trait ") and "60" in line]
    made_of_planned, *numbers = line.split()[1:4]
    assert made_of_planned == "60/60"
    scored = [r for r in lab.rows(made.folders[0], "verdicts") if r["status"] == "scored"]
    assert list(map(int, numbers)) == [len(scored), len(rows)]


@pytest.fixture
def rows(made: lab.Work) -> list[dict[str, Any]]:
    """What is stored of each response, by code of its own."""
    verdicts = {row["sample_id"]: row for row in lab.rows(made.folders[0], "verdicts")}
    found = []
    for row in lab.rows(made.folders[0], "responses"):
        score = verdicts.get(row["sample_id"], {}).get("score")
        side = row["polarity"]
        kept = score is not None and (score >= 50 if side == "pos" else score < 50)
        found.append({**row, "score": score, "kept": kept})
    return found


def listed(said: str) -> list[str]:
    return re.findall(r"^(?:pos|neg) · .* · ([0-9a-f]{8})$", said, re.MULTILINE)


def test_show_lists_the_rejected_of_a_side_by_score(
    made: lab.Work, traitmill: Traitmill, rows: list[dict[str, Any]]
) -> None:
    where = [*on(made), "--limit", "0"]
    assert "--sort [plan|score|-score]" in traitmill("show", "--help")[1]
    code, said = traitmill("show", *where, "--side", "neg", "--rejected", "--sort", "-score")
    assert code == ExitCode.OK
    wanted = [row for row in rows if row["polarity"] == "neg" and not row["kept"]]
    scored = sorted((r for r in wanted if r["score"] is not None), key=lambda r: -r["score"])
    ids = listed(said)
    assert ids[: len(scored)] == [row["sample_id"][:8] for row in scored]
    assert len(ids) == len(wanted)
    assert f"{len(wanted)} shown of {len(wanted)} that match, of 60 responses" in said
    for row in scored:
        assert row["response"].splitlines()[0] in said


def test_show_filters_by_status_score_and_question(
    made: lab.Work, traitmill: Traitmill, rows: list[dict[str, Any]]
) -> None:
    _, said = traitmill("show", *on(made), "--limit", "0", "--status", "empty")
    assert len(listed(said)) == sum(row["status"] == "empty" for row in rows)
    _, said = traitmill("show", *on(made), "--limit", "0", "--min_score", "40", "--max_score", "60")
    between = [row for row in rows if row["score"] is not None and 40 <= row["score"] <= 60]
    assert len(listed(said)) == len(between)
    _, said = traitmill("show", *on(made), "--limit", "0", "--question", "question 3")
    assert len(listed(said)) == sum(row["question"] == "Question 3?" for row in rows)
    _, said = traitmill("show", *on(made), "--limit", "2", "--question", "3")
    assert len(listed(said)) == 2
    assert "--limit 0 shows all" in said


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--status", "unparseable", "--status 'unparseable' is none; choose from scored, refused"),
        ("--question", "99", "--question 99: the questions are numbered 0 to 4"),
    ],
)
def test_show_refuses_what_there_is_none_of(
    made: lab.Work, traitmill: Traitmill, option: str, value: str, said: str
) -> None:
    code, out = traitmill("show", *on(made), option, value)
    assert code == ExitCode.USAGE
    assert said in " ".join(out.split())


def test_show_obeys_no_control_character_of_a_response(
    made: lab.Work, traitmill: Traitmill
) -> None:
    _, said = traitmill("show", *on(made), "--limit", "0")
    assert "carriage\\rreturn" in said
    assert "\r" not in said
