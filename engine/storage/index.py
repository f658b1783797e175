"""Which stored row counts for each planned sample, and reading it back.

The parts are the truth. A sample may have several rows (a failed try and its repeat): the first
row that is not `failed` counts, else the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..records import MOST_TRIES, REFUSED_TEXT, TEXT_ALONE
from ..traits import Plan
from .parts import PartSet, ids_of
from .schemas import STATUSES, Kind

_READ_CHUNK = 256
PENDING = -1
MODES = ("integer", "expected", "local_relative")
COUNTED = ("attempts", "input_tokens", "output_tokens", "hidden_tokens")
_FACTS: dict[Kind, dict[str, type]] = {
    "responses": {"cut_off": bool},
    "verdicts": {
        "score": float,
        "mode": np.int8,
        "tries": np.int32,
        **dict.fromkeys(COUNTED, np.int32),
    },
    "activations": {},
}
"""What an index holds of each row beside its status; other columns are read when they are needed.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """Which row of a record set counts for each planned sample. All arrays are `[n_planned]`."""

    kind: Kind
    paths: list[Path]
    status: np.ndarray
    """int8: PENDING or an index into the kind's statuses."""
    part: np.ndarray
    row: np.ndarray
    facts: dict[str, np.ndarray] = field(default_factory=dict)
    """responses: `cut_off`; verdicts: `score` (NaN where there is none), `mode`, tokens, `tries`.
    """

    @property
    def score(self) -> np.ndarray:
        return self.facts["score"]

    def add(
        self,
        path: Path,
        rows: np.ndarray,
        positions: np.ndarray,
        statuses: np.ndarray,
        facts: Mapping[str, np.ndarray],
    ) -> None:
        """Note rows of a part: `rows[i]` is of the sample at `positions[i]`, -1 for none."""
        failed = STATUSES[self.kind].index("failed")
        for good in (True, False):
            chosen = np.flatnonzero((positions >= 0) & ((statuses != failed) == good))
            taken = self.status[positions[chosen]]
            chosen = chosen[(taken == PENDING) | ((taken == failed) & good)]
            where, first = np.unique(positions[chosen], return_index=True)
            chosen = chosen[first]
            self.status[where] = statuses[chosen]
            self.part[where], self.row[where] = len(self.paths), rows[chosen]
            for name, values in facts.items():
                self.facts[name][where] = values[chosen]
        self.paths.append(path)

    def having(self, *statuses: str) -> np.ndarray:
        """Return a mask of the samples whose row has one of the statuses."""
        codes = [STATUSES[self.kind].index(status) for status in statuses]
        return np.isin(self.status, codes)

    def given_up(self) -> np.ndarray:
        """Return a mask of the samples whose verdict failed so that it is not asked for again."""
        return np.asarray(self.having("failed") & (self.facts["tries"] >= MOST_TRIES))

    def pending(self) -> np.ndarray:
        """Return a mask of the samples without a row."""
        return np.asarray(self.status == PENDING)

    def tables(
        self, parts: PartSet, positions: np.ndarray, columns: Sequence[str]
    ) -> Iterator[pa.Table]:
        """Yield the rows of `positions`, in that order, a few hundred at a time.

        Raise ResourceError when a part's data is damaged.
        """
        for start in range(0, len(positions), _READ_CHUNK):
            block = positions[start : start + _READ_CHUNK]
            pieces, slots = [], []
            for part in np.unique(self.part[block]):
                slot = np.flatnonzero(self.part[block] == part)
                pieces.append(parts.take(self.paths[part], self.row[block][slot], columns))
                slots.append(slot)
            yield pa.concat_tables(pieces).take(np.argsort(np.concatenate(slots)))


def empty_index(kind: Kind, n: int) -> Index:
    """Return an index in which every sample is pending."""
    facts: dict[str, np.ndarray] = {
        name: np.zeros(n, dtype) for name, dtype in _FACTS[kind].items()
    }
    if "score" in facts:
        facts["score"][:] = np.nan
    return Index(
        kind=kind,
        paths=[],
        status=np.full(n, PENDING, np.int8),
        part=np.zeros(n, np.int32),
        row=np.zeros(n, np.int32),
        facts=facts,
    )


def build_index(parts: PartSet, plan: Plan, pool: str | None = None) -> Index:
    """Return which row counts for each planned sample; `pool` picks a pool of an activation set."""
    while True:
        index = empty_index(parts.kind, len(plan))
        try:
            for path, table in parts.read(_columns(parts.kind)):
                rows = np.arange(table.num_rows)
                if pool is not None:
                    rows = rows[pc.equal(table["pool"], pool).to_numpy()]
                note(index, plan, path, table.take(rows), rows)
        except FileNotFoundError:  # merged by a run at work since the parts were listed
            continue
        return index


def _columns(kind: Kind) -> list[str]:
    own = {
        "responses": ["finish_reason"],
        "verdicts": ["score", "mode", "error", *COUNTED],
        "activations": ["pool"],
    }
    return ["sample_id", "status", *own[kind]]


def note(index: Index, plan: Plan, path: Path, table: pa.Table, rows: np.ndarray) -> None:
    """Add rows of a part to an index; `table` holds them, `rows` are their numbers in the part."""
    statuses = pc.index_in(table["status"], pa.array(STATUSES[index.kind])).to_numpy()
    facts: dict[str, np.ndarray] = {}
    if index.kind == "responses":
        facts["cut_off"] = pc.equal(table["finish_reason"], "length").to_numpy()
    elif index.kind == "verdicts":
        facts = {name: table[name].to_numpy() for name in ("score", *COUNTED)}
        facts["mode"] = pc.index_in(table["mode"], pa.array(MODES)).to_numpy()
    positions = plan.positions(ids_of(table))
    index.add(path, rows, positions, statuses, facts)
    if index.kind == "verdicts":
        known = positions >= 0
        np.add.at(index.facts["tries"], positions[known], _tries(table)[known])


def _tries(table: pa.Table) -> np.ndarray:
    """Return how far each verdict's failure goes towards giving up."""
    error = pc.fill_null(table["error"], "")
    alone = pc.starts_with(error, TEXT_ALONE).to_numpy()
    return np.where(pc.starts_with(error, REFUSED_TEXT).to_numpy(), MOST_TRIES, alone)
