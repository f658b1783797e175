"""A whole study on a toy whose curves are known: figures, claim, resume, files."""

from __future__ import annotations

import asyncio
import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from tests.support import fakes
from tests.support.toy import ASKING, BASE, BREAKS, LAYER, METHOD, SLOPE, Toy, make_toy
from traitmill.engine.errors import ExitCode, UsageError
from traitmill.engine.outputs.stale import stale_files
from traitmill.engine.steering import read_study
from traitmill.engine.steering.conditions import random_vectors
from traitmill.engine.storage import TraitFolder
from traitmill.engine.vectors import fit_experiment, write_table

HOW = {"methods": [METHOD], "layers": [LAYER]}


def curve(coefficient: float) -> float:
    """The toy's mean score: 100 times the chance of an A."""
    return 100 / (1 + math.exp(-(BASE + SLOPE * coefficient)))


def figures(toy: Toy, measure: str, kind: str = "steered") -> dict[float, dict[str, float]]:
    table, _ = read_study(TraitFolder(toy.folder))
    rows = table.filter(measure=measure, kind=kind).to_dicts()
    return {row["coefficient"]: row for row in rows}


def said(toy: Toy) -> str:
    return str(read_study(TraitFolder(toy.folder))[1]["claim"]["sentence"])


async def test_r24_the_curve_has_the_known_slope_and_is_claimed(tmp_path: Path) -> None:
    toy = await make_toy(tmp_path)
    result = await toy.steer(**HOW, n_examples=40)
    assert result.exit_code == ExitCode.OK, result.errors
    scores = figures(toy, "trait_score")
    below = {c: row for c, row in scores.items() if abs(c) <= BREAKS}
    assert len(below) >= 8
    missed = [c for c, row in below.items() if not row["low"] <= curve(c) <= row["high"]]
    assert len(missed) <= 1, "95 % intervals hold the known curve"
    logits = [math.log(row["value"] / (100 - row["value"])) for row in below.values()]
    slope, base = np.polyfit(list(below), logits, 1)
    assert slope == pytest.approx(SLOPE, abs=0.15)
    assert base == pytest.approx(BASE, abs=0.05)
    coherence = figures(toy, "coherence")
    assert {c for c, row in coherence.items() if row["value"] == 100} == set(below)
    largest = max(below)
    assert 0.5 < largest <= BREAKS, "refined to where coherence breaks"
    claim = result.traits["trait"].claim
    assert (claim.coefficient, claim.has_effect) == (largest, True)
    assert claim.sentence.startswith("The vector steers: mean_diff at layer 1, added at ")
    assert f"{scores[largest]['value']:.1f}" in claim.why[0]
    effect = figures(toy, "over_unsteered")[largest]
    assert effect["low"] > 0
    # A 95 % interval misses once in twenty draws, one half as wide again once in three hundred.
    half = (effect["high"] - effect["low"]) / 2
    assert effect["value"] == pytest.approx(curve(largest) - curve(0), abs=1.5 * half)
    assert said(toy) == claim.sentence


async def test_a_direction_taken_out_takes_the_instruction_with_it(tmp_path: Path) -> None:
    """The toy's instruction works by the direction alone: without it, it answers as unasked."""
    toy = await make_toy(tmp_path)
    result = await toy.steer(**HOW, n_examples=40, coefficients=[0.5], ablate=True)
    table, _ = read_study(TraitFolder(toy.folder))
    ablated = {
        (row["method"], row["measure"]): row for row in table.filter(kind="ablated").to_dicts()
    }
    asked = 100 / (1 + math.exp(-(BASE + ASKING)))
    own, random = ablated[METHOD, "over_prompt"], ablated["random", "over_prompt"]
    assert own["low"] < curve(0) - asked < own["high"]
    cosines = [vector @ toy.engine.direction / toy.engine.norm for _, vector in toy.engine.vectors]
    left = [100 / (1 + math.exp(-(BASE + ASKING * (1 - c**2)))) for c in cosines[1:]]
    assert random["low"] < np.mean(left) - asked < random["high"], "its share of it, no more"
    beyond = ablated[METHOD, "over_random"]
    assert beyond["high"] < -20
    assert ("random", "over_random") not in ablated
    said = result.traits["trait"].claim.text
    assert f"the pos instruction reaches {ablated[METHOD, 'trait_score']['value']:.1f}" in said
    shifts = [shift for _, shift in toy.engine.calls if shift is not None and shift.ablates]
    assert {(s.first, s.end, s.coefficient) for s in shifts} == {(0, None, 1.0)}
    assert sorted(s.vector for s in shifts) == sorted([0] * 40 + [1, 2, 3, 4, 5] * 8)
    again = await toy.steer(**HOW, n_examples=40, coefficients=[0.5])
    assert again.traits["trait"].claim == result.traits["trait"].claim, "it is shown further on"


