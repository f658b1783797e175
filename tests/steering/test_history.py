"""Figures are of all that was asked so far, not of the last command alone."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.support.toy import LAYER, METHOD, Toy, make_toy
from traitmill.engine.errors import AccessError, ExitCode, UsageError
from traitmill.engine.run import Listener
from traitmill.engine.steering import read_study, steer
from traitmill.engine.steering.kept import keep, with_kept
from traitmill.engine.storage import Asked, TraitFolder
from traitmill.engine.vectors import fit_experiment

HOW: dict[str, Any] = {"methods": [METHOD], "layers": [LAYER], "n_examples": 10}


def table(toy: Toy) -> pl.DataFrame:
    return read_study(TraitFolder(toy.folder))[0]


def counts(toy: Toy) -> dict[tuple[str, float], int]:
    """The responses of each steered condition that has a score."""
    rows = table(toy).filter(kind="steered", measure="trait_score")
    return {(row["method"], row["coefficient"]): row["n"] for row in rows.to_dicts()}


async def test_other_coefficients_and_methods_add_to_the_figures(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    once, toy = await make_toy(tmp_path / "a"), await make_toy(tmp_path / "b")
    await once.steer(**HOW, coefficients=[-0.25, 0.25, 0.5, 0.6])
    await toy.steer(**HOW, coefficients=[0.25, 0.5])
    result = await toy.steer(**HOW, coefficients=[-0.25, 0.6])
    assert result.exit_code == ExitCode.OK
    assert len(toy.engine.calls) == len(once.engine.calls)
    for name in ("steering.parquet", "steering/responses.csv"):
        assert (toy.folder / name).read_bytes() == (once.folder / name).read_bytes()
    fit_experiment(toy.root / "exp", ["trait"], methods=[METHOD, "probe"])
    other = await toy.steer(**HOW | {"methods": ["probe"]}, coefficients=[0.25])
    assert other.traits["trait"].claim.method == "probe"
    found = counts(toy)
    assert found.pop(("probe", 0.25)) == 10
    assert found == {(METHOD, c): 10 for c in (-0.25, 0.25, 0.5, 0.6)}
    [lines] = {len(list(csv.DictReader((toy.folder / "steering/responses.csv").open())))}
    assert lines == 10 * (2 + 4 + 3 + 1)


@pytest.mark.parametrize(("first", "then"), [(4, 8), (8, 4)])
async def test_what_was_asked_with_other_counts_stays(
    tmp_path: Path, first: int, then: int
) -> None:
    toy = await make_toy(tmp_path)
    await toy.steer(**HOW | {"n_examples": first}, coefficients=[0.25])
    await toy.steer(**HOW | {"n_examples": then}, coefficients=[0.5])
    assert counts(toy) == {(METHOD, 0.25): first, (METHOD, 0.5): then}
    own = table(toy).filter(kind="steered", measure="own_logprob")["coefficient"].to_list()
    assert own == ([0.5] if first < then else [0.25, 0.5])
    samples = read_study(TraitFolder(toy.folder))[1]["samples"]
    assert len(samples) == 4
    assert all(all(texts) for _, texts in samples)
    calls, works = len(toy.engine.calls), len(toy.works)
    await toy.steer(**HOW | {"n_examples": then}, coefficients=[0.5])
    assert (len(toy.engine.calls), len(toy.works)) == (calls, works), "nothing is left to do"


async def test_what_is_of_another_kind_is_not_shown_beside(tmp_path: Path) -> None:
    toy = await make_toy(tmp_path)
    await toy.steer(**HOW, coefficients=[0.25])
    for other in ({"positions": "all"}, {"seed": 1}, {"n_random": 2}):
        await toy.steer(**HOW, coefficients=[0.5], **other)
        assert counts(toy) == {(METHOD, 0.5): 10}
    first = {"positions": "response", "seed": 0, "n_random": 5}
    await toy.steer(**HOW, coefficients=[0.5], **first)
    assert counts(toy) == {(METHOD, 0.25): 10, (METHOD, 0.5): 10}
    asked = toy.folder / "steering/parquet/steered.json"
    asked.write_text(json.dumps(json.loads(asked.read_bytes()))[:-1])
    with pytest.raises(UsageError, match="is damaged; delete it"):
        await toy.steer(**HOW, coefficients=[0.5])


async def test_a_direction_taken_out_is_shown_further_on_for_its_own_method(tmp_path: Path) -> None:
    toy = await make_toy(tmp_path)
    fit_experiment(toy.root / "exp", ["trait"], methods=[METHOD, "probe"])
    await toy.steer(**HOW, coefficients=[0.25], ablate=True)
    own = table(toy).filter(kind="ablated")
    other = await toy.steer(**HOW | {"methods": ["probe"]}, coefficients=[0.25])
    assert "taken out" not in other.traits["trait"].claim.text
    assert table(toy).filter(kind="ablated").equals(own)
    for path in (toy.folder / "vectors").glob(f"{METHOD}_layer{LAYER}*"):
        path.unlink()
    await toy.steer(**HOW | {"methods": ["probe"]}, coefficients=[0.5])
    assert counts(toy) == {("probe", 0.25): 10, ("probe", 0.5): 10}


async def test_what_is_not_given_is_as_it_was_last_steered(tmp_path: Path) -> None:
    """Another length or number of answers is another study: it was paid for, and the figures were
    of it alone."""
    toy = await make_toy(tmp_path)
    how = {"n_examples": 6, "n_random": 3, "coherence": 60.0, "max_new_tokens": 9}
    await toy.steer(coefficients=[0.25], **how)
    made, rows, lines = len(toy.engine.calls), len(table(toy)), []

    class Noting(Listener):
        def notice(self, line: str) -> None:
            lines.append(line)

    await toy.steer(coefficients=[0.25], listener=Noting())
    assert (len(toy.engine.calls), len(table(toy))) == (made, rows)
    [kept] = [line for line in lines if line.startswith("kept from the last steering")]
    for said in ("`n_examples` 6", "`n_random` 3", "`coherence` 60", "`max_new_tokens` 9"):
        assert said in kept
    await toy.steer(coefficients=[0.5])
    assert counts(toy) == {(METHOD, 0.25): 6, (METHOD, 0.5): 6}


async def test_traits_that_were_steered_apart_are_not_steered_as_one_of_them(
    tmp_path: Path,
) -> None:
    toy = await make_toy(tmp_path)
    await toy.steer(coefficients=[0.25], n_examples=6)
    other = TraitFolder(toy.root / "exp" / "other")
    shutil.copytree(toy.folder, other.path)
    Asked(settings={"n_examples": 7}).save(other.steering.asked)
    with pytest.raises(UsageError, match="different `n_examples` \\(trait: 6, other: 7\\)"):
        await toy.steer(["trait", "other"], coefficients=[0.25])


def test_what_is_kept_is_how_it_was_last_steered(tmp_path: Path) -> None:
    one, two = (TraitFolder(tmp_path / "exp" / name) for name in ("one", "two"))
    for folder in (one, two):
        folder.steering.asked.parent.mkdir(parents=True)

    def steered(folders: list[TraitFolder], **given: Any) -> dict[str, Any]:
        how, _ = with_kept(folders, given)
        keep(folders, how)
        return how

    first = {"judge_model": "a", "judge_extra": '{"x": 1}', "positions": "all"}
    steered([one], **first)
    assert steered([one], judge_model="a") == first
    assert steered([one, two]) == first
    assert steered([two]) == first
    of_another = {"judge_model": "b", "positions": "all"}
    assert steered([two], judge_model="b") == of_another
    assert steered([two]) == of_another


async def test_a_key_goes_to_no_address_that_the_steering_folder_alone_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = await make_toy(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-users")
    settings = {"judge_model": "m", "judge_base_url": "https://judge.elsewhere.example/v1"}
    asked = TraitFolder(toy.folder).steering.asked
    asked.parent.mkdir(parents=True, exist_ok=True)
    Asked(settings=settings).save(asked)
    with pytest.raises(AccessError, match="which nobody named but the folder"):
        await steer(toy.root / "exp", ["trait"], backends=toy.backends)
