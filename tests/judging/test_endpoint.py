"""The remote judge against a server that misbehaves: real client, real HTTP over loopback."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.support.misbehaving_server import MisbehavingServer, Reply, completion, error
from traitmill.engine.errors import AccessError, StoppedError, UsageError
from traitmill.engine.judging import cost
from traitmill.engine.judging.capabilities import (
    CAP,
    RAISED_CAP,
    JudgeProfile,
    judge_key,
    plain_request,
)
from traitmill.engine.judging.endpoint import EndpointJudge
from traitmill.engine.records import TEXT_ALONE, Response, Sample
from traitmill.engine.settings import JudgeLimits, JudgeSettings
from traitmill.engine.storage import row_table, verdict_row
from traitmill.engine.traits.definition import Trait

TRAIT = Trait(
    "calm",
    (("be calm", "be wild"),),
    ("How?",),
    "How calm is this?\nQ: {question}\nA: {answer}\nNumber:",
)
KEY = "sk-live-0123456789abcdefSECRET"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def response(text="so calm", index=0):
    sample = Sample(
        "calm", f"{index:032x}", "pos", 0, 0, index, "be calm", "How?", "be calm\n\nHow?", (1, 2), 7
    )
    return Response(sample, "ok", text, (3, 4), "stop")


@asynccontextmanager
async def opened(
    server,
    model="gpt-5-mini",
    mode="auto",
    *,
    profile=None,
    deadline=30.0,
    backoff=0.001,
    events=None,
    **limits,
):
    limits = {"rpm": 1e6, **limits}
    judge = EndpointJudge(
        JudgeSettings(model=model, mode=mode),
        JudgeLimits(base_url=server.url, **limits),
        profile=profile,
        on_event=(lambda _: None) if events is None else events.append,
        deadline=deadline,
        backoff=backoff,
    )
    try:
        await judge.open()
        yield judge
    finally:
        await judge.close()


LITELLM = (
    "litellm.BadRequestError: litellm.ContentPolicyViolationError: AzureException - The response "
    "was filtered due to the prompt triggering Azure OpenAI's content management policy."
)
PROFILE = JudgeProfile(model="m", top_logprobs=0)
"""Integer answers by schema, temperature accepted: what most tests need, without a probe."""


def known(server, **options):
    return opened(server, "m", profile=PROFILE, **options)


# --- profiles ---


@pytest.mark.parametrize(
    ("persona", "model", "calls", "mode", "effort"),
    [
        ("gpt-5-mini", "gpt-5-mini", 1, "integer", "minimal"),
        ("gpt-5-mini", "a-reasoner-nobody-knows", 3, "integer", "minimal"),
        ("gpt-5.1", "gpt-5.1", 1, "integer", "none"),
        ("gpt-5.1", "a-reasoner-nobody-knows", 4, "integer", "none"),
        ("gpt-4.1-mini", "gpt-4.1-mini", 1, "expected", None),
        ("vllm-small", "HuggingFaceTB/SmolLM2", 2, "integer", None),
        ("plain", "old", 2, "integer", None),
    ],
)
async def test_no_call_is_wasted_after_the_probe(persona, model, calls, mode, effort):
    with MisbehavingServer(persona) as server:
        async with opened(server, model) as judge:
            probed = len(server.log)
            verdicts = await asyncio.gather(
                *(judge.judge(TRAIT, response(index=i)) for i in range(20))
            )
        assert probed == calls
        assert server.statuses[probed:] == [200] * 20
        assert judge.usage.attempts == calls + 20
    assert {v.status for v in verdicts} == {"scored"}
    assert {v.mode for v in verdicts} == {mode}
    assert {v.score for v in verdicts} == {77.5 if mode == "expected" else 80.0}
    assert {v.attempts for v in verdicts} == {1}
    assert all(seen.body.get("reasoning_effort") == effort for seen in server.log[probed:])
    prompts = {seen.prompt for seen in server.log[probed:]}
    filled = "How calm is this?\nQ: How?\nA: so calm\nNumber:"
    assert prompts == {filled if persona != "plain" else f"{filled}\n\n{plain_request()}"}


async def test_a_profile_survives_json_and_saves_the_probe():
    with MisbehavingServer("gpt-4.1-mini") as server:
        async with opened(server, "gpt-4.1-mini") as judge:
            profile = await judge.open()
        before, listed = len(server.log), server.listed
        stored = JudgeProfile.from_json(json.loads(json.dumps(profile.as_json())))
        assert stored == profile
        async with opened(server, "gpt-4.1-mini", profile=stored) as judge:
            assert len(server.log) == before
            assert server.listed == listed + 1
            assert (await judge.judge(TRAIT, response())).mode == "expected"


async def test_a_stored_profile_that_no_longer_fits_mends_itself_once():
    stored = JudgeProfile(
        model="m", top_logprobs=0
    )  # temperature and max_tokens, which this model rejects
    with MisbehavingServer("gpt-5-mini") as server:
        async with opened(server, "m", profile=stored, concurrency=1) as judge:
            verdicts = [await judge.judge(TRAIT, response(index=i)) for i in range(5)]
        assert server.statuses == [400, 400, 200, 200, 200, 200, 200]
    assert [v.score for v in verdicts] == [80.0] * 5
    assert verdicts[0].attempts == 3


async def test_a_stored_profile_never_changes_the_measurement():
    stored = JudgeProfile(
        model="m", mode="expected", cap_name="max_completion_tokens", temperature=False
    )
    with MisbehavingServer("gpt-5-mini") as server:
        async with opened(server, "m", profile=stored) as judge:
            with pytest.raises(StoppedError, match="refuses a plain question.*'logprobs' is not"):
                await judge.judge(TRAIT, response())
            assert judge._calls.profile.mode == "expected"


async def test_log_probabilities_that_no_longer_come_leave_the_item_to_the_next_run():
    stored = JudgeProfile(model="m", mode="expected")
    with MisbehavingServer("plain") as server:
        async with opened(server, "m", profile=stored) as judge:
            verdict = await judge.judge(TRAIT, response())
        assert len(server.log) == 1
    assert (verdict.status, verdict.score, verdict.raw) == ("failed", None, "80")


async def test_log_probabilities_that_stay_away_stop_the_judge_before_all_is_paid_for():
    stored = JudgeProfile(model="m", mode="expected")
    with MisbehavingServer("plain") as server:
        async with opened(server, "m", profile=stored, concurrency=1) as judge:
            results = await asyncio.gather(
                *(judge.judge(TRAIT, response(index=i)) for i in range(30)), return_exceptions=True
            )
        assert len(server.log) == 5
    assert {each.status for each in results[:4]} == {"failed"}
    assert {type(each) for each in results[4:]} == {StoppedError}
    assert "`judge_mode` integer" in str(results[4])


@pytest.mark.parametrize(
    ("begun", "asked"), [("integer", "auto"), ("expected", "auto"), ("expected", "expected")]
)
async def test_a_verdict_set_goes_on_in_the_measurement_it_was_begun_with(begun, asked):
    with MisbehavingServer("gpt-4.1-mini") as server:
        judge = EndpointJudge(
            JudgeSettings(model="m", mode=asked),
            JudgeLimits(base_url=server.url, rpm=1e6),
            mode=begun,
        )
        assert (await judge.open()).mode == begun
        assert (await judge.judge(TRAIT, response())).mode == begun
        await judge.close()


async def test_a_verdict_set_of_expectations_is_not_continued_with_integers():
    with MisbehavingServer("gpt-5-mini") as server:
        judge = EndpointJudge(
            JudgeSettings(model="gpt-5-mini"),
            JudgeLimits(base_url=server.url, rpm=1e6),
            mode="expected",
        )
        with pytest.raises(
            UsageError, match="verdict set was measured so elsewhere.*`judge_mode` integer"
        ):
            await judge.open()
        await judge.close()


async def test_a_rejection_of_one_text_changes_nothing_for_the_others():
    """The message is OpenAI's own; it holds the name of a parameter by chance."""
    message = (
        "Invalid prompt: your prompt was flagged as potentially violating our usage policy. Please "
        "try again with a "
        "different prompt: https://platform.openai.com/docs/guides/reasoning#advice-on-prompting"
    )
    for code, status in (("invalid_prompt", "refused"), (None, "failed")):
        flagged = error(400, message, code=code)
        with MisbehavingServer(
            "gpt-5-mini", script=lambda seen, r=flagged: r if "odd" in seen.prompt else None
        ) as server:
            async with opened(server, concurrency=1) as judge:
                bad = await judge.judge(TRAIT, response("odd"))
                good = await judge.judge(TRAIT, response())
            assert server.log[-1].body["reasoning_effort"] == "minimal"
            assert len(server.log) == 3
        assert (bad.status, bad.score, bad.attempts) == (status, None, 1)
        assert good.status == "scored"


