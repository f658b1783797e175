"""A trait's records: what is done, and reading back what is stored.

The parts are the truth. A key may have several rows (a failed try and its repeat): the first row that is not
`failed` counts, else the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..records import Response
from ..traits.plan import PlanTable
from .parts import Parts, ids_of
from .schemas import RESPONSE_SCHEMA, STATUSES, Kind, response_of

_READ_CHUNK = 256
PENDING = -1


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """Which stored row counts for each planned sample. All arrays are `[n_planned]`."""

    kind: Kind
    paths: list[Path]
    status: np.ndarray
    """int8: PENDING or an index into the kind's statuses."""
    part: np.ndarray
    row: np.ndarray
    score: np.ndarray
    """float64, NaN where there is none (verdicts only)."""

    def add(
        self,
        path: Path,
        rows: np.ndarray,
        positions: np.ndarray,
        statuses: Sequence[str],
        scores: Sequence[float | None] = (),
    ) -> None:
        """Note a part just appended, whose row `rows[i]` belongs to the sample at `positions[i]`."""
        counts = np.isin(self.status[positions], (PENDING, STATUSES[self.kind].index("failed")))
        where = positions[counts]
        self.status[where] = np.array(
            [STATUSES[self.kind].index(status) for status in statuses], np.int8
        )[counts]
        self.part[where], self.row[where] = len(self.paths), rows[counts]
        if scores:
            self.score[where] = np.array(scores, float)[counts]
        self.paths.append(path)

    def having(self, *statuses: str) -> np.ndarray:
        """bool [n_planned]: samples whose row has one of the statuses."""
        codes = [STATUSES[self.kind].index(status) for status in statuses]
        return np.isin(self.status, codes)

    def counts(self) -> dict[str, int]:
        """Samples by status, `pending` first."""
        names = ("pending", *STATUSES[self.kind])
        return {name: int((self.status == code - 1).sum()) for code, name in enumerate(names)}


class Store:
    """The records of one trait in its parts."""

    def __init__(self, folder: Path, notice: Callable[[str], None] = lambda _: None) -> None:
        self.parts = Parts(folder, notice)

    def index(self, kind: Kind, plan: PlanTable, **key: str) -> Index:
        """Which row counts for each planned sample. `key` picks a verdict set (judge_key=) or an activation set
        (capture_key=, pool=)."""
        while True:
            try:
                return self._index(kind, plan, key)
            except FileNotFoundError:  # merged by a run at work since the parts were listed
                continue

    def _index(self, kind: Kind, plan: PlanTable, key: Mapping[str, str]) -> Index:
        n = len(plan)
        out = Index(
            kind=kind,
            paths=[],
            status=np.full(n, PENDING, np.int8),
            part=np.zeros(n, np.int32),
            row=np.zeros(n, np.int32),
            score=np.full(n, np.nan),
        )
        columns = ["sample_id", "status", *key, *(["score"] if kind == "verdicts" else [])]
        names = pa.array(STATUSES[kind])
        failed = STATUSES[kind].index("failed")
        for path, table in self.parts.read(kind, columns):
            wanted = np.ones(table.num_rows, bool)
            for name, value in key.items():
                wanted &= pc.equal(table[name], value).to_numpy()
            position = plan.positions(ids_of(table))
            status = pc.index_in(table["status"], names).to_numpy()
            score = table["score"].to_numpy() if kind == "verdicts" else None
            for good in (True, False):
                rows = np.flatnonzero(wanted & (position >= 0) & ((status != failed) == good))
                taken = out.status[position[rows]]
                rows = rows[(taken == PENDING) | ((taken == failed) & good)]
                where, first = np.unique(position[rows], return_index=True)
                rows = rows[first]
                out.status[where], out.part[where], out.row[where] = (
                    status[rows],
                    len(out.paths),
                    rows,
                )
                if score is not None:
                    out.score[where] = score[rows]
            out.paths.append(path)
        return out

    def columns(self, kind: Kind, columns: Sequence[str]) -> list[pa.Table]:
        """Some columns of all rows stored, repeats and other sets included. Raises ResourceError as `tables` does."""
        while True:
            try:
                return [table for _, table in self.parts.read(kind, columns, whole=True)]
            except FileNotFoundError:  # as above
                continue

    def tables(
        self, index: Index, positions: np.ndarray, columns: Sequence[str]
    ) -> Iterator[pa.Table]:
        """The rows of `positions`, in that order, a few hundred at a time.

        Raises ResourceError when a part's data is damaged; the part is moved aside, so the next run repeats it.
        """
        for start in range(0, len(positions), _READ_CHUNK):
            block = positions[start : start + _READ_CHUNK]
            pieces, slots = [], []
            for part in np.unique(index.part[block]):
                slot = np.flatnonzero(index.part[block] == part)
                pieces.append(self.parts.take(index.paths[part], index.row[block][slot], columns))
                slots.append(slot)
            yield pa.concat_tables(pieces).take(np.argsort(np.concatenate(slots)))

    def responses(self, trait: str, index: Index, positions: np.ndarray) -> Iterator[Response]:
        """The stored responses of `positions`, in that order."""
        for table in self.tables(index, positions, RESPONSE_SCHEMA.names):
            for row in table.to_pylist():
                yield response_of(trait, row)
