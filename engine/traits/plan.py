"""The planned samples of a trait: ids, seeds and order, as columns at 56 bytes a sample.

The plan is stored beside the records, so that neither a finished run started again nor an export
has to load a tokenizer to know which samples belong to the run.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from ..files import atomic_file
from ..records import POLARITIES, Polarity, Sample
from ..settings import Sampling
from .definition import Trait, build_prompt

Counts = Mapping[Polarity, int]
Tokenize = Callable[[str, str], tuple[int, ...]]
"""From instruction and question to the token ids of a prompt."""
_LATER = {
    "prompt_format": "user",
    "system_prompt": None,
    "prefill": "",
    "thinking": "template",
    "max_thinking_tokens": 0,
    "adapter": "",
    "adapter_revision": "",
    "chat_template_kwargs": "",
}
"""Settings that came later, by what was done before: a plan made then is the plan still."""
_LARGEST_SEED = 2**63 - 1
_COLUMNS = {
    "ids": "S32",
    "polarity": "i4",
    "instruction_index": "i4",
    "question_index": "i4",
    "rollout": "i4",
    "seed": "i8",
}


@dataclass(frozen=True, eq=False)
class Plan:
    """Columns over the planned samples, in plan order (polarity, instruction, k)."""

    key: str
    """Hash of all that decides the plan."""
    ids: np.ndarray
    """`S32` [n]: sample ids as hex."""
    polarity: np.ndarray
    """int32 [n]: index into POLARITIES."""
    instruction_index: np.ndarray
    question_index: np.ndarray
    rollout: np.ndarray
    """How many earlier samples of the side share the instruction and the question."""
    seed: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def n_planned(self) -> dict[Polarity, int]:
        """Samples of each side."""
        return {
            polarity: int((self.polarity == side).sum()) for side, polarity in enumerate(POLARITIES)
        }

    @cached_property
    def twins(self) -> np.ndarray:
        """Position of each sample's twin, int64 [n], -1 where the plan lacks it.

        That is the sample of the other side with the same instruction pair, question and repeat.
        """
        shape = [int(column.max(initial=0)) + 1 for column in self._place]
        keys = np.ravel_multi_index(tuple(self._place), tuple(shape))
        found = np.full(len(self), -1)
        sides = [np.flatnonzero(self.polarity == side) for side in range(len(POLARITIES))]
        _, in_pos, in_neg = np.intersect1d(keys[sides[0]], keys[sides[1]], return_indices=True)
        pos, neg = sides[0][in_pos], sides[1][in_neg]
        found[pos], found[neg] = neg, pos
        return found

    @property
    def _place(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.instruction_index, self.question_index, self.rollout

    def place_of(self, id_: bytes) -> tuple[int, int, int]:
        """Return instruction, question and rollout of a planned sample: its row, of a smaller plan,
        may say others."""
        [position] = self.positions(np.array([id_], "S32"))
        instruction, question, rollout = (int(column[position]) for column in self._place)
        return instruction, question, rollout

    def moved(self, earlier: Plan) -> int:
        """Return how many places of both plans have an id that the other plan has nowhere.

        Where texts repeat, a larger plan may have a sample at the place of another with its prompt.
        """
        known = dict(zip(earlier._places(), earlier.ids.tolist(), strict=True))
        mine, theirs = set(self.ids.tolist()), set(earlier.ids.tolist())
        found = zip(self._places(), self.ids.tolist(), strict=True)
        return sum(
            place in known and known[place] not in mine and id_ not in theirs
            for place, id_ in found
        )

    def _places(self) -> Iterator[tuple[int, ...]]:
        columns = (self.polarity, *self._place)
        return zip(*(column.tolist() for column in columns), strict=True)

    @cached_property
    def _by_id(self) -> np.ndarray:
        """Positions in the order of their ids, int64 [n]."""
        return np.argsort(self.ids)

    def positions(self, ids: np.ndarray) -> np.ndarray:
        """Return where each id stands in the plan, int64 [len(ids)]; -1 for ids outside it."""
        found = np.searchsorted(self.ids, ids, sorter=self._by_id)
        last = len(self) - 1
        places = self._by_id[np.minimum(found, last)]
        return np.where(self.ids[places] == ids, places, -1)

    def sample(self, position: int, trait: Trait, tokenize: Tokenize) -> Sample:
        """Return the sample at a position; `tokenize` is called for its prompt."""
        polarity = POLARITIES[self.polarity[position]]
        instruction_index = int(self.instruction_index[position])
        question_index = int(self.question_index[position])
        instruction, question = trait.asked(polarity, instruction_index, question_index)
        return Sample(
            trait=trait.name,
            id=self.ids[position].decode(),
            polarity=polarity,
            instruction_index=instruction_index,
            question_index=question_index,
            rollout=int(self.rollout[position]),
            instruction=instruction,
            question=question,
            prompt=build_prompt(instruction, question),
            prompt_token_ids=tokenize(instruction, question),
            seed=int(self.seed[position]),
        )

    def save(self, path: Path) -> None:
        """Write the plan as one Parquet file; the file's metadata holds its key."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {name: pa.array(getattr(self, name)) for name in _COLUMNS}
        columns["ids"] = columns["ids"].cast(pa.string())
        table = pa.table(columns, metadata={"key": self.key})
        with atomic_file(path) as file:
            pq.write_table(table, file, write_page_checksum=True)


