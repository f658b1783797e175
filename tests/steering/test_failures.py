"""What failed or was given up: nothing is decided by the rest, and it is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import toy as toys
from tests.support.toy import LAYER, METHOD, Toy, ToyJudge, make_toy
from traitmill.engine.errors import ExitCode
from traitmill.engine.records import REFUSED_TEXT, Response, Sample, Verdict
from traitmill.engine.steering import read_study
from traitmill.engine.storage import TraitFolder
from traitmill.engine.traits import Trait

HOW = {"methods": [METHOD], "layers": [LAYER], "n_examples": 10}


def coefficients(toy: Toy) -> set[float]:
    table, _ = read_study(TraitFolder(toy.folder))
    return set(table["coefficient"])


def fail(
    monkeypatch: pytest.MonkeyPatch, which: Callable[[Trait, Response], bool], error: str
) -> None:
    """Have some verdicts fail."""
    judge = ToyJudge.judge

    async def failing(self: ToyJudge, trait: Trait, response: Response) -> Verdict:
        verdict = await judge(self, trait, response)
        if not which(trait, response):
            return verdict
        return replace(verdict, status="failed", score=None, error=error)

    monkeypatch.setattr(toys.ToyJudge, "judge", failing)


def is_coherence(trait: Trait, _: Response) -> bool:
    return "coherent" in trait.eval_prompt


async def test_verdicts_that_fail_choose_no_coefficient(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, toy = await make_toy(tmp_path / "a"), await make_toy(tmp_path / "b")
    await whole.steer(**HOW)
    with pytest.MonkeyPatch.context() as patched:
        fail(patched, is_coherence, "HTTP 503")
        result = await toy.steer(**HOW)
    assert result.exit_code == ExitCode.FAILED_SAMPLES
    assert not result.traits
    [error] = result.errors.values()
    assert "verdicts failed" in str(error)
    assert "run again" in str(error)
    assert not (toy.folder / "steering.parquet").exists()
    again = await toy.steer(**HOW)
    assert again.exit_code == ExitCode.OK
    assert len(toy.engine.calls) == len(whole.engine.calls), "no answer was made in vain"
    for name in ("steering.parquet", "steering/responses.csv"):
        assert (toy.folder / name).read_bytes() == (whole.folder / name).read_bytes()


@pytest.mark.parametrize("judge", ["toy", "local"])
async def test_responses_that_fail_leave_no_figures(tmp_path: Path, judge: str) -> None:
    toy = await make_toy(tmp_path, judge=judge)
    steered = toy.engine.steered

    async def failing(sample: Sample, shift: Any) -> Response:
        if int(sample.id[:2], 16) % 2:
            return Response(sample, "failed", error="no room")
        return await steered(sample, shift)

    toy.engine.steered = failing  # type: ignore[method-assign]
    how = {**HOW, "coefficients": [0.5], "judge_model": judge}
    result = await toy.steer(**how)
    assert result.exit_code == ExitCode.FAILED_SAMPLES
    assert "responses failed" in str(result.errors["trait"])
    assert not (toy.folder / "steering.parquet").exists()
    assert not (toy.folder / "steering/parquet/measured.json").exists(), "no scale of the rest"
    toy.engine.steered = steered  # type: ignore[method-assign]
    assert (await toy.steer(**how)).exit_code == ExitCode.OK


async def test_verdicts_given_up_are_counted_and_unknown_coherence_is_no_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = await make_toy(tmp_path)
    fail(monkeypatch, is_coherence, f"{REFUSED_TEXT}no")
    result = await toy.steer(**HOW)
    assert result.exit_code == ExitCode.FAILED_SAMPLES
    claim = result.traits["trait"].claim
    assert "breaks" not in claim.sentence
    assert "the coherence of mean_diff at layer 1 at the smallest coefficient" in claim.sentence
    assert "is not known" in claim.sentence
    n = len((toy.folder / "steering/responses.csv").read_text().splitlines()) - 1
    assert f"{n} verdicts on coherence are given up: no figure counts them" in claim.text
    assert coefficients(toy) == {0.0, *(s * c for s in (-1, 1) for c in (0.125, 0.25, 0.5, 1.0))}