async def test_a_form_is_kept_only_once_it_was_answered():
    """One text is rejected in every form, by a message that names a parameter as one."""
    no = error(
        400,
        "Unsupported parameter: 'temperature' is not supported with this model.",
        param="temperature",
    )
    with MisbehavingServer(
        "gpt-4.1-mini", script=lambda seen: no if "odd" in seen.prompt else None
    ) as server:
        async with known(server, concurrency=1) as judge:
            bad = await judge.judge(TRAIT, response("odd"))
            good = await judge.judge(TRAIT, response())
        assert "temperature" in server.log[-1].body
        assert len(server.log) == 4  # two forms, a plain question, the other text
    assert (bad.status, bad.attempts, good.status) == ("failed", 2, "scored")


AZURE = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
    "'max_completion_tokens' instead.",
    "temperature": "Unsupported value: 'temperature' does not support 0 with this model. Only the "
    "default (1) value is supported.",
}


@pytest.mark.parametrize("names_it", [True, False], ids=["with param", "in words alone"])
@pytest.mark.parametrize("known_before", [True, False])
async def test_r16_a_parameter_that_azure_refuses_is_left_out(names_it, known_before):
    def azure(seen):
        for name, message in AZURE.items():
            if name in seen.body:
                param = name if names_it else None
                return error(400, message, code="unsupported_parameter", param=param)
        return None

    with MisbehavingServer("plain", script=azure) as server:
        judging = known(server) if known_before else opened(server, "my-deployment")
        async with judging as judge:
            verdicts = [await judge.judge(TRAIT, response(index=i)) for i in range(5)]
        assert server.log[-1].body.keys().isdisjoint(AZURE)
        refused = sum(seen.status == 400 for seen in server.log)
    assert {verdict.status for verdict in verdicts} == {"scored"}
    assert refused <= 3


@pytest.mark.parametrize("profile", [None, PROFILE])
async def test_a_server_that_rejects_every_form_is_not_asked_for_ever(profile):
    message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    no = error(400, message, code="unsupported_parameter")
    with MisbehavingServer(script=lambda _: no) as server:
        if profile is None:
            with pytest.raises(AccessError, match="cannot be used"):
                async with opened(server, "m"):
                    pass
        else:
            async with known(server) as judge:
                with pytest.raises(StoppedError, match="refuses a plain question"):
                    await judge.judge(TRAIT, response())
        assert len(server.log) <= 8


@pytest.mark.parametrize(
    ("persona", "why"), [("gpt-5-mini", "no log-prob"), ("vllm-small", "100 as one token")]
)
async def test_a_forced_mode_that_cannot_be_had_is_refused(persona, why):
    with MisbehavingServer(persona) as server:
        with pytest.raises(UsageError, match=f"`judge_mode` expected.*{why}"):
            async with opened(server, persona, "expected"):
                pass
        async with opened(server, persona, "integer") as judge:
            assert (await judge.judge(TRAIT, response())).mode == "integer"


async def test_a_probe_answer_in_the_schema_may_begin_with_white_space():
    with MisbehavingServer(
        script=[completion(' \n{"score": 90}'), None], persona="gpt-5-mini"
    ) as server:
        async with opened(server) as judge:
            await judge.judge(TRAIT, response())
        assert all("response_format" in seen.body for seen in server.log)


async def test_a_server_that_rejects_without_saying_why_is_asked_plainly():
    def fussy(seen):
        extras = set(seen.body) - {"model", "messages", "max_tokens"}
        return error(400, "Bad request") if extras else completion("80")

    with MisbehavingServer(script=fussy) as server:
        async with opened(server, "m") as judge:
            verdict = await judge.judge(TRAIT, response())
        assert server.statuses == [400, 400, 400, 200, 200]
    assert verdict.score == 80.0


NAMELESS = {
    "a schema that is not taken": lambda body: "response_format" in body,
    "log-probabilities that are not taken": lambda body: "logprobs" in body,
    "neither": lambda body: body.keys() & {"response_format", "logprobs"},
    "a name of the limit": lambda body: "max_tokens" not in body,
}


@pytest.mark.parametrize("refused", NAMELESS)
async def test_a_complaint_that_names_nothing_leaves_temperature_0(refused):
    """Without it verdicts are sampled: it is the last thing to go, and that is said."""
    events = []
    with MisbehavingServer(
        "plain",
        script=lambda seen: error(400, "Bad request") if NAMELESS[refused](seen.body) else None,
    ) as server:
        async with opened(server, "m", events=events) as judge:
            if refused == "a name of the limit":  # as for OpenAI's own address
                judge._calls.known = False
                judge._calls.profile = JudgeProfile(model="m", cap_name="max_completion_tokens")
                await judge.open()
            assert (await judge.judge(TRAIT, response())).status == "scored"
        assert server.log[-1].body["temperature"] == 0
    assert events == []


@pytest.mark.parametrize("profile", [None, PROFILE], ids=["at the probe", "during the run"])
async def test_a_temperature_that_is_given_up_is_said_once(profile):
    events = []
    with MisbehavingServer("gpt-5-mini") as server:
        async with opened(server, "m", profile=profile, events=events, concurrency=1) as judge:
            for index in range(3):
                await judge.judge(TRAIT, response(index=index))
    assert len(events) == 1
    assert "takes no temperature 0: its verdicts are sampled" in events[0]


