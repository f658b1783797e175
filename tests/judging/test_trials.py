"""What gateways and odd endpoints do to a judge: no wrong score, no money that is not counted."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from tests.judging.test_endpoint import TRAIT, known, response
from tests.support.misbehaving_server import MisbehavingServer, Reply, completion, error
from traitmill.engine.errors import AccessError, StoppedError
from traitmill.engine.judging import cost
from traitmill.engine.judging.capabilities import JudgeProfile

EXPECTED = JudgeProfile(model="m", mode="expected", top_logprobs=20)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def in_choice(**fault: object) -> Reply:
    """A 200 whose choice carries a provider's error beside the text `8`."""
    reply = completion("8", finish_reason="error")
    reply.body["choices"][0]["error"] = {"message": "provider went away", **fault}
    return reply


@pytest.mark.parametrize(
    "fault",
    [{"code": 502}, {"code": "500"}, {"code": 429}, {"code": "429"}, {}],
    ids=["502", "500 in digits", "429", "429 in digits", "no code"],
)
async def test_t33_an_error_in_a_choice_is_repeated_and_never_scored(fault: dict) -> None:
    with MisbehavingServer(script=[in_choice(**fault)]) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.status, verdict.score, verdict.attempts) == ("scored", 80.0, 2)


async def test_t33_an_answer_that_ended_in_an_error_is_no_answer() -> None:
    with MisbehavingServer(script=[completion("8", finish_reason="error")]) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.status, verdict.score) == ("scored", 80.0)


@pytest.mark.parametrize(
    "reason",
    ["abort", "MAX_TOKENS", "insufficient_system_resource", "network_error", "model_length"],
)
@pytest.mark.parametrize("expected", [False, True])
async def test_t33_an_answer_that_was_broken_off_is_not_taken_for_the_whole(
    reason: str, expected: bool
) -> None:
    """The `8` of an 80: DeepSeek's, Mistral's, Gemini's and vLLM's words for what ended it."""
    tokens = [("8", {"8": 1.0})] if expected else None
    cut = completion("8", finish_reason=reason, tokens=tokens)
    whole = completion("80", finish_reason="STOP", tokens=[("80", {"80": 1.0})])
    with MisbehavingServer(script=[cut, whole]) as server:
        async with known(server) as judge:
            if expected and reason.islower() and reason != "model_length":
                judge._calls.profile = EXPECTED
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.status, verdict.score, verdict.attempts) == ("scored", 80.0, 2)


@pytest.mark.parametrize(
    "reason", ["SAFETY", "RECITATION", "sensitive", "content_filter", "error: SAFETY"]
)
async def test_t33_an_answer_that_was_held_back_is_a_refusal(reason: str) -> None:
    with MisbehavingServer(script=[completion("8", finish_reason=reason)]) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.status, verdict.score) == ("refused", None)


@pytest.mark.parametrize(
    "stated",
    [
        {"errors": [{"message": "busy", "code": 503}]},
        {"success": False, "message": "busy"},
        {"object": "error", "code": 503},
        {"choices": [{"message": {"content": "8", "error": {"code": 502}}}]},
        {"choices": [{"message": {"content": "8"}, "finish_reason": "ERROR"}]},
    ],
)
async def test_t33_an_error_anywhere_in_a_200_is_repeated(stated: dict) -> None:
    reply = completion("8")
    reply.body |= stated
    with MisbehavingServer(script=[reply]) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.status, verdict.score, verdict.attempts) == ("scored", 80.0, 2)


@pytest.mark.parametrize("status", [408, 423, 424, 425, 499])
async def test_t27_a_status_about_the_moment_is_no_refusal_of_the_text(status: int) -> None:
    with MisbehavingServer(script=[error(status, "not now")]) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.status, verdict.score, verdict.attempts) == ("scored", 80.0, 2)


