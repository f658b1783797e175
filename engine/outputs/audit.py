"""Every response with its verdict as one table, for reading by eye."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ..errors import UsageError
from ..storage import STATUSES, Selection, TraitFolder, TraitState, load_state
from .export import require_captured

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
    if selection is None or not selection.digest or selection.rows != state.n_rows():
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
        pl.Series("kept", state.passing()[positions]),
    )