async def test_a_model_of_whose_family_the_others_reason_is_told_by_what_it_refuses():
    """gpt-5-chat-latest takes temperature 0 and no effort; one name of the limit says nothing."""

    def chat(seen):
        for name in ("reasoning_effort", "max_tokens"):
            if name in seen.body:
                return error(400, f"Unsupported parameter: '{name}' is not supported.", param=name)
        return None

    for profile in (None, JudgeProfile(model="gpt-5-chat-latest", top_logprobs=0)):
        with MisbehavingServer("plain", script=chat) as server:
            async with opened(server, "gpt-5-chat-latest", profile=profile) as judge:
                assert (await judge.judge(TRAIT, response())).status == "scored"
            body = server.log[-1].body
        assert (body["temperature"], body["max_completion_tokens"]) == (0, CAP)
        assert "reasoning_effort" not in body


@pytest.mark.parametrize(
    ("said", "allowed"),
    [
        ("Requested sample logprobs of 20, which is greater than max allowed: 5", 5),
        ("logprobs must be between 0 and 8", 8),
        ("top_logprobs: Input should be less than or equal to 10", 10),
        ("Invalid value: 'top_logprobs' is too large, the maximum value is 6.", 6),
        ("top_logprobs is too large", 5),
        ("Requested sample logprobs of 20, which is greater than max allowed: 1", 0),
        ("logprobs are not supported", 0),
    ],
)
async def test_as_many_log_probabilities_are_asked_for_as_are_allowed(said, allowed):
    def limited(seen):
        many = seen.body.get("top_logprobs", 0) > allowed
        return (
            error(400, said, code="400", param="logprobs" if "sample" in said else None)
            if many
            else None
        )

    with MisbehavingServer("gpt-4.1-mini", script=limited) as server:
        async with opened(server, "Qwen/Q") as judge:
            verdict = await judge.judge(TRAIT, response())
        assert server.log[-1].body.get("top_logprobs", 0) == allowed
        assert server.statuses == [400, 200, 200]
    assert verdict.mode == ("expected" if allowed else "integer")


# --- faults ---


async def test_f03_nothing_is_sent_before_retry_after_ends():
    limited = error(429, "slow down", code="rate_limit_exceeded", retry_after="0.6")
    with MisbehavingServer(script=[None, None, limited]) as server:
        async with known(server, concurrency=1) as judge:
            verdicts = await asyncio.gather(
                *(judge.judge(TRAIT, response(index=i)) for i in range(12))
            )
        reopened = server.log[2].answered_at + 0.6
        assert server.statuses == [200, 200, 429, *[200] * 10]
        assert all(seen.at >= reopened for seen in server.log[3:])
    assert {v.status for v in verdicts} == {"scored"}
    assert sorted(v.attempts for v in verdicts) == [1] * 11 + [2]


async def test_f03_one_gate_for_all_tasks():
    limited = error(429, "slow down", code="rate_limit_exceeded", retry_after="0.6")
    with MisbehavingServer(latency=0.05) as server:
        # All eight are under way before the first is answered.
        held = replace(limited, held=lambda: len(server.log) < 8)
        server._script = lambda _: held if len(server.log) <= 8 else None
        async with known(server, concurrency=8) as judge:
            verdicts = await asyncio.gather(
                *(judge.judge(TRAIT, response(index=i)) for i in range(30))
            )
        flown = [seen for seen in server.log if seen.status == 429]
        last = max(seen.answered_at for seen in flown)
        assert all(seen.at >= last + 0.6 for seen in server.log if seen.status == 200)
        assert len(server.log) == 38
    assert {v.status for v in verdicts} == {"scored"}


async def test_f04_a_wait_of_minutes_is_counted_down():
    limited = error(429, "slow down", code="rate_limit_exceeded", retry_after="125")
    events = []
    with MisbehavingServer(script=[limited]) as server:
        async with known(server, events=events, patience=600) as judge:
            task = asyncio.create_task(judge.judge(TRAIT, response()))
            while not events:
                await asyncio.sleep(0.01)
            await asyncio.wait([task], timeout=0.5)
            assert not task.done()
            task.cancel()
        assert server.statuses == [429]
    assert events == ["the judge asked for a pause: going on in 2 min 5 s"]


async def test_f04_beyond_patience_it_stops_resumably():
    limited = error(429, "slow down", code="rate_limit_exceeded", retry_after="7200")
    with MisbehavingServer(script=[None, limited]) as server:
        async with known(server, patience=60, concurrency=1) as judge:
            results = await asyncio.gather(
                *(judge.judge(TRAIT, response(index=i)) for i in range(10)), return_exceptions=True
            )
        assert server.statuses == [200, 429]
    assert results[0].status == "scored"
    assert {type(each) for each in results[1:]} == {StoppedError}
    assert "2 h 0 min, longer than `judge_patience` 60" in str(results[1])