@pytest.mark.parametrize("lost", [408, 499, 504, 524, "reset", "half an answer"])
async def test_a_call_that_was_taken_and_not_answered_is_paid_for_three_times_at_most(
    monkeypatch: pytest.MonkeyPatch, lost: int | str
) -> None:
    """A text that a gateway waits for in vain is thought about, and billed, at every attempt."""
    monkeypatch.setattr(cost, "load_prices", lambda _: {"m": cost.Price(10.0, 10.0, 10.0)})
    short = Reply(200, b"{}", {"content-length": "50"}, act="break off")
    replies = {"reset": Reply(act="reset"), "half an answer": short}
    reply = Reply(lost, b"<html>Time-out</html>") if isinstance(lost, int) else replies[lost]
    late = []
    with MisbehavingServer(script=lambda seen: reply if "calm" in seen.prompt else None) as server:
        async with known(server) as judge:
            monkeypatch.setattr(judge._calls.throttle, "late", lambda: late.append(1))
            verdict = await judge.judge(TRAIT, response())
            usage = judge.usage
        assert sum("calm" in seen.prompt for seen in server.log) == 3
    assert (verdict.status, verdict.attempts, usage.estimated) == ("failed", 3, 3)
    assert usage.dollars is not None
    assert usage.dollars > 3 * 512 * 10 / 1e6
    assert not late  # it says nothing of how many requests the endpoint bears


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_what_was_not_taken_is_tried_to_the_end_and_costs_nothing(status: int) -> None:
    with MisbehavingServer(script=lambda _: error(status, "down")) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
            usage = judge.usage
    assert (verdict.status, verdict.attempts) == ("failed", 8)
    assert (usage.estimated, usage.input_tokens) == (0, 0)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_t02_nothing_follows_an_endpoint_that_sends_on(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-others")
    with MisbehavingServer() as other:
        there = {"location": f"{other.url}/chat/completions"}
        with MisbehavingServer(script=lambda _: Reply(status, b"", there)) as server:
            async with known(server) as judge:
                with pytest.raises(AccessError, match=f"sends on to {other.url} .* unasked"):
                    await judge.judge(TRAIT, response())
        assert not other.log


async def test_t34_numbers_in_several_tokens_are_no_measurement_and_stop_the_judge() -> None:
    def split(_seen: object) -> Reply:
        return completion("85", tokens=[("8", {"8": 0.9, "9": 0.1}), ("5", {"5": 1.0})])

    with MisbehavingServer(script=split) as server:
        async with known(server, concurrency=1) as judge:
            judge._calls.profile = EXPECTED
            judged = [judge.judge(TRAIT, response(index=i)) for i in range(8)]
            found = await asyncio.gather(*judged, return_exceptions=True)
        asked = len(server.log)
    verdicts = [each for each in found if not isinstance(each, BaseException)]
    assert {(each.status, each.score) for each in verdicts} == {("failed", None)}
    assert any(isinstance(each, StoppedError) for each in found)
    assert "several tokens" in str(next(e for e in found if isinstance(e, StoppedError)))
    assert asked <= 8


@pytest.mark.parametrize("choices", [[], None])
async def test_t35_what_an_empty_answer_cost_is_counted_and_the_limit_holds(
    monkeypatch: pytest.MonkeyPatch, choices: list | None
) -> None:
    monkeypatch.setattr(cost, "load_prices", lambda _: {"m": cost.Price(10.0, 10.0, 10.0)})
    empty = completion("")
    empty.body["choices"] = choices
    empty.body["usage"]["prompt_tokens"] = 1000

    with MisbehavingServer(script=lambda _: empty) as server:
        async with known(server, max_cost=0.1, concurrency=2) as judge:
            judged = [judge.judge(TRAIT, response(index=i)) for i in range(40)]
            found = await asyncio.gather(*judged, return_exceptions=True)
            usage = judge.usage
        answered = len(server.log)
    assert any(isinstance(each, StoppedError) and "max_cost" in str(each) for each in found)
    assert usage.dollars == pytest.approx(answered * 1005 * 10 / 1e6)
    assert usage.dollars <= 0.11


@pytest.mark.parametrize(
    "content",
    [["8", "5"], [{"text": "85"}], {"type": "text", "text": "85"}, {"score": 85}],
    ids=["strings", "no kind", "one part", "an object"],
)
async def test_t35_text_in_other_forms_is_read_at_once(content: object) -> None:
    reply = completion("")
    reply.body["choices"][0]["message"]["content"] = content
    with MisbehavingServer(script=[reply]) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.status, verdict.score, verdict.attempts) == ("scored", 85.0, 1)


async def test_t35_text_in_parts_is_joined() -> None:
    parts = completion("")
    parts.body["choices"][0]["message"]["content"] = [
        {"type": "text", "text": "8"},
        {"type": "text", "text": "5"},
    ]
    with MisbehavingServer(script=[parts]) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.score, verdict.attempts, verdict.input_tokens) == (85.0, 1, 100)


@pytest.mark.parametrize("pause", [{}, {"retry_after": "0"}, {"retry_after": "25"}])
async def test_t26_t36_a_text_that_is_too_large_fails_alone(pause: dict[str, str]) -> None:
    def script(seen) -> Reply | None:
        if "huge" not in seen.prompt:
            return None
        said = "Request too large for m: Limit 10, Requested 20. The input must be reduced."
        return error(429, said, code="rate_limit_exceeded", **pause)

    with MisbehavingServer(script=script) as server:
        async with known(server, patience=20.0) as judge:
            texts = ["huge", *[f"text {i}" for i in range(20)]]
            judged = [judge.judge(TRAIT, response(text, i)) for i, text in enumerate(texts)]
            large, *others = await asyncio.wait_for(asyncio.gather(*judged), 15)
        asked = sum("huge" in seen.prompt for seen in server.log)
    assert (large.status, large.score) == ("failed", None)
    assert "too large" in large.error
    assert asked == 1
    assert {each.status for each in others} == {"scored"}


