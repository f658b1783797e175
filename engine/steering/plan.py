"""The planned responses of a study: ids and seeds that hang on what is added, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..generation import Shift
from ..records import Sample
from ..settings import Sampling
from ..traits import Plan, Tokenize, Trait
from .conditions import PROMPT, RANDOM, UNSTEERED, Condition, Target, digest, random_vectors

_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Vectors:
    """The vectors of a study, by the number that the engine knows them by."""

    targets: tuple[Target, ...]
    n_random: int

    def numbered(self) -> list[tuple[int, np.ndarray]]:
        """Return (layer, vector), float32 `[hidden_dim]`: the targets, then the random ones."""
        found = [(target.layer, target.vector) for target in self.targets]
        for layer in self._layers:
            norm, dim = self._norm(layer)
            found += [(layer, each) for each in random_vectors(norm, dim, layer, self.n_random)]
        return found

    def number(self, condition: Condition, k: int) -> int:
        """Return which vector the k-th response of a condition is steered by."""
        if condition.method != RANDOM:
            places = [(target.method, target.layer) for target in self.targets]
            return places.index((condition.method, condition.layer))
        before = self._layers.index(condition.layer) * self.n_random
        return len(self.targets) + before + k % self.n_random

    @property
    def _layers(self) -> list[int]:
        return sorted({target.layer for target in self.targets})

    def _norm(self, layer: int) -> tuple[float, int]:
        target = next(target for target in self.targets if target.layer == layer)
        return target.norm, len(target.vector)


@dataclass(frozen=True, eq=False)
class StudyPlan(Plan):
    """Columns over the planned responses, in the order of the conditions.

    `instruction_index` is the condition. The k-th response of each condition asks question k mod
    their number, so that conditions are compared on the same questions.
    """

    conditions: tuple[Condition, ...]
    k: np.ndarray
    """int `[n]`: which of its condition's responses each is."""

    def condition(self, position: int) -> Condition:
        return self.conditions[int(self.instruction_index[position])]

    def of(self, condition: Condition) -> np.ndarray:
        """Return the positions of a condition's responses, int `[n]`."""
        return np.flatnonzero(self.instruction_index == self.conditions.index(condition))

    def sample(self, position: int, trait: Trait, tokenize: Tokenize) -> Sample:
        """Return the sample at a position."""
        question = trait.questions[int(self.question_index[position])]
        instruction = instruction_of(self.condition(position), trait, int(self.k[position]))
        return Sample(
            trait=trait.name,
            id=self.ids[position].decode(),
            polarity="pos",
            instruction_index=int(self.instruction_index[position]),
            question_index=int(self.question_index[position]),
            rollout=int(self.rollout[position]),
            instruction=instruction,
            question=question,
            prompt=f"{instruction}\n\n{question}" if instruction else question,
            prompt_token_ids=tokenize(instruction, question),
            seed=int(self.seed[position]),
        )


def instruction_of(condition: Condition, trait: Trait, k: int) -> str:
    """Return what stands before the question: a pos instruction where there is one to follow."""
    if condition.kind not in ("prompt", "ablated"):
        return ""
    return trait.asked("pos", k % len(trait.instructions), 0)[0]


def make_plan(
    trait: Trait,
    conditions: Sequence[Condition],
    vectors: Vectors,
    n_examples: int,
    sampling: Sampling,
    tokenize: Tokenize,
) -> StudyPlan:
    """Plan `n_examples` responses of each condition.

    An id is of all that decides a response but chance: prompt, vector, what is added and where, and
    the sampling. So other coefficients, or questions, find what is stored of the same.
    """
    by_number = [[layer, digest(v.tolist()).hex()] for layer, v in vectors.numbered()]
    how = [
        sampling.model,
        sampling.revision,
        sampling.dtype,
        float(sampling.temperature),
        float(sampling.top_p),
        sampling.top_k,
        sampling.max_new_tokens,
        sampling.seed,
        sampling.max_thinking_tokens,
        sampling.adapter,
        sampling.adapter_revision,
    ]
    rows: list[tuple[bytes, int, int, int, int, int]] = []
    for index, condition in enumerate(conditions):
        for k in range(n_examples):
            rollout, question = divmod(k, len(trait.questions))
            ids = tokenize(instruction_of(condition, trait, k), trait.questions[question])
            content: list[object] = [condition.kind, list(ids), k, how]
            if condition not in (UNSTEERED, PROMPT):
                vector = by_number[vectors.number(condition, k)]
                content += [vector, condition.coefficient, condition.positions]
            found = digest(content)
            seed = int.from_bytes(found[:8], "big") & _LARGEST_SEED
            rows.append((found[:16].hex().encode(), index, question, rollout, seed, k))
    ids_, index_, question_, rollout_, seed_, k_ = (
        np.array(each) for each in zip(*rows, strict=True)
    )
    return StudyPlan(
        key="steering",
        ids=ids_.astype("S32"),
        polarity=np.zeros(len(rows), np.int32),
        instruction_index=index_.astype(np.int32),
        question_index=question_.astype(np.int32),
        rollout=rollout_.astype(np.int32),
        seed=seed_.astype(np.int64),
        conditions=tuple(conditions),
        k=k_,
    )


def shift_of(plan: StudyPlan, vectors: Vectors, sample: Sample) -> Shift | None:
    """Return what a planned sample is generated under; None is nothing."""
    condition = plan.conditions[sample.instruction_index]
    if condition.kind in ("unsteered", "prompt"):
        return None
    [position] = plan.positions(np.array([sample.id], "S32"))
    k = int(plan.k[position])
    return shift_at(vectors, condition, k, len(sample.prompt_token_ids))


def shift_at(vectors: Vectors, condition: Condition, k: int, n_prompt: int) -> Shift | None:
    """Return what the k-th response of a condition is generated under, after so long a prompt."""
    if condition.kind in ("unsteered", "prompt"):
        return None
    first, end = {"response": (n_prompt, None), "prompt": (0, n_prompt), "all": (0, None)}[
        condition.positions or "all"
    ]
    ablates = condition.kind == "ablated"
    return Shift(vectors.number(condition, k), condition.coefficient, first, end, ablates)
