"""The planned samples of a trait: ids, seeds and order, as columns at 50 bytes a sample.

The plan is stored beside the records, so that neither a finished run started again nor an export
has to load a tokenizer to know which samples belong to the run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ..files import atomic_file
from ..records import POLARITIES, Polarity, Sample
from ..settings import Sampling
from .definition import Trait, build_prompt

_COLUMNS = ("polarity", "instruction_index", "question_index", "rollout", "seed")
Tokenize = Callable[[str], tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Columns over the planned samples, in plan order (polarity, instruction, k)."""

    key: str
    """Hash of all that decides the plan."""
    n_planned: dict[Polarity, int]
    """Samples of each side."""
    ids: np.ndarray
    """`S32` [n]: sample ids as hex."""
    polarity: np.ndarray
    """int32 [n]: index into POLARITIES."""
    instruction_index: np.ndarray
    question_index: np.ndarray
    rollout: np.ndarray
    """How many earlier samples of the side share the instruction and the question."""
    seed: np.ndarray
    _sorted: np.ndarray = field(init=False, repr=False)
    """int64 [n]: positions in the order of their ids."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sorted", np.argsort(self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    def positions(self, ids: np.ndarray) -> np.ndarray:
        """Return where each id stands in the plan, int64 [len(ids)]; -1 for ids outside it."""
        if not len(self.ids):
            return np.full(len(ids), -1, dtype=np.int64)
        found = np.searchsorted(self.ids, ids, sorter=self._sorted)
        candidates = self._sorted[np.minimum(found, len(self) - 1)]
        return np.where(self.ids[candidates] == ids, candidates, -1)

    def sample(self, position: int, trait: Trait, tokenize: Tokenize) -> Sample:
        """Return the sample at a position; `tokenize` is called with its prompt."""
        polarity = POLARITIES[self.polarity[position]]
        instruction_index = int(self.instruction_index[position])
        question_index = int(self.question_index[position])
        instruction = trait.instruction(polarity, instruction_index)
        question = trait.questions[question_index]
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

    def save(self, path: Path) -> None:
        """Write the plan as one Parquet file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {"sample_id": pa.array(self.ids.astype("U32"), pa.string())}
        columns |= {name: pa.array(getattr(self, name)) for name in _COLUMNS}
        table = pa.table(columns).replace_schema_metadata(
            {"key": self.key, "n_planned": json.dumps(self.n_planned)}
        )
        with atomic_file(path) as file:
            pq.write_table(table, file, write_page_checksum=True)


def load_plan(path: Path) -> Plan | None:
    """Return a stored plan; None when there is none or it cannot be read (it can be made again)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(columns=["sample_id", *_COLUMNS])
        facts = table.schema.metadata
        return Plan(
            key=facts[b"key"].decode(),
            n_planned=json.loads(facts[b"n_planned"]),
            ids=np.asarray(table["sample_id"].to_numpy(), dtype="S32"),
            **{name: table[name].to_numpy() for name in _COLUMNS},
        )
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None


def plan_key(trait: Trait, n_planned: Mapping[Polarity, int], sampling: Sampling) -> str:
    """Return a hash of all that decides the plan; a stored plan with the same key is the plan."""
    content = [trait.instructions, trait.questions, dict(n_planned), asdict(sampling)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def make_plan(
    trait: Trait, n_planned: Mapping[Polarity, int], sampling: Sampling, tokenize: Tokenize
) -> Plan:
    """Plan a trait's samples, ordered (polarity, instruction, k), question = k mod n_questions.

    A larger `n_planned` has a superset of a smaller one's ids. `tokenize` turns a prompt into token
    ids and is called once for each distinct prompt.
    """
    ids: list[bytes] = []
    rows: list[tuple[int, int, int, int, int]] = []
    tokens: dict[str, tuple[int, ...]] = {}
    for side, polarity in enumerate(POLARITIES):
        seen: dict[tuple[int, ...], int] = {}
        counts = counts_per_instruction(n_planned[polarity], len(trait.instructions))
        for instruction_index, count in enumerate(counts):
            instruction = trait.instruction(polarity, instruction_index)
            for k in range(count):
                rollout, question_index = divmod(k, len(trait.questions))
                prompt = build_prompt(instruction, trait.questions[question_index])
                if prompt not in tokens:
                    tokens[prompt] = tokenize(prompt)
                occurrence = seen.get(tokens[prompt], 0)
                seen[tokens[prompt]] = occurrence + 1
                id_, seed = sample_id(polarity, tokens[prompt], occurrence, sampling)
                ids.append(id_.encode())
                rows.append((side, instruction_index, question_index, rollout, seed))
    columns = np.array(rows, np.int64).reshape(len(rows), len(_COLUMNS)).T
    named = dict(zip(_COLUMNS, columns, strict=True))
    whole = {name: values.astype(np.int32) for name, values in named.items() if name != "seed"}
    return Plan(
        key=plan_key(trait, n_planned, sampling),
        n_planned=dict(n_planned),
        ids=np.array(ids, "S32"),
        seed=named["seed"],
        **whole,
    )


def counts_per_instruction(n_examples: int, n_instructions: int) -> list[int]:
    """Share `n_examples` as evenly as possible; the first instructions take the remainder."""
    share, rest = divmod(n_examples, n_instructions)
    return [share + (index < rest) for index in range(n_instructions)]


def sample_id(
    polarity: Polarity, prompt_token_ids: Sequence[int], occurrence: int, sampling: Sampling
) -> tuple[str, int]:
    """Return a sample's id and its vLLM seed.

    The id is the first 16 bytes, as hex, of sha256 over canonical JSON of what defines the sample;
    the seed is the first 8 bytes & (2^63 - 1). `occurrence` counts earlier samples of the side with
    the same prompt ids.
    """
    content = [
        polarity,
        list(prompt_token_ids),
        occurrence,
        sampling.model,
        sampling.revision,
        float(sampling.temperature),
        float(sampling.top_p),
        sampling.top_k,
        sampling.max_new_tokens,
        sampling.seed,
    ]
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True)
    digest = hashlib.sha256(text.encode()).digest()
    return digest[:16].hex(), int.from_bytes(digest[:8], "big") & (2**63 - 1)
