"""Plans: ids that never change, order, samples, and the file a plan is stored in."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from traitmill.engine.records import POLARITIES
from traitmill.engine.settings import Sampling
from traitmill.engine.traits import Trait, counts_per_instruction, load_plan, make_plan, plan_key
from traitmill.engine.traits.plan import sample_id

# Two prompts of the pos side are the same text, so that a count of repeats tells them apart.
TRAIT = Trait(
    "brave",
    (("Be brave.", "Be timid."), ("Dare.", "Hide."), ("Dare.", "Flee.")),
    ("Who?", "Why?"),
    "{question}{answer}",
)
GEMMA = Sampling(model="google/gemma-2-2b-it", revision="299a8560bedf22ed1c72a8a11e7dce4a7f9f51f8")
OTHER = Sampling(
    model="m", revision="r", temperature=1, top_p=1, top_k=40, max_new_tokens=60, seed=7
)
# (instruction, question, rollout, id, seed). Stored folders hold these ids: they may never change.
PINNED = {
    "pos": [
        (0, 0, 0, "ffa037cf54b7a2e23673b60b42ee8889", 9196411802709631714),
        (0, 1, 0, "3ca353190772f62d0ede8c33f9e8cef2", 4369427430443775533),
        (0, 0, 1, "a85e847c55e98b5872e773e395590e82", 2908908078880099160),
        (1, 0, 0, "6975e4622d02bf670b24ab42362a2ffa", 7599231056570662759),
        (1, 1, 0, "9b80a9327c3efcf4a208f924a9b73dd0", 1981769870340979956),
        (1, 0, 1, "98c38d0194e67ab2d3418228b9366e28", 1784424915301464754),
        (2, 0, 0, "a64127dac5dd77c723a4b56cf8da06c9", 2756528267503433671),
        (2, 1, 0, "008a15cd82507c9e0dd42d00218270b5", 38867519184862366),
    ],
    "neg": [
        (0, 0, 0, "3b13acdc38c125964a0ac2aa8996ef09", 4256936134640215446),
        (0, 1, 0, "2a702dfec6879589fdc3a17cf8115492", 3057994719260284297),
        (0, 0, 1, "54e2a605e39fe5e568890cc41b055795", 6116633788146509285),
        (1, 0, 0, "1d4975598033e0d8e2f8f568e27f7017", 2110346927663210712),
        (1, 1, 0, "8c57094df80723de5bd80e814c2934a0", 889189681907311582),
        (2, 0, 0, "31db185e1370fb86e2f27c7c11d1e52a", 3592491920090266502),
        (2, 1, 0, "0d2ace0a17c868677dcf417488765711", 948797214258915431),
    ],
}
PINNED_OTHER = {
    "pos": [
        (0, 0, 0, "67482cac101e4d65cdfb2fde620003d6", 7442247501746163045),
        (1, 0, 0, "63f11209491a7633a9429d51297629c4", 7201557110232610355),
    ],
    "neg": [(0, 0, 0, "8f6c8a2ee8191f231a09f59bbfe3feee", 1111415142120759075)],
}


def tokens(*prompt: str) -> tuple[int, ...]:
    return tuple("\n\n".join(prompt).encode())


@pytest.mark.parametrize(("sampling", "pinned"), [(GEMMA, PINNED), (OTHER, PINNED_OTHER)])
def test_ids_and_seeds_never_change(sampling: Sampling, pinned: dict) -> None:
    counts = {side: len(rows) for side, rows in pinned.items()}
    plan = make_plan(TRAIT, counts, sampling, tokens)
    samples = [plan.sample(place, TRAIT, tokens) for place in range(len(plan))]
    for side in POLARITIES:
        found = [
            (s.instruction_index, s.question_index, s.rollout, s.id, s.seed)
            for s in samples
            if s.polarity == side
        ]
        assert found == pinned[side]


def test_an_id_is_the_hash_that_the_documents_state() -> None:
    """Two instructions make the same prompt, so its occurrences are counted over both."""
    plan = make_plan(TRAIT, {"pos": 12, "neg": 1}, OTHER, tokens)
    prompt = "Dare.\n\nWhy?"
    places = [p for p in range(12) if plan.sample(p, TRAIT, tokens).prompt == prompt]
    assert plan.instruction_index[places].tolist() == [1, 1, 2, 2]
    for occurrence, place in enumerate(places):
        content = ["pos", list(prompt.encode()), occurrence, "m", "r", 1.0, 1.0, 40, 60, 7]
        text = json.dumps(content, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
        assert plan.ids[place].decode() == digest[:32]
        assert plan.seed[place] == int(digest[:16], 16) & (2**63 - 1)


def test_a_sample_is_its_row_of_the_plan() -> None:
    plan = make_plan(TRAIT, {"pos": 8, "neg": 7}, GEMMA, tokens)
    sample = plan.sample(9, TRAIT, tokens)
    assert (sample.trait, sample.polarity) == ("brave", "neg")
    assert (sample.instruction, sample.question) == ("Be timid.", "Why?")
    assert sample.prompt == "Be timid.\n\nWhy?"
    assert sample.prompt_token_ids == tuple(b"Be timid.\n\nWhy?")


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 40])
def test_a_larger_plan_holds_the_smaller_ones_and_repeats_no_id(n: int) -> None:
    small = make_plan(TRAIT, {"pos": n, "neg": 2}, GEMMA, tokens)
    large = make_plan(TRAIT, {"pos": n + 3, "neg": 5}, GEMMA, tokens)
    assert set(small.ids) < set(large.ids)
    assert len(set(large.ids)) == len(large) == n + 8
    assert large.n_planned == {"pos": n + 3, "neg": 5}
    shares = Counter(large.instruction_index[large.polarity == 0].tolist())
    assert [shares[index] for index in range(3)] == counts_per_instruction(n + 3, 3)
    assert max(shares.values()) - min(shares[index] for index in range(3)) <= 1


def test_each_distinct_prompt_is_tokenized_once() -> None:
    asked: list[tuple[str, ...]] = []

    def tokenize(*prompt: str) -> tuple[int, ...]:
        asked.append(prompt)
        return tokens(*prompt)

    make_plan(TRAIT, {"pos": 30, "neg": 30}, GEMMA, tokenize)
    assert len(asked) == len(set(asked)) == (2 + 3) * 2


def test_positions_are_found_by_id() -> None:
    plan = make_plan(TRAIT, {"pos": 20, "neg": 20}, GEMMA, tokens)
    places = np.random.default_rng(0).permutation(len(plan))
    ids = np.append(plan.ids[places], np.array(["f" * 32, "0" * 32], "S32"))
    np.testing.assert_array_equal(plan.positions(ids), [*places, -1, -1])
    assert plan.positions(np.zeros(0, "S32")).shape == (0,)


def test_the_key_tells_all_plans_apart() -> None:
    counts = {"pos": 3, "neg": 2}
    longer = Trait("brave", TRAIT.instructions, (*TRAIT.questions, "How?"), TRAIT.eval_prompt)
    swapped = Trait("brave", TRAIT.instructions[::-1], TRAIT.questions, TRAIT.eval_prompt)
    judged_otherwise = Trait("brave", TRAIT.instructions, TRAIT.questions, "{answer}{question}")
    key = plan_key(TRAIT, counts, GEMMA)
    others = [
        plan_key(longer, counts, GEMMA),
        plan_key(swapped, counts, GEMMA),
        plan_key(TRAIT, {"pos": 2, "neg": 3}, GEMMA),
        plan_key(TRAIT, counts, OTHER),
    ]
    assert len({key, *others}) == 5
    assert plan_key(judged_otherwise, {"neg": 2, "pos": 3}, GEMMA) == key
    assert make_plan(TRAIT, counts, GEMMA, tokens).key == key


def test_a_stored_plan_is_the_plan(tmp_path: Path) -> None:
    plan = make_plan(TRAIT, {"pos": 8, "neg": 7}, GEMMA, tokens)
    plan.save(tmp_path / "plan.parquet")
    stored = load_plan(tmp_path / "plan.parquet")
    assert stored is not None
    assert (stored.key, stored.n_planned) == (plan.key, {"pos": 8, "neg": 7})
    for name in ("ids", "polarity", "instruction_index", "question_index", "rollout", "seed"):
        made, read = getattr(plan, name), getattr(stored, name)
        assert made.dtype == read.dtype
        np.testing.assert_array_equal(made, read)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.parquet"]


def test_a_missing_or_damaged_plan_is_none(tmp_path: Path) -> None:
    path = tmp_path / "plan.parquet"
    assert load_plan(path) is None
    make_plan(TRAIT, {"pos": 300, "neg": 300}, GEMMA, tokens).save(path)
    whole = path.read_bytes()
    for length in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert load_plan(path) is None
    middle = len(whole) // 3
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert load_plan(path) is None
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"sample_id": ["a"]}), path)
    assert load_plan(path) is None


def test_an_adapter_changes_ids_and_no_seed() -> None:
    base = Sampling(model="m")
    tuned = replace(base, adapter="a", adapter_revision="1")
    other = replace(base, adapter="a", adapter_revision="2")
    found = [sample_id("pos", (1, 2), 0, sampling) for sampling in (base, tuned, other)]
    assert len({id_ for id_, _ in found}) == 3
    assert len({seed for _, seed in found}) == 1


def test_an_allowance_of_thought_changes_ids_only_where_there_is_thought() -> None:
    samplings = [Sampling(model="m", max_thinking_tokens=n) for n in (100, 200)]
    without = {sample_id("pos", (1, 2), 0, sampling) for sampling in samplings}
    thinking = {sample_id("pos", (1, 2), 0, sampling, thinks=True) for sampling in samplings}
    assert (len(without), len(thinking), len(without | thinking)) == (1, 2, 3)
