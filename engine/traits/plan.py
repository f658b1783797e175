"""The planned samples of a trait as columns: what is to be done, in order, at 50 bytes a sample.

The table is kept beside the records, so that neither a finished run started again nor an export has to load a
tokenizer to know which samples belong to the run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ..files import atomic_file
from ..records import POLARITIES, Polarity, Sample
from ..settings import Sampling
from .definition import Trait, build_prompt, expand

_COLUMNS = ("polarity", "instruction_index", "question_index", "rollout", "seed")


@dataclass(frozen=True, slots=True, eq=False)
class PlanTable:
    """Columns over the planned samples, in plan order (polarity, instruction, k)."""

    ids: np.ndarray
    """`S32` [n]: sample ids as hex."""
    polarity: np.ndarray
    """int8 [n]: index into POLARITIES."""
    instruction_index: np.ndarray
    question_index: np.ndarray
    rollout: np.ndarray
    seed: np.ndarray
    _sorted: np.ndarray = field(init=False, repr=False)
    """int64 [n]: positions in the order of their ids."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sorted", np.argsort(self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    def positions(self, ids: np.ndarray) -> np.ndarray:
        """int64 [len(ids)]: where each id stands in the plan, -1 for ids outside it."""
        if not len(self.ids):
            return np.full(len(ids), -1, dtype=np.int64)
        found = np.searchsorted(self.ids, ids, sorter=self._sorted)
        candidates = self._sorted[np.minimum(found, len(self) - 1)]
        return np.where(self.ids[candidates] == ids, candidates, -1)

    def sample(
        self, position: int, trait: Trait, tokenize: Callable[[str], tuple[int, ...]]
    ) -> Sample:
        """The sample at a position; `tokenize` is called with its prompt."""
        polarity = POLARITIES[self.polarity[position]]
        instruction_index, question_index = (
            int(self.instruction_index[position]),
            int(self.question_index[position]),
        )
        instruction, question = (
            trait.instruction(polarity, instruction_index),
            trait.questions[question_index],
        )
        prompt = build_prompt(instruction, question)
        return Sample(
            trait=trait.name,
            id=self.ids[position].decode(),
            polarity=polarity,
            instruction_index=instruction_index,
            question_index=question_index,
            rollout=int(self.rollout[position]),
            instruction=instruction,
            question=question,
            prompt=prompt,
            prompt_token_ids=tokenize(prompt),
            seed=int(self.seed[position]),
        )


def plan_key(trait: Trait, n_planned: Mapping[Polarity, int], sampling: Sampling) -> str:
    """Hash of all that decides the plan; a stored plan with the same key is the plan."""
    content = [trait.instructions, trait.questions, dict(n_planned), asdict(sampling)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def make_plan(
    trait: Trait,
    n_planned: Mapping[Polarity, int],
    sampling: Sampling,
    tokenize: Callable[[str], tuple[int, ...]],
) -> PlanTable:
    """Expand a trait into its plan."""
    total = sum(n_planned.values())
    ids = np.empty(total, dtype="S32")
    columns = {
        name: np.empty(total, dtype=np.int64 if name == "seed" else np.int32) for name in _COLUMNS
    }
    for position, sample in enumerate(expand(trait, n_planned, sampling, tokenize)):
        ids[position] = sample.id.encode()
        columns["polarity"][position] = POLARITIES.index(sample.polarity)
        for name in _COLUMNS[1:]:
            columns[name][position] = getattr(sample, name)
    return PlanTable(ids=ids, **columns)


def plan_path(folder: Path, key: str) -> Path:
    """Each plan has a file of its own, so that a manifest never names one plan and finds another."""
    return folder / "parquet" / f"plan-{key}.parquet"


def save_plan(folder: Path, key: str, plan: PlanTable) -> None:
    """Write a plan into a trait's folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"sample_id": pa.array(plan.ids.astype("U32"), pa.string())}
    columns |= {name: pa.array(getattr(plan, name)) for name in _COLUMNS}
    with atomic_file(plan_path(folder, key)) as file:
        pq.write_table(pa.table(columns), file, write_page_checksum=True)


def load_plan(folder: Path, key: str) -> PlanTable | None:
    """A stored plan; None when there is none or it cannot be read (it can be made again)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = plan_path(folder, key)
    if not path.exists():
        return None
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(columns=["sample_id", *_COLUMNS])
        return PlanTable(
            ids=np.asarray(table["sample_id"].to_numpy(), dtype="S32"),
            **{name: table[name].to_numpy() for name in _COLUMNS},
        )
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None
