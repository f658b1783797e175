"""Whose fault a failure is: the text's, or that of an endpoint that takes none any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.judging.test_endpoint import TRAIT, known, response
from tests.judging.test_given_up import failed
from tests.judging.test_judges import judged_by, launch
from tests.support import fakes
from tests.support.misbehaving_server import MisbehavingServer, Reply, Seen, completion, error
from traitmill.engine.errors import ExitCode, StoppedError
from traitmill.engine.judging import EndpointJudge, endpoint
from traitmill.engine.judging.calls import seconds_for
from traitmill.engine.judging.cost import Price, at_tier, find_price
from traitmill.engine.records import MOST_TRIES
from traitmill.engine.settings import JudgeLimits, JudgeSettings


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    make = endpoint.Calls

    def short(*arguments: object) -> object:
        *others, _, extra = arguments
        return make(*others, 0.001, extra)

    monkeypatch.setattr(endpoint, "Calls", short)


def after(n: int, reply: Callable[[], Reply]) -> Callable[[Seen], Reply | None]:
    """Answer n texts, then give every request the reply."""
    seen = []

    def script(request: Seen) -> Reply | None:
        seen.append("Score " in request.body["messages"][0]["content"])
        return reply() if sum(seen) > n else None

    return script


BROKE = {
    "Anthropic": Reply(
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "Your credit balance is too low to access the Anthropic API. Please go "
                "to Plans & Billing to upgrade or purchase credits.",
            },
        },
    ),
    "LiteLLM": error(400, "Budget has been exceeded! Current cost: 1.0", code="budget_exceeded"),
    "DashScope": error(400, "Access denied, please pay what is overdue.", code="Arrearage"),
    "DeepSeek": error(402, "Insufficient Balance"),
    "a proxy": error(403, "insufficient credits: top up to go on"),
    "in no words of ours": error(400, "Please visit the billing page."),
}


@pytest.mark.parametrize("name", BROKE)
def test_f05_an_account_without_credit_stops_the_judge_and_gives_no_text_up(
    tmp_path: Path, name: str
) -> None:
    folder = fakes.make_trait(tmp_path)
    with MisbehavingServer("gpt-5-mini", script=after(5, lambda: BROKE[name])) as server:
        first = launch(folder, judged_by(server.url, "gpt-5-mini", n=60))
        calls = len(server.log)
    assert first.exit_code == ExitCode.STOPPED
    assert not fakes.state(folder).verdicts.given_up().any()
    assert calls <= 5 + 120 + 1
    with MisbehavingServer("gpt-5-mini") as server:
        again = launch(folder, judged_by(server.url, "gpt-5-mini", n=60))
    assert failed(folder) == 0
    assert again.exit_code == ExitCode.NOTHING_KEPT  # this server scores both sides alike


@pytest.mark.parametrize("status", [408, 424, 499, 503])
def test_t27_statuses_about_the_moment_give_no_text_up_while_none_is_answered(
    tmp_path: Path, status: int
) -> None:
    folder = fakes.make_trait(tmp_path)
    with MisbehavingServer("gpt-5-mini") as server:
        settings = judged_by(server.url, "gpt-5-mini", n=2)
        launch(folder, settings)
    more = replace(settings, counts=replace(settings.counts, n_examples=4))
    gone = error(status, "the model's container is gone")
    for _ in range(MOST_TRIES + 1):
        with MisbehavingServer("gpt-5-mini", script=after(0, lambda: gone)) as server:
            launch(folder, replace(more, limits=replace(more.limits, base_url=server.url)))
    assert not fakes.state(folder).verdicts.given_up().any()
    with MisbehavingServer("gpt-5-mini") as server:
        launch(folder, replace(more, limits=replace(more.limits, base_url=server.url)))
    assert failed(folder) == 0


@pytest.mark.parametrize("status", [409, 423, 425, 503])
async def test_t27_an_endpoint_of_such_statuses_is_down(status: int) -> None:
    with MisbehavingServer(script=lambda _: error(status, "not now")) as server:
        async with known(server, concurrency=4) as judge:
            with pytest.raises(StoppedError, match="is down"):
                for index in range(40):
                    await judge.judge(TRAIT, response(index=index))
        assert len(server.log) < 80


async def test_r22_a_thinking_judge_has_the_time_that_its_room_takes() -> None:
    """At the first cap it is cut off; with more room it takes longer than the deadline."""

    def script(seen: Seen) -> Reply | None:
        if "the sea" in seen.prompt:  # the probe
            return None
        if seen.body["max_tokens"] < 4096:
            return completion(None, finish_reason="length", usage=(100, 512, 512))
        return replace(completion("85", usage=(100, 900, 890)), delay=3.0)

    with MisbehavingServer("plain", script=script) as server:
        limits = JudgeLimits(base_url=server.url, rpm=1e6)
        judge = EndpointJudge(JudgeSettings(model="m"), limits, deadline=2.0, backoff=0.001)
        await judge.open()
        verdict = await judge.judge(TRAIT, response())
        await judge.close()
    assert (verdict.status, verdict.score, verdict.attempts) == ("scored", 85.0, 2)
    assert seconds_for({"max_tokens": 4096}) > 160


async def test_r22_what_comes_too_late_is_asked_for_a_few_times_only() -> None:
    """Each such call may be billed in full."""
    with MisbehavingServer(script=lambda _: Reply(act="hang")) as server:
        async with known(server, deadline=1.0) as judge:
            verdict = await judge.judge(TRAIT, response())
        assert (verdict.status, len(server.log)) == ("failed", 3)


def test_the_dearer_of_two_prices_is_known() -> None:
    assert find_price("gpt-4o-2024-05-13") == Price(5.0, 15.0, 5.0)
    assert find_price("gpt-4o-2024-08-06") == find_price("gpt-4o")
    price = find_price("gpt-5-mini")
    assert at_tier(price, "priority") == Price(0.5, 4.0, 0.05)
    assert at_tier(price, "flex") == at_tier(price, None) == price
    assert at_tier(None, "priority") is None


@pytest.mark.parametrize(
    "text",
    [
        "$" + " " * 20_000 + "x",
        "$" * 20_000 + "x",
        "```" + "\n" * 20_000 + "x",
        "```" + "a" * 20_000 + "x",
        "<answer>" + " " * 20_000 + "x",
        "\\boxed{" + " " * 20_000 + "x",
        "\\boxed{" + "{a}" * 7_000,
        "score" + " " * 20_000 + "a",
        "8" + "!" * 10_000 + "8" + "!" * 10_000 + "a",
        "</think" + " " * 20_000 + "x",
    ],
    ids=lambda text: text[:8],
)
def test_r20_an_answer_gone_wild_is_read_in_no_time(text: str) -> None:
    """Twenty thousand characters; at quadratic cost each would take seconds, at cubic cost hours.

    Its own processor time, of which a busy machine takes none.
    """
    from traitmill.engine.judging.reading import Answer, read_integer

    began = time.process_time()
    for ending in ("stop", "length"):
        assert read_integer(Answer(text, ending)).status in {"unparsable", "truncated"}  # type: ignore[arg-type]
    assert time.process_time() - began < 2.0
