"""The samples of a trait: the same ids and seeds as ever, in the same order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from traitmill.engine.records import POLARITIES
from traitmill.engine.settings import Sampling
from traitmill.engine.traits import Plan, Trait, load_plan, make_plan, parse_definition

SAMPLING = Sampling(model="org/model", revision="abc123")
# Every second sample: side, instruction, question, rollout, id, seed; as version 0.1 made them.
PINNED = [
    ("pos", 0, 0, 0, "7a218f1fa7c4a82f56eed278a02b0cb9", 8800472512980101167),
    ("pos", 0, 0, 1, "cdd0adf0cf83e17b9a23e7aeb23a1ceb", 5607172785861550459),
    ("pos", 1, 1, 0, "6a5b2005d6db642b0b49506ca8797046", 7663754400352658475),
    ("pos", 2, 0, 0, "138705fef121bfec47eb39948ec21f5b", 1407100001101922284),
    ("neg", 0, 0, 0, "254967640e509f95156965d349f147fa", 2686792332137766805),
    ("neg", 1, 0, 0, "90f241d759d5c1066ca41e756cc84aec", 1221110842151780614),
    ("neg", 2, 0, 0, "4dc9199a3472ee71aa91f8726127db3d", 5605039361334898289),
]
PINNED_OTHER = [
    ("pos", 0, 0, 0, "02c8aaae3b007185aeb551da631ddd28", 200597848708903301),
    ("pos", 0, 0, 1, "2ea1fc0a60918b90340498f70ef1ccc0", 3360243918495124368),
    ("pos", 1, 1, 0, "441f5654232406f204a2713f95b3a315", 4908737038223935218),
    ("pos", 2, 0, 0, "c30fe7560d16944fffd9587ed99ff152", 4832335281964618831),
    ("neg", 0, 0, 0, "a645e8a20d1269c85b1a91432244b97c", 2757866129535953352),
    ("neg", 1, 0, 0, "19f0a7315b0d61da8a489a79c311503c", 1869177675781595610),
    ("neg", 2, 0, 0, "e6e5392cf0f884af99a631105da84011", 7414395226719552687),
]


def trait(n_questions: int = 2) -> Trait:
    content = {
        "instruction": [
            {"pos": "Be kind.", "neg": "Be curt."},
            {"pos": "Help.", "neg": "Do not help."},
            {"pos": "Be kind.", "neg": "Refuse."},
        ],
        "questions": ["What is fire?", "And rain?", "And snow?"][:n_questions],
        "eval_prompt": "{question}{answer}",
    }
    return parse_definition("t", json.dumps(content).encode(), "p")


def tokenize(prompt: str) -> tuple[int, ...]:
    return tuple(prompt.encode())


def plan(sampling: Sampling = SAMPLING, pos: int = 8, neg: int = 5, n_questions: int = 2) -> Plan:
    return make_plan(trait(n_questions), {"pos": pos, "neg": neg}, sampling, tokenize)


@pytest.mark.parametrize(
    ("sampling", "pinned"),
    [(SAMPLING, PINNED), (replace(SAMPLING, temperature=1.0, seed=7), PINNED_OTHER)],
)
def test_ids_seeds_and_order_are_those_of_the_first_version(
    sampling: Sampling, pinned: list[tuple[str, int, int, int, str, int]]
) -> None:
    made = plan(sampling)
    found = [
        (
            POLARITIES[made.polarity[place]],
            int(made.instruction_index[place]),
            int(made.question_index[place]),
            int(made.rollout[place]),
            made.ids[place].decode(),
            int(made.seed[place]),
        )
        for place in range(0, len(made), 2)
    ]
    assert found == pinned


def test_a_larger_plan_is_a_superset() -> None:
    small, large = plan(), plan(pos=20, neg=9)
    assert set(small.ids.tolist()) < set(large.ids.tolist())
    assert (large.positions(small.ids) >= 0).all()
    assert (small.positions(large.ids) == -1).sum() == len(large) - len(small)


def test_a_sample_is_built_from_its_row_of_the_plan() -> None:
    made, definition = plan(), trait()
    for place in range(len(made)):
        sample = made.sample(place, definition, tokenize)
        assert sample.prompt == f"{sample.instruction}\n\n{sample.question}"
        assert sample.prompt_token_ids == tokenize(sample.prompt)
        assert sample.id == made.ids[place].decode()
        assert sample.instruction == definition.instruction(
            sample.polarity, sample.instruction_index
        )


def test_a_stored_plan_is_the_plan(tmp_path: Path) -> None:
    made, path = plan(), tmp_path / "plan.parquet"
    made.save(path)
    found = load_plan(path)
    assert found is not None
    assert (found.key, found.n_planned) == (made.key, made.n_planned)
    for name in ("ids", "polarity", "instruction_index", "question_index", "rollout", "seed"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))


def test_the_key_tells_plans_apart() -> None:
    keys = {
        plan().key,
        plan(pos=9).key,
        plan(replace(SAMPLING, seed=1)).key,
        plan(n_questions=3).key,
    }
    assert len(keys) == 4
    assert plan().key == plan().key