async def test_f04_many_short_waits_add_up():
    limited = error(429, "slow down", code="rate_limit_exceeded", retry_after="0.2")
    with MisbehavingServer(script=lambda _: limited) as server:
        async with known(server, patience=0.5) as judge:
            with pytest.raises(StoppedError, match="`judge_patience`"):
                await judge.judge(TRAIT, response())
        assert set(server.statuses) == {429}
        assert len(server.log) <= 4


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{}",
        b"\x00" * 100,
    ],
    ids=["nothing", "another protocol", "half an answer", "zeros"],
)
async def test_f06_what_is_no_http_counts_as_no_connection(bytes_sent):
    async def babble(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(bytes_sent)
        writer.close()

    babbling = await asyncio.start_server(babble, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{babbling.sockets[0].getsockname()[1]}/v1"
    judge = EndpointJudge(JudgeSettings(model="m"), JudgeLimits(base_url=url), backoff=0.001)
    with pytest.raises(
        AccessError, match=r"cannot be used \((no connection|the connection was lost): .+\)"
    ):
        await judge.open()
    await judge.close()
    babbling.close()


@pytest.mark.parametrize(
    "fault",
    [
        error(429, "You exceeded your current quota", code="insufficient_quota"),
        error(429, "You exceeded your current quota", code="insufficient_quota", retry_after="1"),
        error(402, "Insufficient Balance"),
    ],
)
async def test_f05_no_quota_stops_at_once_and_for_good(fault):
    with MisbehavingServer(script=[None, *[fault] * 50]) as server:
        async with known(server, concurrency=1) as judge:
            first = await judge.judge(TRAIT, response())
            results = await asyncio.gather(
                *(judge.judge(TRAIT, response(index=i)) for i in range(20)), return_exceptions=True
            )
            sent = len(server.log)
            with pytest.raises(StoppedError, match=r"no quota left: add credit.*same command"):
                await judge.judge(TRAIT, response())
        assert sent == len(server.log) == 2
    assert first.status == "scored"
    assert {type(each) for each in results} == {StoppedError}


async def test_f06_server_errors_are_retried_without_cutting_concurrency():
    faults = [
        error(500, "oops"),
        error(503, "busy"),
        error(408, "late"),
        Reply(act="reset"),
        Reply(502, b"<html>"),
    ]
    with MisbehavingServer(script=faults) as server:
        async with known(server) as judge:
            window, pace = judge._calls.throttle.window, judge._calls.throttle.pace
            verdicts = await asyncio.gather(
                *(judge.judge(TRAIT, response(index=i)) for i in range(5))
            )
            assert (judge._calls.throttle.window, judge._calls.throttle.pace) == (window, pace)
        assert len(server.log) == 10
    assert [v.score for v in verdicts] == [80.0] * 5
    assert sum(v.attempts for v in verdicts) == 10


@pytest.mark.parametrize("status", [500, 502, 503, 529])
async def test_f06_a_pause_that_a_server_error_asks_for_is_kept(status):
    busy = error(status, "busy", retry_after="0.5")
    with MisbehavingServer(script=[None, busy]) as server:
        async with known(server, concurrency=1) as judge:
            await asyncio.gather(*(judge.judge(TRAIT, response(index=i)) for i in range(6)))
        assert all(seen.at >= server.log[1].answered_at + 0.5 for seen in server.log[2:])
        assert server.statuses == [200, status, *[200] * 5]


async def test_f04_any_word_but_a_pause_renews_the_patience():
    pause = error(429, "slow down", code="rate_limit_exceeded", retry_after="0.3")
    long = error(400, "too long")
    with MisbehavingServer(script=[pause, long, pause, long, pause]) as server:
        async with known(server, patience=0.5, concurrency=1) as judge:
            statuses = [(await judge.judge(TRAIT, response(index=i))).status for i in range(3)]
        assert server.statuses == [429, 400, 429, 400, 429, 200]
    assert statuses == ["failed", "failed", "scored"]


async def test_f06_an_endless_server_error_fails_that_item_alone():
    def broken(seen):
        return error(500, "oops") if "poison" in seen.prompt else None

    with MisbehavingServer(script=broken) as server:
        async with known(server) as judge:
            bad, good = await asyncio.gather(
                judge.judge(TRAIT, response("poison")), judge.judge(TRAIT, response())
            )
    assert (bad.status, bad.score, bad.attempts) == ("failed", None, 8)
    assert bad.error == f"{TEXT_ALONE}HTTP 500: oops"
    assert "oops" in bad.raw
    assert good.status == "scored"


async def test_f06_a_refused_connection_is_named_at_the_start():
    with MisbehavingServer() as server:
        url = server.url
    judge = EndpointJudge(JudgeSettings(model="m"), JudgeLimits(base_url=url), backoff=0.001)
    with pytest.raises(AccessError, match=rf"judge m at {url} is not ready \(no connection"):
        await judge.open()
    await judge.close()


async def test_a_server_that_is_still_loading_is_waited_for():
    """llama.cpp and vLLM behind a proxy say 503 until the model is there."""
    loading = error(503, "Loading model")
    with MisbehavingServer(script=[loading] * 6) as server:
        async with opened(server) as judge:
            assert (await judge.judge(TRAIT, response())).status == "scored"
        assert server.statuses == [503] * 6 + [200, 200]
    with MisbehavingServer(script=lambda _: loading) as server:
        with pytest.raises(
            AccessError, match=r"is not ready \(HTTP 503: Loading.*start it, or run"
        ):
            async with opened(server):
                pass
        assert server.statuses == [503] * 8


async def test_a_server_that_is_not_up_yet_is_waited_for_half_a_minute_at_most(monkeypatch):
    with MisbehavingServer() as server:
        url = server.url
    judge = EndpointJudge(JudgeSettings(model="m"), JudgeLimits(base_url=url))
    pauses = []

    async def pause(seconds):
        pauses.append(seconds)

    monkeypatch.setattr(judge._calls.throttle, "pause", pause)
    with pytest.raises(AccessError, match="is not ready"):
        await judge.open()
    await judge.close()
    assert pauses == [0.5, 1, 2, 4, 8, 8, 8]


@pytest.mark.parametrize("status", [500, 502])
async def test_what_fails_at_opening_for_another_reason_is_named_at_once(status):
    with MisbehavingServer(script=lambda _: error(status, "oops")) as server:
        with pytest.raises(AccessError, match="cannot be used"):
            async with opened(server):
                pass
        assert len(server.log) == 3


async def test_f07_a_call_that_never_answers_is_given_up_and_repeated():
    with MisbehavingServer(script=[Reply(act="hang")] * 3) as server:
        async with known(server, deadline=2.0) as judge:
            verdicts = await asyncio.gather(
                *(judge.judge(TRAIT, response(index=i)) for i in range(6))
            )
            usage = judge.usage
        assert len(server.log) == 9
    assert [v.status for v in verdicts] == ["scored"] * 6
    assert sum(v.attempts for v in verdicts) == 9
    # What never came may be billed all the same: it is estimated beside the six that tell.
    assert usage.estimated == 3
    assert usage.input_tokens > 6 * 100
    assert usage.output_tokens > 6 * 5


async def test_f07_each_call_that_comes_too_late_is_told_to_the_line(monkeypatch):
    late = []
    with MisbehavingServer(
        script=[Reply(act="hang"), error(500, "oops"), error(502, "oops"), Reply(act="hang")]
    ) as server:
        async with known(server, deadline=2.0, concurrency=1) as judge:
            monkeypatch.setattr(judge._calls.throttle, "late", lambda: late.append(len(server.log)))
            assert (await judge.judge(TRAIT, response())).attempts == 5
    assert late == [1, 4]


async def test_f07_a_call_that_trickles_is_given_up_too():
    """A timeout between two reads would never end this one."""

    async def trickle(_, writer):
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n"
        )
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.02)

    trickling = await asyncio.start_server(trickle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{trickling.sockets[0].getsockname()[1]}/v1"
    judge = EndpointJudge(
        JudgeSettings(model="m"), JudgeLimits(base_url=url), deadline=0.3, backoff=0.001
    )
    with pytest.raises(AccessError, match="no answer within"):
        await judge.open()
    await judge.close()
    trickling.close()


BROKEN_BODIES = [
    b"<html>Bad gateway</html>",
    b"",
    b'{"choices": null}',
    b'{"choices": []}',
    b'{"choices": [{"message": null}]}',
    b'{"choices": [{"message": {"content": true}}]}',
    b'{"error": {"message": "upstream"}}',
    b"[1]",
    b"\xff\xfe",
    b'{"choices": [{"message": {"content": "{\\"score',
]


@pytest.mark.parametrize("body", BROKEN_BODIES)
async def test_f08_a_body_that_is_no_answer_is_retried_then_failed_with_its_text(body):
    with MisbehavingServer(script=[Reply(200, body)] * 2) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
        assert (verdict.status, verdict.score, verdict.attempts) == ("scored", 80.0, 3)
    with MisbehavingServer(script=lambda _: Reply(200, body)) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.status, verdict.score, verdict.attempts) == ("failed", None, 8)
    assert verdict.raw == body.decode(errors="replace")
    assert verdict.error.removeprefix(TEXT_ALONE) in (
        "the endpoint's 200 holds no chat completion",
        "HTTP 502: upstream",
    )


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "1000", '"x"', "null"])
async def test_f08_log_probabilities_that_are_none_are_no_answer(number):
    body = (
        '{"choices": [{"message": {"content": "80"}, "finish_reason": "stop", "logprobs": {"content": '
        '[{"token": "80", "logprob": -0.1, "top_logprobs": [{"token": "80", "logprob": NUMBER}]}]}}]}'
    ).replace("NUMBER", number)
    with MisbehavingServer("gpt-4.1-mini", script=[Reply(200, body.encode())]) as server:
        async with opened(server, "m", profile=JudgeProfile(model="m", mode="expected")) as judge:
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.status, verdict.score, verdict.attempts) == ("scored", 77.5, 2)


