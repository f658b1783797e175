"""Every response with its verdict as one table, for reading by eye, and how far the judge agrees
with a person's marks on them."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..errors import UsageError
from ..statistics import Estimate, cohens_kappa, wilson
from ..storage import STATUSES, Selection, TraitFolder, TraitState, load_state
from ..threads import after_fork
from .export import digest
from .ready import require_captured

if TYPE_CHECKING:
    import polars as pl


def audit_table(folder: TraitFolder | Path) -> pl.DataFrame:
    """Return every generated response of the plan with its verdict, for reading by eye.

    Columns: sample_id, polarity, instruction_index, question_index, rollout, instruction,
    question, response, thought, finish_reason, response_status, verdict_status (null when
    unjudged), score (null unless scored), kept, left_out (why a scored one is not kept, else null).
    """
    if not isinstance(folder, TraitFolder):
        folder = TraitFolder(folder)
    return _table(load_state(folder))


def exported_table(folder: TraitFolder) -> pl.DataFrame:
    """Return the same of a trait whose files were written from the rows that are stored now.

    Raise UsageError where more was generated, judged or captured since: beside the files' figures
    those rows would be of another state. Files that a page does not read may be gone.
    """
    state, selection = load_state(folder), Selection.load(folder.selection)
    if selection is None or selection.digest != digest(state):
        require_captured(state)
        raise UsageError(
            f"{folder.path}: responses were generated, judged or chosen since its files were "
            "written; write them anew",
            folder.step("export"),
        )
    return _table(state)


def _table(state: TraitState) -> pl.DataFrame:
    import polars as pl

    after_fork("a table of responses")
    positions = np.flatnonzero(~state.responses.pending())
    columns = ["sample_id", "polarity", "instruction_index", "question_index", "rollout"]
    columns += ["instruction", "question", "response", "thought", "finish_reason", "status"]
    tables = list(state.tables("responses", positions, columns))
    if tables:
        frame = pl.DataFrame(pl.from_arrow(pa.concat_tables(tables)))
    else:
        frame = pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    names = np.array([*STATUSES["verdicts"], ""])[state.verdicts.status[positions]]
    return frame.rename({"status": "response_status"}).with_columns(
        pl.Series("verdict_status", [name or None for name in names], dtype=pl.String),
        pl.Series("score", state.verdicts.score[positions]).fill_nan(None),
        pl.Series("kept", state.exportable()[positions]),
        pl.Series("left_out", _left_out(state)[positions].tolist(), dtype=pl.String),
    )


BY_SCORE = "by its score"


def _left_out(state: TraitState) -> np.ndarray:
    """Return why each scored response is not kept, in the plan's order; None for the others."""
    found = np.full(len(state.plan), None, object)
    scored = state.verdicts.having("scored") & ~state.exportable()
    found[scored] = "its twin is not kept (paired)"
    # The first reason is the one that is said, so it is written last.
    for mask, reason in (
        (state.unpoolable(), "nothing to pool"),
        (state.capture_failed(), "its capture failed"),
        (~state.coherent(), "for its coherence"),
        (~state.passing_alone(), BY_SCORE),
    ):
        found[mask & scored] = reason
    return found


def says_yes(row: Mapping[str, Any]) -> bool:
    """Return whether the judge finds the trait in a scored row of `audit_table`: a score at its
    side's threshold or above."""
    passes = row["kept"] or row["left_out"] != BY_SCORE
    return bool(passes == (row["polarity"] == "pos"))


def text_mark(text: str) -> str:
    """Return 16 hex digits of a response's text, by which a mark is known to be of that text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


COLUMNS = ("sample_id", "polarity", "score", "mark")
"""Of a file of marks. Beside them the page writes `said`, what the judge's score meant when it was
marked (yes, no), and `text`, the text's `text_mark`."""
_MARKS = {"right": True, "wrong": False}
_SAID = {"yes": True, "no": False}


@dataclass(frozen=True, slots=True)
class Agreement:
    """What marks amount to. A judge says yes to a response at or above its side's threshold; a
    person who marks that wrong says the other. What a person said stays, whatever threshold the
    judge's scores are read by later."""

    n: int
    """Marks that count."""
    wrong: int
    """Of them, where the person says that the judge is wrong."""
    share: Estimate
    """Of marks where both agree."""
    kappa: Estimate | None
    """Cohen's; None where the judge or the person said only yes, or only no."""
    outdated: int
    """Marks of scores or texts that are no longer the response's: they do not count."""
    rejected: tuple[str, ...] = ()
    """Ids of responses that the judge rejected and got wrong."""
    passed: tuple[str, ...] = ()
    """Ids of responses that passed the judge and that it got wrong, kept or not."""


def read_agreement(folder: TraitFolder | Path, marks: Path) -> Agreement:
    """Return how far the marks of a CSV file and the judge of a trait's files agree.

    Raise UsageError for a file that holds no such marks, or none of this trait.
    """
    if not isinstance(folder, TraitFolder):
        folder = TraitFolder(folder)
    known = {row["sample_id"]: row for row in audit_table(folder).iter_rows(named=True)}
    wrong: list[dict[str, Any]] = []
    judge, person, outdated = [], [], 0
    for mark in _read(marks):
        row = known.get(mark["sample_id"])
        if row is None:
            raise UsageError(f"{marks}: {mark['sample_id'][:40]!r} is no response of {folder.path}")
        if not _is_of(mark, row):
            outdated += 1
            continue
        judge.append(says_yes(row))
        person.append(_SAID.get(mark.get("said") or "", judge[-1]) == _MARKS[mark["mark"]])
        if judge[-1] != person[-1]:
            wrong.append(row)
    if not judge:
        raise UsageError(
            f"{marks} holds no mark that counts ({outdated} are of scores or texts that changed "
            "since): mark responses on the page, save the marks, and name that file"
        )
    first, second = np.array(judge), np.array(person)
    agree = float(np.mean(first == second))
    return Agreement(
        n=len(first),
        wrong=int((first != second).sum()),
        share=Estimate(agree, *wilson(agree, len(first))),
        kappa=cohens_kappa(first, second),
        outdated=outdated,
        rejected=tuple(row["sample_id"] for row in wrong if row["left_out"] == BY_SCORE),
        passed=tuple(row["sample_id"] for row in wrong if row["left_out"] != BY_SCORE),
    )


def _is_of(mark: dict[str, str], row: Mapping[str, Any]) -> bool:
    """Return whether a mark is of a row as it is now. Scores are saved as the page shows them."""
    if row["score"] is None or not np.isclose(row["score"], float(mark["score"]), atol=0.005):
        return False
    return mark.get("text") in (None, "", text_mark(row["response"]))


def _read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file of marks, checked. Raise UsageError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
            names = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as a CSV of marks: {error}") from None
    lacking = [name for name in COLUMNS if name not in names]
    if lacking:
        raise UsageError(f"{path} has no column {', '.join(lacking)}: save it from responses.html")
    for number, row in enumerate(rows, 2):
        try:
            float(row["score"] or "")
            known = row["mark"] in _MARKS and row["polarity"] in ("pos", "neg") and row["sample_id"]
            known = known and (row.get("said") or "yes") in _SAID
        except (TypeError, ValueError):
            known = False
        if not known:
            raise UsageError(
                f"{path}, line {number}: a mark is right or wrong, beside a sample's id, a number "
                "as score and a side (pos, neg)"
            )
    seen = [row["sample_id"] for row in rows]
    if len(set(seen)) < len(seen):
        raise UsageError(f"{path} marks a response twice")
    return rows