async def test_r24_a_direction_that_does_nothing_is_said_to(tmp_path: Path) -> None:
    toy = await make_toy(tmp_path)
    v = toy.engine.direction
    other = np.roll(v, 1) - v * float(np.roll(v, 1) @ v)
    toy.engine.direction = other / np.linalg.norm(other)
    claim = (await toy.steer(**HOW, n_examples=20)).traits["trait"].claim
    assert not claim.has_effect
    assert claim.sentence.startswith("No effect is shown: mean_diff at layer 1")
    assert "interval" in claim.why[0]
    assert "could not have shown" not in claim.text, "it tells the instruction"


async def test_a_judge_that_misses_the_instruction_itself_is_said_to_be_no_meter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.toy.ASKING", 0.0)
    toy = await make_toy(tmp_path)
    toy.engine.direction = np.roll(toy.engine.direction, 1)
    claim = (await toy.steer(**HOW, n_examples=20, coefficients=[0.125])).traits["trait"].claim
    row = figures(toy, "over_unsteered", "prompt")[0.0]
    assert row["low"] <= 0
    assert not claim.has_effect
    said = f"({row['value']:+.1f}, 95 % interval {row['low']:+.1f} to {row['high']:+.1f}): it could"
    assert f"does not tell the pos instruction itself from unsteered answers {said}" in claim.text


async def test_r24_a_vector_that_breaks_everything_is_said_to(tmp_path: Path) -> None:
    toy = await make_toy(tmp_path)
    result = await toy.steer(**HOW, n_examples=5, coefficients=[2.0, 4.0])
    claim = result.traits["trait"].claim
    assert (claim.coefficient, claim.has_effect) == (None, False)
    assert "breaks coherence (below 75) at the smallest coefficient tried, 2" in claim.sentence


async def test_what_is_added_is_as_long_as_was_asked_wherever_it_points(tmp_path: Path) -> None:
    toy = await make_toy(tmp_path)
    await toy.steer(**HOW, n_examples=6, coefficients=[0.25, -0.5], n_random=3)
    for layer, vector in toy.engine.vectors:
        assert layer == LAYER
        assert np.linalg.norm(vector) == pytest.approx(toy.engine.norm, rel=1e-5)
    assert len(toy.engine.vectors) == 1 + 3
    first = toy.engine.vectors[0][1]
    np.testing.assert_allclose(first / np.linalg.norm(first), toy.engine.direction, atol=1e-5)
    by_coefficient: dict[float, list[int]] = {}
    for _, shift in toy.engine.calls:
        if shift is not None:
            by_coefficient.setdefault(shift.coefficient, []).append(shift.vector)
    assert sorted(by_coefficient[-0.5]) == [0] * 6, "random vectors stand beside positive ones"
    assert sorted(by_coefficient[0.25]) == [0] * 6 + [1, 1, 2, 2, 3, 3]
    assert sum(shift is None for _, shift in toy.engine.calls) == 12


