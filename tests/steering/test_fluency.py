"""Coherence by likelihood: its ends, its middle, and texts that repeat themselves."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.support.toy import BREAKS, LAYER, METHOD, make_toy
from traitmill.engine.steering import read_study
from traitmill.engine.steering.fluency import Scale, distinct_share, make_scale, shuffled
from traitmill.engine.storage import TraitFolder

VARIED = tuple(range(60))


def test_unsteered_answers_are_100_and_words_in_random_order_0() -> None:
    scale = make_scale([-1.0, -3.0], [-6.0, -8.0], [VARIED, VARIED])
    assert scale == Scale(-2.0, -7.0, 1.0)
    assert [scale.score(x, VARIED) for x in (-2.0, -4.5, -7.0, -1.0, -9.0)] == [100, 50, 0, 100, 0]


def test_a_text_that_repeats_itself_is_no_better_than_its_variety() -> None:
    scale = Scale(-2.0, -7.0, 0.8)
    looped = (1, 2, 3, 4) * 15
    assert distinct_share(looped) == 4 / 58
    assert scale.score(-0.1, looped) == round(100 * 4 / 58 / 0.8, 2)
    assert distinct_share((1, 2)) == 1.0


def test_a_scale_without_length_says_nothing() -> None:
    for scale in (make_scale([], [], []), Scale(-2.0, -1.0, 1.0)):
        assert np.isnan(scale.score(-2.0, VARIED))


def test_the_order_is_another_and_ever_the_same() -> None:
    mixed = shuffled(VARIED, 7)
    assert mixed == shuffled(VARIED, 7) != VARIED
    assert sorted(mixed) == list(VARIED)


async def test_a_local_judges_study_places_coherence_by_likelihood(tmp_path: Path) -> None:
    toy = await make_toy(tmp_path, judge="local")
    order = toy.engine.logprobs

    async def logprobs(prompt: object, response: object, shift: object) -> object:
        found = await order(prompt, response, shift)  # type: ignore[arg-type]
        if tuple(response) in toy_answers:  # type: ignore[arg-type]
            return found
        return tuple(x - 5.0 for x in found)  # tokens in another order than any answer's

    toy_answers: set[tuple[int, ...]] = set()
    steered = toy.engine.steered

    async def noting(sample: object, shift: object) -> object:
        response = await steered(sample, shift)  # type: ignore[arg-type]
        toy_answers.add(response.response_token_ids)
        return response

    toy.engine.logprobs, toy.engine.steered = logprobs, noting  # type: ignore[assignment,method-assign]
    result = await toy.steer(
        methods=[METHOD], layers=[LAYER], n_examples=10, coherence=50.0, n_random=2
    )
    assert not result.errors
    table, facts = read_study(TraitFolder(toy.folder))
    assert facts["coherence_by"] == "likelihood"
    rows = table.filter(measure="coherence", kind="steered").to_dicts()
    for row in rows:
        assert (row["value"] > 50) == (abs(row["coefficient"]) <= BREAKS), row
    [own] = table.filter(measure="coherence", kind="unsteered").to_dicts()
    assert own["value"] == pytest.approx(100, abs=12)
    texts = list(csv.DictReader((toy.folder / "steering/responses.csv").open()))
    assert all(row["coherence"] for row in texts)
    works = len(toy.works)
    await toy.steer(methods=[METHOD], layers=[LAYER], n_examples=10, coherence=50.0, n_random=2)
    assert len(toy.works) == works, "what was measured is not measured again"
