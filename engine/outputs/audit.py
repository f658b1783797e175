"""Every response with its verdict as one table, for reading by eye."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ..storage import STATUSES, TraitFolder, load_state

if TYPE_CHECKING:
    import polars as pl


def audit_table(folder: TraitFolder | Path) -> pl.DataFrame:
    """Return every generated response of the plan with its verdict, for reading by eye.

    Columns: sample_id, polarity, instruction_index, question_index, rollout, instruction,
    question, response, thought, finish_reason, response_status, verdict_status (null when
    unjudged), score (null unless scored), kept.
    """
    import polars as pl

    if not isinstance(folder, TraitFolder):
        folder = TraitFolder(folder)
    state = load_state(folder)
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