async def test_another_method_at_a_layer_finds_its_baselines_made(tmp_path: Path) -> None:
    toy = await make_toy(tmp_path)
    methods = ["probe", "gradient", "pca"]
    fit_experiment(toy.root / "exp", ["trait"], methods=[METHOD, *methods])
    how = {"layers": [LAYER], "n_examples": 4, "coefficients": [0.25]}
    await toy.steer(methods=[METHOD], **how)
    for method in methods:
        toy.engine.calls.clear()
        await toy.steer(methods=[method], **how)
        assert {shift and shift.vector for _, shift in toy.engine.calls} == {0}
        assert len(toy.engine.calls) == 4


@pytest.mark.parametrize("positions", ["response", "prompt", "all"])
async def test_r25_positions_are_those_of_each_prompt(tmp_path: Path, positions: str) -> None:
    definition = fakes.definition(n_questions=10) | {
        "steering_questions": ["a?", "a much longer question?", "b"]
    }
    toy = await make_toy(tmp_path, definition)
    seen: list[tuple[int, object]] = []
    steered = toy.engine.steered

    async def noting(sample: object, shift: object) -> object:
        if shift is not None:
            seen.append((len(sample.prompt_token_ids), shift))  # type: ignore[attr-defined]
        return await steered(sample, shift)  # type: ignore[arg-type]

    toy.engine.steered = noting  # type: ignore[assignment,method-assign]
    await toy.steer(**HOW, n_examples=3, coefficients=[0.5], positions=positions)
    assert {n for n, _ in seen} == {len(f"\n\n{q}") for q in definition["steering_questions"]}
    for n, shift in seen:
        found = (shift.first, shift.end)  # type: ignore[attr-defined]
        assert found == {"response": (n, None), "prompt": (0, n), "all": (0, None)}[positions]


async def test_side_effects_are_the_models_own_answers_under_each_condition(
    tmp_path: Path,
) -> None:
    toy = await make_toy(tmp_path)
    await toy.steer(**HOW, n_examples=10, coefficients=[0.25, 0.5])
    measured = figures(toy, "own_logprob")
    assert set(measured) == {0.25, 0.5}
    [unsteered] = figures(toy, "own_logprob", "unsteered").values()
    rows = list(csv.DictReader((toy.folder / "steering/responses.csv").open()))
    own = [row["response"].split() for row in rows if row["kind"] == "unsteered"]
    share = np.mean([words.count("A") / len(words) for words in own])
    for c, row in [(0.0, unsteered), *measured.items()]:
        logit = BASE + SLOPE * c
        expected = -math.log1p(math.exp(-logit)) - (1 - share) * logit
        assert row["value"] == pytest.approx(expected, abs=1e-6)
        assert row["n"] == 10


async def test_texts_and_scores_stand_in_one_file(tmp_path: Path) -> None:
    toy = await make_toy(tmp_path)
    await toy.steer(**HOW, n_examples=4, coefficients=[0.5])
    rows = list(csv.DictReader((toy.folder / "steering/responses.csv").open()))
    assert [row["kind"] for row in rows] == [
        kind for kind in ("unsteered", "prompt", "steered", "random") for _ in range(4)
    ]
    for row in rows:
        words = row["response"].split()
        expected = 100 * words.count("A") / len(words)
        assert float(row["trait_score"]) == pytest.approx(expected, abs=0.005)
        assert row["instruction"].startswith("Be it") == (row["kind"] == "prompt")


async def test_a_finished_study_loads_nothing_and_pays_nothing(tmp_path: Path) -> None:
    toy = await make_toy(tmp_path)
    await toy.steer(**HOW, n_examples=6)
    table = (toy.folder / "steering.parquet").read_bytes()
    calls, works = len(toy.engine.calls), len(toy.works)
    again = await toy.steer(**HOW, n_examples=6)
    assert (len(toy.engine.calls), len(toy.works)) == (calls, works)
    assert again.log is None
    assert (toy.folder / "steering.parquet").read_bytes() == table
    more = await toy.steer(**HOW, n_examples=8)
    assert more.exit_code == ExitCode.OK
    new = [name for name, _ in toy.engine.calls[calls:]]
    assert not set(new) & {name for name, _ in toy.engine.calls[:calls]}