@pytest.mark.parametrize(
    "number", ["NaN", "1e999", "-1e999", "-Infinity", '"NaN"', '"-Infinity"', "null"]
)
async def test_an_alternative_without_a_probability_spoils_no_answer(number):
    """Eight attempts were paid for, and the text had no verdict."""
    listed = f'{{"token": "80", "logprob": -0.1}}, {{"token": "81", "logprob": {number}}}'
    body = (
        '{"choices": [{"message": {"content": "80"}, "finish_reason": "stop", "logprobs": '
        '{"content": [{"token": "80", "logprob": -0.1, "top_logprobs": [LISTED]}]}}]}'
    ).replace("LISTED", listed)
    with MisbehavingServer(script=[Reply(200, body.encode())]) as server:
        async with opened(server, "m", profile=JudgeProfile(model="m", mode="expected")) as judge:
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.status, verdict.score, verdict.attempts) == ("scored", 80.0, 1)


@pytest.mark.parametrize(
    "number", ["1e999", "-1e999", "-5", "NaN", "9e99", "1" * 400, '"many"', "null", "[]", "true"]
)
async def test_counts_that_are_none_are_not_counted(number):
    body = (
        '{"choices": [{"message": {"content": "80"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": NUMBER, '
        '"completion_tokens": NUMBER, "completion_tokens_details": NUMBER}}'
    ).replace("NUMBER", number)
    with MisbehavingServer(script=[Reply(200, body.encode())]) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
            usage = judge.usage
    assert (verdict.status, verdict.score, verdict.input_tokens) == ("scored", 80.0, 0)
    assert (usage.estimated, usage.output_tokens) == (1, 1)


@pytest.mark.parametrize(
    "text", ["85/10", "150", "I would say 85, since it is calm.", '{"score": 850}']
)
async def test_f09_an_unreadable_answer_is_asked_about_once(text):
    with MisbehavingServer(script=[completion(text)]) as server:
        async with known(server) as judge:
            mended = await judge.judge(TRAIT, response())
        again = server.log[1].body["messages"]
    assert (mended.status, mended.score, mended.attempts) == ("scored", 80.0, 2)
    assert [message["role"] for message in again] == ["user", "assistant", "user"]
    assert again[1]["content"] == text
    assert again[2]["content"] == plain_request()

    with MisbehavingServer(script=lambda _: completion(text)) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.status, verdict.score, verdict.raw, verdict.attempts) == (
        "unparsable",
        None,
        text,
        2,
    )
    assert (verdict.input_tokens, verdict.output_tokens) == (200, 10)  # both calls were paid for


@pytest.mark.parametrize(
    ("answer", "raw"),
    [
        (completion("REFUSAL"), "REFUSAL"),
        (completion(None, refusal="I can't rate this."), "I can't rate this."),
        (completion("", finish_reason="content_filter"), ""),
        (completion('{"score": null}'), '{"score": null}'),
        (error(400, "The prompt was filtered", code="content_filter"), "The prompt was filtered"),
        (error(400, LITELLM, code="400"), LITELLM),
        (
            Reply(
                403,
                {
                    "error": {
                        "code": 403,
                        "message": "Flagged",
                        "metadata": {"reasons": ["x"], "flagged_input": "t"},
                    }
                },
            ),
            "Flagged",
        ),
    ],
)
async def test_f10_a_refusal_concerns_that_item_alone(answer, raw):
    with MisbehavingServer(
        script=lambda seen: answer if "touchy" in seen.prompt else None
    ) as server:
        async with known(server) as judge:
            refused, good = await asyncio.gather(
                judge.judge(TRAIT, response("touchy")), judge.judge(TRAIT, response())
            )
    assert (refused.status, refused.score, refused.raw, refused.attempts) == (
        "refused",
        None,
        raw,
        1,
    )
    assert (good.status, good.score) == ("scored", 80.0)


async def test_f10_any_other_rejection_fails_that_item_without_a_retry():
    def fussy(seen):
        return (
            error(400, "maximum context length is 2048 tokens, reduce max_tokens")
            if "long" in seen.prompt
            else None
        )

    with MisbehavingServer(script=fussy) as server:
        async with known(server) as judge:
            bad, good = await asyncio.gather(
                judge.judge(TRAIT, response("long")), judge.judge(TRAIT, response())
            )
    assert (bad.status, bad.attempts) == ("failed", 1)
    assert "maximum context length" in bad.error
    assert good.status == "scored"


@pytest.mark.parametrize("status", [403, 404])
async def test_f10_an_answer_that_denies_one_text_ends_no_judging(status):
    denied = Reply(status, b"<html>Forbidden</html>")
    with MisbehavingServer(
        script=lambda seen: denied if "touchy" in seen.prompt else None
    ) as server:
        async with known(server, concurrency=1) as judge:
            verdicts = [
                await judge.judge(TRAIT, response(text)) for text in ["touchy", "mild", "mild"] * 8
            ]
    assert [v.status for v in verdicts] == [
        "failed",
        "scored",
        "scored",
    ] * 8  # what failed is owed first by the next run
    assert str(status) in verdicts[0].error


@pytest.mark.parametrize("status", [403, 404])
async def test_f05_what_is_denied_over_and_over_ends_all_judging(status):
    with MisbehavingServer(script=[None, *[Reply(status, b"no")] * 50]) as server:
        async with known(server, concurrency=1) as judge:
            assert (await judge.judge(TRAIT, response())).status == "scored"
            for _ in range(4):
                assert (await judge.judge(TRAIT, response())).status == "failed"
            for _ in range(3):
                with pytest.raises(AccessError):
                    await judge.judge(TRAIT, response())
        assert len(server.log) == 6


async def test_f05_an_error_sent_as_200_counts_as_what_it_says():
    broke = Reply(200, {"error": {"code": 402, "message": "Insufficient credits"}})
    with MisbehavingServer(script=[None, *[broke] * 20]) as server:
        async with known(server, concurrency=1) as judge:
            await judge.judge(TRAIT, response())
            with pytest.raises(StoppedError, match="no quota left"):
                await judge.judge(TRAIT, response())
        assert len(server.log) == 2


