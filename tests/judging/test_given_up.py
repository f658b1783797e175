"""What a judge's endpoint refuses is not paid for in every run again; what may work is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.judging.test_judges import judged_by, launch
from tests.support import fakes, lab
from tests.support.misbehaving_server import MisbehavingServer, Reply, Seen, error
from traitmill.engine.errors import ExitCode
from traitmill.engine.judging import endpoint
from traitmill.engine.records import MOST_TRIES

SIDES = ("pos", "neg")


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between repetitions, so that eight take no minute."""
    make = endpoint.Calls

    def short(*arguments: object) -> object:
        *others, _, extra = arguments
        return make(*others, 0.001, extra)

    monkeypatch.setattr(endpoint, "Calls", short)


class Poison:
    """Answers all texts but the first one it sees, with what `fault` says."""

    def __init__(self, fault: Callable[[], Reply | None]) -> None:
        self.fault, self.text, self.asked = fault, "", 0

    def __call__(self, seen: Seen) -> Reply | None:
        prompt = seen.body["messages"][0]["content"]
        if "Score " not in prompt:  # the probe
            return None
        self.text = self.text or prompt
        if prompt != self.text:
            return None
        self.asked += 1
        return self.fault()


def failed(folder: Path) -> int:
    counts = fakes.state(folder).counts()
    return sum(counts[side]["verdicts"]["failed"] for side in SIDES)


TOO_LONG = "This model's maximum context length is 10 tokens."
REFUSALS = {
    "400": error(400, TOO_LONG, code="context_length_exceeded"),
    "413": error(413, "Payload too large"),
    "422": error(422, "no"),
    "429": error(429, "Request too large for m: it must be reduced.", code="rate_limit_exceeded"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_t27_t36_what_is_refused_as_such_is_not_asked_for_in_every_run(
    tmp_path: Path, name: str
) -> None:
    folder = fakes.make_trait(tmp_path)
    poison = Poison(lambda: REFUSALS[name])
    with MisbehavingServer("gpt-5-mini", script=poison) as server:
        settings = judged_by(server.url, "gpt-5-mini")
        first = launch(folder, settings)
        asked = poison.asked
        # once more at most: where the refusal came before any other text was answered
        launch(folder, settings)
        calls = len(server.log)
        again = [launch(folder, settings), launch(folder, settings, reopen=True)]
        assert len(server.log) == calls
    assert 1 <= asked <= poison.asked <= 4
    assert failed(folder) == 1
    assert (folder / "responses/pos.csv").exists()
    assert [result.exit_code for result in (first, *again)] == [ExitCode.FAILED_SAMPLES] * 3


def test_t27_a_text_that_fails_alone_is_asked_for_in_so_many_runs(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    poison = Poison(lambda: error(500, "oops"))
    asked = []
    with MisbehavingServer("gpt-5-mini", script=poison) as server:
        settings = judged_by(server.url, "gpt-5-mini")
        for _ in range(MOST_TRIES):
            launch(folder, settings)
            asked.append(poison.asked)
        launch(folder, settings)
        assert poison.asked == asked[-1]
        assert asked[0] < asked[1] < asked[2] <= 8 * MOST_TRIES
        assert failed(folder) == 1
        poison.fault = lambda: None
        launch(folder, settings)
        assert failed(folder) == 1
        once_more = replace(settings, limits=replace(settings.limits, retry=True))
        result = launch(folder, once_more)
    assert failed(folder) == 0
    assert result.exit_code != ExitCode.FAILED_SAMPLES


def test_t27_an_endpoint_that_refuses_everything_gives_no_text_up_at_once(tmp_path: Path) -> None:
    """A server set up wrongly: when it is set right, the same command judges all."""
    folder = fakes.make_trait(tmp_path)

    def refusing(seen: Seen) -> Reply | None:
        return error(400, "no such template") if "Score " in seen.prompt else None

    with MisbehavingServer("gpt-5-mini", script=refusing) as server:
        launch(folder, judged_by(server.url, "gpt-5-mini"))
    assert failed(folder) > 10
    with MisbehavingServer("gpt-5-mini") as server:
        launch(folder, judged_by(server.url, "gpt-5-mini"))
    assert failed(folder) == 0


def test_what_fails_together_counts_for_no_text(tmp_path: Path) -> None:
    """Every connection is cut, however often it is tried."""

    def cut(seen: Seen) -> Reply | None:
        return Reply(act="reset") if "Score " in seen.prompt else None

    folder = fakes.make_trait(tmp_path)
    with MisbehavingServer("gpt-5-mini") as server:
        settings = judged_by(server.url, "gpt-5-mini", n=2)
        launch(folder, settings)
    more = replace(settings, counts=replace(settings.counts, n_examples=4))
    for _ in range(MOST_TRIES + 1):
        with MisbehavingServer("gpt-5-mini", script=cut) as server:
            launch(folder, replace(more, limits=replace(more.limits, base_url=server.url)))
    assert failed(folder) > 0
    assert not fakes.state(folder).verdicts.given_up().any()


def test_t27_a_merge_of_parts_forgets_no_try(tmp_path: Path) -> None:
    from tests.support.fakes import FakeJudge
    from traitmill.engine.records import TEXT_ALONE, Response, Verdict
    from traitmill.engine.traits.definition import Trait

    class Alone(FakeJudge):
        async def judge(self, trait: Trait, response: Response) -> Verdict:
            verdict = await super().judge(trait, response)
            return replace(verdict, status="failed", score=None, error=f"{TEXT_ALONE}HTTP 500")

    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(5)
    calls = []
    for _ in range(MOST_TRIES + 2):
        judge = Alone(settings.judge)
        runs = fakes.open_runs([folder], settings)
        asyncio.run(fakes.pipeline(runs, settings, judge=judge).run())
        calls.append(len(judge.calls))
    n_ok = sum(row["status"] == "ok" for row in lab.rows(folder, "responses"))
    assert calls == [n_ok] * MOST_TRIES + [0, 0]
