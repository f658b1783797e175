"""Every response with its verdict as one table, for reading by eye, and how far the judge agrees
with a person's marks on them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ..errors import UsageError
from ..statistics import Estimate, cohens_kappa, wilson
from ..storage import STATUSES, Selection, TraitFolder, TraitState, load_state
from .export import digest
from .ready import require_captured

if TYPE_CHECKING:
    import polars as pl


def audit_table(folder: TraitFolder | Path) -> pl.DataFrame:
    """Return every generated response of the plan with its verdict, for reading by eye.

    Columns: sample_id, polarity, instruction_index, question_index, rollout, instruction,
    question, response, thought, finish_reason, response_status, verdict_status (null when
    unjudged), score (null unless scored), kept.
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
    )


COLUMNS = ("sample_id", "polarity", "score", "mark")
_MARKS = {"right": True, "wrong": False}


@dataclass(frozen=True, slots=True)
class Agreement:
    """What marks amount to. A judge says yes to a response at or above its side's threshold; a
    person who marks that wrong says the other."""

    n: int
    """Marks that count."""
    wrong: int
    """Of them, where the person says that the judge is wrong."""
    share: Estimate
    """Of marks where both agree."""
    kappa: Estimate | None
    """Cohen's; None where both said only yes, or only no."""
    outdated: int
    """Marks of scores that are no longer the response's: they do not count."""
    rejected: tuple[str, ...] = ()
    """Ids of responses that the judge rejected and got wrong."""
    kept: tuple[str, ...] = ()
    """Ids of kept responses that the judge got wrong."""


def read_agreement(folder: TraitFolder | Path, marks: Path) -> Agreement:
    """Return how far the marks of a CSV file and the judge of a trait's files agree.

    Raise UsageError for a file that holds no such marks, or none of this trait.
    """
    if not isinstance(folder, TraitFolder):
        folder = TraitFolder(folder)
    state = load_state(folder)
    scores = dict(zip(state.plan.ids.tolist(), state.verdicts.score.tolist(), strict=True))
    thresholds = state.choice.thresholds
    # Left out for its twin or its coherence, a response is neither kept nor rejected by the judge.
    kept = dict(zip(scores, state.passing().tolist(), strict=True))
    rejected = dict(zip(scores, (~state.passing_alone()).tolist(), strict=True))
    wrong: list[str] = []
    judge, person, outdated = [], [], 0
    for row in _read(marks):
        score = scores.get(row["sample_id"].encode())
        if score is None:
            raise UsageError(f"{marks}: {row['sample_id'][:40]!r} is no response of {folder.path}")
        # Saved as the page shows it: what differs was judged anew since.
        if not np.isclose(score, float(row["score"]), atol=0.005):
            outdated += 1
            continue
        side: object = row["polarity"]
        yes = score >= thresholds["pos" if side == "pos" else "neg"]
        judge.append(yes)
        person.append(yes == _MARKS[row["mark"]])
        if judge[-1] != person[-1]:
            wrong.append(row["sample_id"])
    if not judge:
        raise UsageError(
            f"{marks} holds no mark that counts ({outdated} are of scores that changed since): "
            "mark responses on the page, save the marks, and name that file"
        )
    first, second = np.array(judge), np.array(person)
    agree = float(np.mean(first == second))
    return Agreement(
        n=len(first),
        wrong=int((first != second).sum()),
        share=Estimate(agree, *wilson(agree, len(first))),
        kappa=cohens_kappa(first, second),
        outdated=outdated,
        rejected=tuple(each for each in wrong if rejected[each.encode()]),
        kept=tuple(each for each in wrong if kept[each.encode()]),
    )


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