async def test_f03_a_pause_that_the_list_of_models_asks_for_is_kept():
    with MisbehavingServer() as server:
        server.list_faults.append(Reply(429, b"", {"Retry-After": "0.7"}))
        start = time.monotonic()
        async with known(server) as judge:
            assert (await judge.judge(TRAIT, response())).status == "scored"
        assert server.listed == 1
        assert server.log[0].at >= start + 0.7


async def test_f08_token_counts_beyond_belief_are_not_believed():
    with MisbehavingServer(
        script=lambda _: completion("8 or so", usage=(2**31, 2**31, 0))
    ) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
        assert judge.usage.estimated == 2
    assert row_table("verdicts", [verdict_row(verdict)])["input_tokens"][0].as_py() < 2**20


async def test_f11_an_answer_cut_off_gets_more_room_once():
    cut = completion("", finish_reason="length", usage=(100, CAP, CAP))
    with MisbehavingServer(script=[cut]) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
        assert [seen.body["max_tokens"] for seen in server.log] == [CAP, RAISED_CAP]
    assert (verdict.status, verdict.score, verdict.attempts) == ("scored", 80.0, 2)
    assert (verdict.output_tokens, verdict.hidden_tokens) == (CAP + 5, CAP)

    with MisbehavingServer(script=lambda _: cut) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
        assert len(server.log) == 2
    assert (verdict.status, verdict.score) == ("truncated", None)


async def test_f11_where_answers_are_often_cut_the_room_is_asked_for_at_once():
    def reasoner(seen):
        return completion("", finish_reason="length") if seen.body["max_tokens"] == CAP else None

    with MisbehavingServer(script=reasoner) as server:
        async with known(server, concurrency=1) as judge:
            for index in range(30):
                assert (await judge.judge(TRAIT, response(index=index))).status == "scored"
    assert [seen.body["max_tokens"] for seen in server.log[-25:]] == [RAISED_CAP] * 25


async def test_room_that_the_endpoint_refuses_is_not_the_texts_fault():
    """vLLM with a short --max-model-len: after two answers cut off every text was given up."""

    def short(seen):
        cap = seen.body["max_tokens"]
        if cap > 2048:
            return error(400, f"max_tokens={cap} cannot be greater than max_model_len=2048.")
        cut = int(re.search(r"A: t(\d+)", seen.prompt)[1]) % 3 == 0
        return completion("", finish_reason="length") if cut else None

    with MisbehavingServer(script=short) as server:
        async with known(server, concurrency=1) as judge:
            found = [await judge.judge(TRAIT, response(f"t{i}", i)) for i in range(30)]
    statuses = ["truncated" if i % 3 == 0 else "scored" for i in range(30)]
    assert [verdict.status for verdict in found] == statuses
    caps = [seen.body["max_tokens"] for seen in server.log]
    assert caps.count(RAISED_CAP) == 1


@pytest.mark.parametrize("total", [{"total_tokens": 1102}, {"total_tokens": 102}, {}])
async def test_thinking_that_is_counted_beside_the_answer_is_paid_for(total):
    """xAI, and Gemini through gateways: `completion_tokens` are those of the answer alone."""

    def grok(_):
        reply = completion('{"score": 80}')
        details = {"completion_tokens_details": {"reasoning_tokens": 1000}}
        reply.body["usage"] = {"prompt_tokens": 100, "completion_tokens": 2, **details, **total}
        return reply

    with MisbehavingServer(script=grok) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.input_tokens, verdict.output_tokens, verdict.hidden_tokens) == (100, 1002, 1000)


# --- access, cost, counts ---


async def test_f23_a_missing_key_is_found_without_a_request():
    judge = EndpointJudge(JudgeSettings(), JudgeLimits())
    with pytest.raises(
        AccessError, match=r"put OPENAI_API_KEY=sk-\.\.\. into \.env.*`judge_model` local"
    ):
        await judge.open()


@pytest.mark.parametrize("profile", [None, PROFILE])
async def test_f23_a_wrong_key_is_found_before_any_verdict(monkeypatch, profile):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-key-000")
    with (
        MisbehavingServer(key=KEY) as server,
        pytest.raises(AccessError, match=r"refused the key: put a valid OPENAI_API_KEY into \.env"),
    ):
        async with opened(server, "m", profile=profile):
            pass


@pytest.mark.parametrize("code", [None, "missing_scope", "invalid_api_key"])
async def test_a_key_for_answers_alone_is_taken_for_one(code):
    """It may not list models; with the profile of an earlier run that was all that was asked."""
    with MisbehavingServer() as server:
        server.list_faults.append(error(401, "Missing scopes: api.model.read", code=code))
        async with known(server) as judge:
            assert server.statuses == [200]
            assert (await judge.judge(TRAIT, response())).status == "scored"
        assert server.statuses == [200, 200]
        assert server.log[0].prompt != server.log[1].prompt


async def test_f23_a_server_that_asks_for_a_key_says_so():
    with (
        MisbehavingServer(key=KEY) as server,
        pytest.raises(AccessError, match="asks for a key: put its OPENAI_API"),
    ):
        async with opened(server):
            pass


async def test_f23_an_unknown_model_is_found_at_once():
    missing = error(404, "The model `gpt-6` does not exist", code="model_not_found")
    with MisbehavingServer(script=lambda _: missing) as server:
        with pytest.raises(AccessError, match=r"has no model gpt-6 .*check `judge_model`"):
            async with opened(server, "gpt-6"):
                pass
        assert len(server.log) == 1


@pytest.mark.parametrize("lacking", [("logprobs",), ("logprobs", "response_format")])
async def test_r13_a_router_without_a_provider_for_the_request_is_asked_more_plainly(lacking):
    """OpenRouter under `require_parameters`."""
    nobody = error(404, "No endpoints found that can handle the requested parameters.")

    def answers(seen):
        if any(name in seen.body for name in lacking):
            return nobody
        return completion(
            "85" if "Answer" in seen.prompt or "Rate" in seen.prompt else "0 7 42 100"
        )

    with MisbehavingServer(script=answers) as server:
        async with opened(server, "m") as judge:
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.status, verdict.mode) == ("scored", "integer")
    nothing = MisbehavingServer(script=lambda _: nobody, models=["m"])
    with nothing as server, pytest.raises(AccessError, match="has no model m"):
        async with opened(server, "m"):
            pass


async def test_f23_a_stored_profile_outlives_a_hiccup_of_the_list():
    with MisbehavingServer(models=["m"]) as server:
        server.list_faults += [Reply(act="reset"), Reply(503, b"busy")]
        async with known(server) as judge:
            assert (await judge.judge(TRAIT, response())).status == "scored"
        assert server.listed == 3
        server.list_faults += [Reply(act="reset")] * 3
        async with known(server) as judge:
            assert (await judge.judge(TRAIT, response())).status == "scored"