def load_plan(path: Path) -> Plan | None:
    """Return a stored plan; None where there is none or it is damaged (it can be made again)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(use_threads=False)
        columns = {name: np.asarray(table[name], kind) for name, kind in _COLUMNS.items()}
        return Plan(table.schema.metadata[b"key"].decode(), **columns)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None


def plan_key(trait: Trait, n_planned: Counts, sampling: Sampling) -> str:
    """Return a hash of all that decides the plan; a stored plan with the same key is the plan."""
    counts = [n_planned[polarity] for polarity in POLARITIES]
    chosen = {
        name: value
        for name, value in asdict(sampling).items()
        if name not in _LATER or value != _LATER[name]
    }
    content: list[object] = [trait.instructions, trait.questions, counts, chosen]
    if trait.assistant_name is not None:
        content.append({"assistant_name": trait.assistant_name})
    return _digest(content).hex()[:16]


def make_plan(
    trait: Trait,
    n_planned: Counts,
    sampling: Sampling,
    tokenize: Tokenize,
    *,
    thinks: bool = False,
) -> Plan:
    """Plan a trait's samples, ordered (polarity, instruction, k), question = k mod n_questions.

    A larger `n_planned` has a superset of a smaller one's ids. `tokenize` turns a prompt into token
    ids and is called once for each distinct prompt; `thinks` as `sample_id` has it.
    """
    tokenize = cache(tokenize)
    rows = []
    for side, polarity in enumerate(POLARITIES):
        earlier: Counter[tuple[int, ...]] = Counter()
        counts = counts_per_instruction(n_planned[polarity], len(trait.instructions))
        for instruction_index, count in enumerate(counts):
            for k in range(count):
                rollout, question_index = divmod(k, len(trait.questions))
                token_ids = tokenize(*trait.asked(polarity, instruction_index, question_index))
                id_, seed = sample_id(
                    polarity, token_ids, earlier[token_ids], sampling, thinks=thinks
                )
                earlier[token_ids] += 1
                rows.append((id_, side, instruction_index, question_index, rollout, seed))
    table = np.array(rows, list(_COLUMNS.items()))
    columns = {name: table[name].copy() for name in _COLUMNS}
    return Plan(plan_key(trait, n_planned, sampling), **columns)


def counts_per_instruction(n_examples: int, n_instructions: int) -> list[int]:
    """Share `n_examples` as evenly as possible; the first instructions take the remainder."""
    share, rest = divmod(n_examples, n_instructions)
    return [share + (index < rest) for index in range(n_instructions)]


def sample_id(
    polarity: Polarity,
    prompt_token_ids: Sequence[int],
    occurrence: int,
    sampling: Sampling,
    *,
    thinks: bool = False,
) -> tuple[str, int]:
    """Return a sample's id and its vLLM seed.

    The id is the first 16 bytes, as hex, of sha256 over canonical JSON of what defines the sample;
    the seed is the first 8 bytes & (2^63 - 1). `occurrence` counts earlier samples of the side with
    the same prompt ids. Where a thought is a span of its own (`thinks`), its allowance counts.
    An adapter is a part of the id, and none of the seed: a model's samples with and without have
    the same noise.
    """
    content: list[object] = [
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
    if thinks:
        content.append(["thought", sampling.max_thinking_tokens])
    digest = _digest(content)
    seed = int.from_bytes(digest[:8], "big") & _LARGEST_SEED
    if sampling.adapter:
        digest = _digest([*content, ["adapter", sampling.adapter, sampling.adapter_revision]])
    return digest[:16].hex(), seed


def _digest(content: object) -> bytes:
    """Return the sha256 of canonical JSON."""
    text = json.dumps(content, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()