async def test_t36_a_text_that_is_refused_again_and_again_fails_alone() -> None:
    """A 429 that says nothing of a size, for one text only, while others are answered."""

    def script(seen) -> Reply | None:
        return error(429, "slow down", retry_after="0") if "poison" in seen.prompt else None

    with MisbehavingServer(script=script) as server:
        async with known(server, patience=60.0) as judge:
            texts = ["poison", *[f"text {i}" for i in range(200)]]
            judged = [judge.judge(TRAIT, response(text, i)) for i, text in enumerate(texts)]
            held, *others = await asyncio.wait_for(asyncio.gather(*judged), 60)
        asked = sum("poison" in seen.prompt for seen in server.log)
    assert held.status == "failed"
    assert asked < 60
    assert {each.status for each in others} == {"scored"}


async def test_t45_out_of_money_inside_a_200_stops_at_once() -> None:
    broke = Reply(200, {"error": {"code": 402, "message": "no credits"}, "choices": None}, {})
    with MisbehavingServer(script=lambda _: broke) as server:
        async with known(server) as judge:
            with pytest.raises(StoppedError, match="no quota left"):
                await judge.judge(TRAIT, response())
        assert len(server.log) == 1


OUTAGES = {
    "500": error(500, "oops"),
    "502 of a gateway": Reply(502, "<html>Bad Gateway</html>", {}),
    "504 of a gateway": Reply(504, "<html>Gateway Time-out</html>", {}),
    "connections lost": Reply(act="reset"),
    "no completion": Reply(200, "<html>We are back soon</html>", {}),
    "error in a 200": in_choice(code=503),
}


@pytest.mark.parametrize("outage", OUTAGES)
async def test_t27_an_endpoint_that_is_down_stops_the_judge_after_few_calls(outage: str) -> None:
    with MisbehavingServer(script=lambda _: OUTAGES[outage]) as server:
        async with known(server) as judge:
            judged = [judge.judge(TRAIT, response(index=i)) for i in range(40)]
            found = await asyncio.gather(*judged, return_exceptions=True)
        asked = len(server.log)
    assert {type(each) for each in found} == {StoppedError}  # no text is given up for it
    assert "is down" in str(found[0])
    assert asked < 80


async def test_t27_an_endpoint_that_is_gone_stops_the_judge_too() -> None:
    with MisbehavingServer() as server:
        address = server.url
    async with known(SimpleNamespace(url=address)) as judge:
        judged = [judge.judge(TRAIT, response(index=i)) for i in range(40)]
        found = await asyncio.wait_for(asyncio.gather(*judged, return_exceptions=True), 60)
    assert {type(each) for each in found} == {StoppedError}
    assert "no connection" in str(found[0])


@pytest.mark.parametrize("outage", OUTAGES)
async def test_t27_a_gateway_that_starts_anew_costs_no_text_and_no_run(outage: str) -> None:
    """More requests fail in one moment than make an endpoint count as down, and it comes back."""
    down = [True]

    def script(_: object) -> Reply | None:
        return OUTAGES[outage] if down[0] else None

    with MisbehavingServer(script=script, latency=0.05) as server:
        async with known(server, concurrency=64, backoff=0.1) as judge:
            judged = [
                asyncio.create_task(judge.judge(TRAIT, response(index=i))) for i in range(200)
            ]
            while not judge._calls.throttle.one_at_a_time:
                await asyncio.sleep(0.001)
            down[0] = False
            found = await asyncio.wait_for(asyncio.gather(*judged), 60)
        asked = len(server.log)
    assert {each.status for each in found} == {"scored"}
    # What may fail: what makes it count as down, what was under way then, and its trials.
    assert asked <= 200 + 24 + 64 + 5


async def test_t27_requests_go_side_by_side_again_once_one_is_answered() -> None:
    script = [error(500, "oops")] * 24
    with MisbehavingServer(script=script, latency=0.05) as server:
        async with known(server, concurrency=24) as judge:
            judged = [judge.judge(TRAIT, response(index=i)) for i in range(120)]
            most = 0
            tasks = asyncio.gather(*judged)
            while not tasks.done():
                if len(server.log) > 60:
                    most = max(most, judge._calls.throttle.in_flight)
                await asyncio.sleep(0.005)
            found = await tasks
    assert {each.status for each in found} == {"scored"}
    assert most > 6