async def test_f23_a_model_that_is_not_listed_is_asked_for_before_any_verdict():
    with MisbehavingServer(models=["another"]) as server:
        with pytest.raises(AccessError, match="has no model m; it offers another: name one"):
            async with known(server):
                pass
        assert server.statuses == [404]
    with MisbehavingServer(models=["m", "hidden"]) as server:  # a list need not be complete
        stored = JudgeProfile(model="hidden", top_logprobs=0)
        server.list_faults.append(Reply(200, {"data": [{"id": "m"}]}))
        async with opened(server, "hidden", profile=stored) as judge:
            assert (await judge.judge(TRAIT, response())).mode == "integer"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (error(400, "Incorrect API key", code="invalid_api_key"), AccessError),
        (error(400, "The model `m` does not exist", code="model_not_found"), AccessError),
        (error(500, "no such model", code="model_not_found"), AccessError),
        (error(403, "quota", code="insufficient_quota"), StoppedError),
    ],
)
async def test_what_ends_all_judging_does_so_under_any_status(fault, kind):
    with MisbehavingServer(script=[None, *[fault] * 20]) as server:
        async with known(server, concurrency=1) as judge:
            await judge.judge(TRAIT, response())
            results = await asyncio.gather(
                *(judge.judge(TRAIT, response()) for _ in range(9)), return_exceptions=True
            )
        assert len(server.log) == 2
    assert all(isinstance(each, kind) for each in results)


async def test_a_key_that_stops_working_stops_everything():
    with MisbehavingServer(script=[None, error(401, "expired", code="invalid_api_key")]) as server:
        async with known(server, concurrency=1) as judge:
            await judge.judge(TRAIT, response())
            results = await asyncio.gather(
                *(judge.judge(TRAIT, response()) for _ in range(9)), return_exceptions=True
            )
        assert len(server.log) == 2
    assert {type(each) for each in results} == {AccessError}


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/v1",
        "ftp://h/v1",
        "http://",
        "x",
        "http://h:99999/v1",
        "http://h:port/v1",
        "http://h:0/v1",
        "http://a..b/v1",
        "http://.x/v1",
        "http://256.1.1.1/v1",
        "http://[v1.a]/v1",
        f"http://h/{'x' * 70_000}",
        f"http://{'x' * 64}/v1",
        "http://evil\u3002com/v1",
        "http://127\uff0e0\uff0e0\uff0e1/v1",
        "http://[::1/v1",
        "http://h/v1?api-key=hunter2",
        "http://h/v1#hunter2",
        "http://h\n/v1",
        "hunter2@h/v1",
    ],
)
def test_a_malformed_address_is_a_usage_error(url):
    with pytest.raises(
        UsageError, match="^`judge_base_url` must be like http://HOST:PORT/v1"
    ) as caught:
        EndpointJudge(JudgeSettings(model="m"), JudgeLimits(base_url=url))
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("proxy", ["http://a..b:1", f"http://{'x' * 64}:1"])
async def test_a_proxy_whose_name_is_none_ends_in_a_line(monkeypatch, proxy):
    monkeypatch.setenv("HTTP_PROXY", proxy)
    url = "http://judge.invalid/v1"
    judge = EndpointJudge(JudgeSettings(model="m"), JudgeLimits(base_url=url), backoff=0.001)
    with pytest.raises(AccessError, match=r"cannot be used \(no connection: .*label"):
        await judge.open()
    await judge.close()


async def test_a_proxy_that_is_not_there_is_not_a_judge_that_is_not(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://name:secret@127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    url = "http://judge.invalid/v1"
    judge = EndpointJudge(JudgeSettings(model="m"), JudgeLimits(base_url=url), backoff=0.001)
    with pytest.raises(
        AccessError, match=r"was not asked: the environment's proxy 127\.0\.0\.1:9 .*; mend HTTP_"
    ) as told:
        await judge.open()
    assert "secret" not in str(told.value)
    await judge.close()


async def test_an_endpoint_on_this_machine_is_asked_without_the_environments_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with MisbehavingServer() as server:
        async with opened(server, "m", profile=PROFILE) as judge:
            assert (await judge.judge(TRAIT, response())).status == "scored"


@pytest.mark.parametrize(
    "url", ["http://h/v1", "https://h:443", "http://[::1]:8000/v1", "http://127.0.0.1:9/a/b/"]
)
def test_an_address_is_taken_as_it_is(url):
    assert EndpointJudge(JudgeSettings(model="m"), JudgeLimits(base_url=url)).where == url


def test_a_cost_limit_needs_a_price():
    with pytest.raises(
        UsageError, match=r"price of m: add its dollars per million tokens to .*prices\.json"
    ):
        EndpointJudge(JudgeSettings(model="m"), JudgeLimits(base_url="http://h/v1", max_cost=1.0))


async def test_max_cost_stops_resumably_and_is_not_overshot(monkeypatch):
    monkeypatch.setattr(cost, "load_prices", lambda _: {"m": cost.Price(10.0, 10.0, 10.0)})
    with MisbehavingServer(latency=0.01) as server:  # a call is 105 tokens, so 0.00105 dollars
        async with known(server, max_cost=0.0211, concurrency=4) as judge:
            results = await asyncio.gather(
                *(judge.judge(TRAIT, response(index=i)) for i in range(60)), return_exceptions=True
            )
            usage = judge.usage
        paid = [each for each in results if not isinstance(each, Exception)]
        assert len(server.log) == len(paid)
    assert len(paid) == 16  # one more may be of 0.0052 dollars
    assert usage.dollars == pytest.approx(0.00105 * len(paid))
    assert {type(each) for each in results[-30:]} == {StoppedError}
    assert "`max_cost` $0.0211 is reached" in str(results[-1])


@pytest.mark.parametrize("counts", [True, False])
async def test_max_cost_holds_for_the_first_calls_and_without_counts(monkeypatch, counts):
    """Each may use its whole cap, 0.00512 dollars, and a prompt: so the second waits for what the
    first costs, 0.00105, and from then on all do."""
    monkeypatch.setattr(cost, "load_prices", lambda _: {"m": cost.Price(10.0, 10.0, 10.0)})

    def answered(_):
        reply = completion("80")
        if not counts:
            del reply.body["usage"]
        return reply

    with MisbehavingServer(script=answered, latency=0.05) as server:
        async with known(server, max_cost=0.011) as judge:
            await asyncio.gather(
                *(judge.judge(TRAIT, response("x" * 400)) for _ in range(90)),
                return_exceptions=True,
            )
            usage, sent = judge.usage, len(server.log)
            with pytest.raises(StoppedError, match="`max_cost`"):
                await judge.judge(TRAIT, response())
        # Without counts the prompt is 437 characters, four to a token, and the answer one token.
        assert sent == len(server.log) == 5
    assert 0.005 < usage.dollars <= 0.011
    assert usage.estimated == (0 if counts else sent)
    assert usage.input_tokens == sent * (100 if counts else 109)
    assert ("estimated" in str(usage)) != counts


@pytest.mark.parametrize("cheap", ["the questions at opening", "the first verdict"])
async def test_max_cost_holds_whatever_the_first_answers_cost(monkeypatch, cheap):
    """Their price was taken for that of all calls in flight, which cost a hundred times as much."""
    price = cost.Price(10.0, 10.0, 10.0)
    monkeypatch.setattr(cost, "load_prices", lambda _: {"m": price, "gpt-5-mini": price})
    seen = itertools.count()

    def answered(_):
        reply = completion("80")
        output = 5 if next(seen) == 0 else 500
        reply.body["usage"] |= {"prompt_tokens": 10, "completion_tokens": output}
        return reply

    opening = opened if "opening" in cheap else known
    with MisbehavingServer(script=answered, latency=0.05) as server:
        async with opening(server, max_cost=0.06, concurrency=40) as judge:
            found = await asyncio.gather(
                *(judge.judge(TRAIT, response(index=i)) for i in range(60)), return_exceptions=True
            )
            usage = judge.usage
    assert 0.05 < usage.dollars <= 0.06
    assert any(isinstance(each, StoppedError) for each in found)


async def test_max_cost_below_one_call_says_so(monkeypatch):
    monkeypatch.setattr(cost, "load_prices", lambda _: {"m": cost.Price(10.0, 10.0, 10.0)})
    with MisbehavingServer() as server:
        async with known(server, max_cost=0.003) as judge:
            with pytest.raises(StoppedError, match=r"less than one call may cost \(\$0.0052"):
                await judge.judge(TRAIT, response())
        assert not server.log


async def test_every_attempt_is_counted():
    with MisbehavingServer(
        "gpt-5-mini", script=[None, error(500, "x"), completion("no"), None]
    ) as server:
        async with opened(server) as judge:
            verdict = await judge.judge(TRAIT, response())
            usage = judge.usage
    assert verdict.attempts == 3
    assert (verdict.input_tokens, verdict.output_tokens, verdict.hidden_tokens) == (200, 10, 3)
    assert (usage.requests, usage.attempts, usage.input_tokens, usage.hidden_tokens) == (
        1,
        4,
        300,
        6,
    )
    assert verdict.judge_key == judge_key(JudgeSettings(), TRAIT)


async def test_f17_surrogates_on_both_ways_are_escaped():
    body = b'{"choices": [{"message": {"content": "no \\ud800 number"}, "finish_reason": "stop"}]}'
    with MisbehavingServer(script=lambda _: Reply(200, body)) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response("broken \udc80 text"))
    assert verdict.raw == "no \\ud800 number"
    assert "broken \\udc80 text" in server.log[0].prompt