async def test_an_interrupted_study_goes_on_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, cut = await make_toy(tmp_path / "a"), await make_toy(tmp_path / "b")
    await whole.steer(**HOW, n_examples=6)
    stop = asyncio.Event()
    cut.engine.stop, cut.engine.stop_after = stop, 50
    first = await cut.steer(**HOW, n_examples=6, stop=stop)
    assert first.exit_code == ExitCode.INTERRUPTED
    assert not first.traits
    done = {name for name, _ in cut.engine.calls[:40]}
    cut.engine.stop, cut.engine.calls = None, []
    second = await cut.steer(**HOW, n_examples=6)
    assert second.exit_code == ExitCode.OK
    again = {name for name, _ in cut.engine.calls}
    assert len(done & again) <= cut.engine.max_in_flight, "what was stored is not made again"
    for name in ("steering.parquet", "steering/responses.csv"):
        assert (cut.folder / name).read_bytes() == (whole.folder / name).read_bytes()


async def test_a_judge_without_quota_leaves_what_is_stored(tmp_path: Path) -> None:
    toy = await make_toy(tmp_path)
    toy.ends_after = 20
    result = await toy.steer(**HOW, n_examples=5)
    assert result.exit_code == ExitCode.STOPPED
    assert not (toy.folder / "steering.parquet").exists()
    generated = len(toy.engine.calls)
    toy.ends_after = 0
    result = await toy.steer(**HOW, n_examples=5)
    assert result.exit_code == ExitCode.OK
    assert toy.judges[0].ends_after == 20
    judged = sum(judge.calls for judge in toy.judges) - 1 * (toy.judges[0].calls - 20)
    rows = list(csv.DictReader((toy.folder / "steering/responses.csv").open()))
    assert judged == 2 * len(rows), "each response is judged twice, once for each question"
    assert len({name for name, _ in toy.engine.calls}) == len(toy.engine.calls) >= generated


async def test_settings_that_cannot_work_are_refused_before_anything_loads(tmp_path: Path) -> None:
    toy = await make_toy(tmp_path)
    wrong = [
        ({"positions": "first"}, "`positions` 'first' is unknown"),
        ({"coefficients": [0]}, "other than 0"),
        ({"coefficients": [float("nan")]}, "`coefficients`"),
        (
            {"coefficients": 0.5},
            "`coefficients` takes a list, each of it a number or None, not 0.5",
        ),
        ({"n_random": 0}, "`n_random` must be a whole number from 1"),
        ({"n_examples": "5"}, "`n_examples` takes a whole number or None, not '5'"),
        ({"ablate": "no"}, "`ablate` takes True or False, not 'no'"),
        ({"layers": 1}, "`layers` takes a list, each of it a whole number or None, not 1"),
        ({"coherence": 101.0}, "`coherence` must lie"),
        ({"layers": [7]}, "no such block captured"),
        ({"layers": []}, "`layers` names none"),
        ({"methods": ["probe"]}, "probe_layer1.pt is missing"),
        ({"judge_model": "local"}, "judge them with it first"),
        ({"n_example": 3}, "did you mean"),
    ]
    for how, words in wrong:
        with pytest.raises(UsageError, match=words):
            await toy.steer(**{**HOW, **how})
    assert not toy.works
    assert not (toy.folder / "steering").exists()


async def test_a_method_of_which_only_negative_coefficients_were_tried_is_said_so(
    tmp_path: Path,
) -> None:
    """All was generated and judged, and then there was no smallest of none."""
    toy = await make_toy(tmp_path)
    fit_experiment(toy.root / "exp", ["trait"], methods=[METHOD, "probe"])
    how = {"layers": [LAYER], "n_examples": 4}
    await toy.steer(methods=[METHOD], coefficients=[0.25], **how)
    result = await toy.steer(methods=["probe"], coefficients=[-0.25], **how)
    assert f"no positive coefficient of probe at layer {LAYER} was tried" in str(
        result.traits["trait"].claim.text
    )