async def test_f28_the_key_leaks_nowhere(monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)

    def parrot(seen):
        said = seen.headers["authorization"]
        bodies = {
            "refused": error(403, f"{said} is not allowed here"),
            "rejected": error(422, f"bad header {said}"),
            "broken": Reply(200, f"<html>{said}</html>".encode()),
            "answered": completion(f"prose with {said}"),
            "filtered": error(400, said, code="content_filter"),
            "failing": error(500, said),
        }
        return next((reply for word, reply in bodies.items() if word in seen.prompt), None)

    events, texts = [], []
    with MisbehavingServer(script=parrot, key=KEY) as server:
        async with known(server, events=events) as judge:
            for word in ("fine", "rejected", "broken", "answered", "filtered", "failing", "fine"):
                verdict = await judge.judge(TRAIT, response(word))
                texts.append(repr(verdict))
            assert "'scored'" in texts[-1]  # so the key did reach the server
            texts += [repr(await judge.judge(TRAIT, response("refused"))) for _ in range(4)]
            with pytest.raises(AccessError) as caught:
                await judge.judge(TRAIT, response("refused"))
    everything = "\n".join(
        [*texts, *events, str(caught.value), repr(caught.value), caplog.text, repr(judge)]
    )
    assert "[redacted]" in everything
    assert KEY not in everything
    assert "SECRET" not in everything


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk-clé"])
async def test_f28_a_key_that_cannot_be_sent_is_not_shown(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with MisbehavingServer() as server, pytest.raises(AccessError, match="copy it again") as caught:
        async with opened(server):
            pass
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize("key", ["none", "EMPTY"])
async def test_f28_a_word_in_place_of_a_key_spoils_no_text(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with MisbehavingServer(script=lambda _: completion(f"{key} of it")) as server:
        async with known(server) as judge:
            assert (await judge.judge(TRAIT, response())).raw == f"{key} of it"


def test_f28_a_password_in_the_address_is_refused_and_not_shown():
    with pytest.raises(UsageError, match="without a name or password") as caught:
        EndpointJudge(
            JudgeSettings(model="m"), JudgeLimits(base_url="http://me:hunter2@127.0.0.1:9/v1")
        )
    assert "hunter2" not in str(caught.value)


XAI = (
    "Content violates usage guidelines. Team: t, API key ID: k, Model: m, Failed check: "
    "SAFETY_CHECK_TYPE_BIO"
)


@pytest.mark.parametrize(
    ("refused", "status"),
    [
        (Reply(403, {"code": "The caller does not have permission", "error": XAI}), "refused"),
        (error(400, "Content Exists Risk", code="invalid_request_error"), "refused"),
        (error(400, "It may be inappropriate.", code="data_inspection_failed"), "refused"),
        (error(400, "Failed to generate JSON.", code="json_validate_failed"), "scored"),
    ],
)
async def test_what_providers_say_of_a_text_is_its_verdict(refused: Any, status: str) -> None:
    """Six such texts in a row ended all judging, as if the key were refused."""

    def script(seen: Any) -> Any:
        return refused if "text-3" in seen.prompt else None

    with MisbehavingServer("plain", script=script) as server:
        async with known(server, concurrency=1) as judge:
            texts = [response(f"text-{i // 6}", index=i) for i in range(36)]
            verdicts = await asyncio.gather(*(judge.judge(TRAIT, each) for each in texts))
    assert [v.status for v in verdicts] == ["scored"] * 18 + [status] * 6 + ["scored"] * 12


async def test_an_empty_form_for_an_error_spoils_no_answer() -> None:
    def script(_: Any) -> Any:
        answer = completion('{"score": 85}')
        return Reply(200, {**answer.body, "error": {"message": "", "type": "", "code": None}})

    with MisbehavingServer("plain", script=script) as server:
        async with known(server) as judge:
            verdict = await judge.judge(TRAIT, response())
    assert (verdict.status, verdict.score, verdict.attempts) == ("scored", 85.0, 1)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            {"choices": None, "base_resp": {"status_code": 1004, "status_msg": "login fail"}},
            "login",
        ),
        ({"error_code": 17, "error_msg": "daily request limit reached"}, "daily request limit"),
    ],
)
async def test_a_providers_own_form_of_an_error_is_told(body: dict[str, Any], said: str) -> None:
    with (
        MisbehavingServer("plain", script=lambda _: Reply(200, body)) as server,
        pytest.raises(AccessError, match=said),
    ):
        async with opened(server, "m"):
            pass


async def test_a_wrong_key_is_said_to_be_one_whatever_form_says_it() -> None:
    """Gemini's endpoint answers 400, with a list."""
    fault = {"code": 400, "message": "API key not valid. Please pass a valid API key."}
    with MisbehavingServer("plain", script=lambda _: Reply(400, [{"error": fault}])) as server:
        with pytest.raises(AccessError, match="OPENAI_API_KEY"):
            async with opened(server, "m"):
                pass
        assert len(server.log) == 1