async def test_the_means_of_a_claim_are_of_the_same_questions(tmp_path: Path) -> None:
    """Of fewer questions than before, they differed by something else than the effect."""
    toy = await make_toy(tmp_path)
    toy.engine.noise = 3.0
    how = {"methods": [METHOD], "layers": [LAYER]}
    await toy.steer(n_examples=20, coefficients=[0.25], **how)
    result = await toy.steer(n_examples=3, coefficients=[0.5], **how)
    said = result.traits["trait"].claim.text
    before, after, gain = re.search(r"from ([\d.]+) to ([\d.]+) \(\+([\d.]+)", said).groups()
    assert float(after) - float(before) == pytest.approx(float(gain), abs=0.11)


async def test_arrays_of_numbers_and_names_are_taken_as_lists(tmp_path: Path) -> None:
    toy = await make_toy(tmp_path)
    result = await toy.steer(
        methods=np.array([METHOD]),
        layers=np.array([LAYER]),
        coefficients=np.array([0.5]),
        n_examples=np.int64(4),
        n_random=np.int64(2),
    )
    assert result.exit_code == ExitCode.OK, result.errors
    assert set(figures(toy, "trait_score")) == {0.5}


async def test_vectors_of_other_activations_are_refused(tmp_path: Path) -> None:
    toy = await make_toy(tmp_path)
    beside = toy.folder / "vectors" / f"{METHOD}_layer{LAYER}_metadata.json"
    facts = json.loads(beside.read_bytes())
    beside.write_text(json.dumps(facts | {"activations_sha256": "0" * 64}))
    with pytest.raises(UsageError, match="of other activations"):
        await toy.steer(**HOW)


async def test_a_new_run_moves_steering_aside_with_the_rest(tmp_path: Path) -> None:
    toy = await make_toy(tmp_path)
    await toy.steer(**HOW, n_examples=3, coefficients=[0.5])
    moved = TraitFolder(toy.folder).archive("run", "2026-01-01T00:00:00Z")
    assert (moved / "steering.parquet").is_file()
    assert (moved / "steering" / "parquet").is_dir()
    assert not (toy.folder / "steering").exists()


@pytest.mark.slow
async def test_r24_a_random_vectors_effect_covers_0_in_93_of_100_seeds(tmp_path: Path) -> None:
    """Of vectors that have no part along the direction; questions differ in their answers."""
    toy = await make_toy(tmp_path, noise=0.7)
    covered, seeds = 0, 100
    v = toy.engine.direction
    for seed in range(seeds):
        other = np.random.default_rng(seed).standard_normal(len(v))
        other -= v * float(other @ v)
        toy.engine.direction = other / np.linalg.norm(other)
        await toy.steer(**HOW, n_examples=20, coefficients=[0.5], n_random=1, seed=seed)
        row = figures(toy, "over_unsteered")[0.5]
        covered += row["low"] <= 0 <= row["high"]
    assert covered >= 93, covered


def test_random_vectors_are_ever_the_same_and_of_one_length() -> None:
    first, again = random_vectors(3.0, 64, 5, 4), random_vectors(3.0, 64, 5, 6)
    for one, other in zip(first, again, strict=False):
        np.testing.assert_array_equal(one, other)
        assert np.linalg.norm(one) == pytest.approx(3.0, rel=1e-6)
    cosines = np.array([[a @ b / 9 for a in again] for b in again])
    assert np.abs(cosines - np.eye(6)).max() < 0.5


async def test_steering_with_vectors_of_other_activations_is_said_to_be_stale(
    tmp_path: Path,
) -> None:
    toy = await make_toy(tmp_path)
    await toy.steer(**HOW, n_examples=3, coefficients=[0.5])
    folder = TraitFolder(toy.folder)
    assert stale_files(folder) == []
    table, facts = read_study(folder)
    write_table(folder.steering_table, table, {**facts, "activations_sha256": "0" * 64})
    assert stale_files(folder) == ["steering.parquet"]
