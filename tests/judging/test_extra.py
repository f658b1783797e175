"""What an endpoint needs beside our own request: parts of the body, and headers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Traitmill
from tests.judging.test_endpoint import PROFILE, TRAIT, response
from tests.support import fakes, lab
from tests.support.misbehaving_server import MisbehavingServer, Reply, completion, error
from traitmill.engine.errors import AccessError, ExitCode, UsageError
from traitmill.engine.judging import EndpointJudge, judge_key, read_headers
from traitmill.engine.judging.calls import seconds_for
from traitmill.engine.run.folder_settings import resolve
from traitmill.engine.settings import JudgeLimits, JudgeSettings, apply, read_extra
from traitmill.engine.storage import TraitFolder

HEADERS = "TRAITMILL_JUDGE_HEADERS"
OFF = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", HEADERS):
        monkeypatch.delenv(name, raising=False)


def judge_of(server: MisbehavingServer, extra: dict[str, Any] | None = None, **options: Any) -> Any:
    return EndpointJudge(
        JudgeSettings(model="m", extra=read_extra(extra or {})),
        JudgeLimits(base_url=server.url, rpm=1e6, **options.pop("limits", {})),
        backoff=0.001,
        **{"profile": PROFILE, **options},
    )


async def judged(judge: Any, n: int = 1) -> list[Any]:
    await judge.open()
    try:
        return list(
            await asyncio.gather(*(judge.judge(TRAIT, response(index=i)) for i in range(n)))
        )
    finally:
        await judge.close()


async def test_t35_a_judge_with_room_for_a_thought_is_given_time_for_it() -> None:
    """Where an attempt is given up, all that it wrote is paid for in vain."""
    slow = completion("85")
    slow = replace(slow, delay=0.6)
    with MisbehavingServer(script=[slow] * 2) as server:
        [verdict] = await judged(judge_of(server, {"max_tokens": 1000}, deadline=0.2))
        assert (verdict.status, len(server.log)) == ("scored", 1)
    assert seconds_for({"max_completion_tokens": 8192}) == pytest.approx(327.68)
    assert seconds_for({}) == 0


# --- the body ---


@pytest.mark.parametrize("profile", [PROFILE, None])
async def test_r17_every_request_holds_what_is_added(profile: Any) -> None:
    extra = {**OFF, "temperature": 0.5, "provider": {"order": ["a"]}}
    with MisbehavingServer() as server:
        verdicts = await judged(judge_of(server, extra, profile=profile), 3)
        bodies = [seen.body for seen in server.log]
    assert {verdict.status for verdict in verdicts} == {"scored"}
    assert len(bodies) >= 3
    for body in bodies:
        assert {name: body[name] for name in extra} == extra
        assert body["model"] == "m"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_length_of_ones_own_replaces_ours_and_is_not_raised(name: str) -> None:
    cut = completion("<think>hm", finish_reason="length")
    with MisbehavingServer(script=lambda _: cut) as server:
        [verdict] = await judged(judge_of(server, {name: 8192}))
        [body] = [seen.body for seen in server.log]
    assert {key: value for key, value in body.items() if key.startswith("max_")} == {name: 8192}
    assert (verdict.status, verdict.attempts) == ("truncated", 1)


async def test_a_thinking_judge_that_is_told_not_to_think_answers_at_once() -> None:
    def script(seen: Any) -> Reply:
        off = seen.body.get("chat_template_kwargs", {}).get("enable_thinking") is False
        return completion("85" if off else None, finish_reason="stop" if off else "length")

    with MisbehavingServer(script=script) as server:
        [plain] = await judged(judge_of(server))
        [told] = await judged(judge_of(server, OFF))
    assert (plain.status, plain.attempts) == ("truncated", 2)
    assert (told.status, told.score, told.attempts) == ("scored", 85.0, 1)
    assert plain.judge_key != told.judge_key


def test_what_is_added_is_part_of_the_judge() -> None:
    base = JudgeSettings(model="gpt-5-mini")
    assert judge_key(base, TRAIT) == "6b365ea4185df35a"  # as before there was anything to add
    keys = {
        judge_key(replace(base, extra=read_extra(extra)), TRAIT)
        for extra in ({}, OFF, {"temperature": 1}, {"temperature": 0})
    }
    assert len(keys) == 4
    one = read_extra('{"b": 1, "a": {"d": 2, "c": 3}}')
    assert one == read_extra({"a": {"c": 3, "d": 2}, "b": 1}) == '{"a":{"c":3,"d":2},"b":1}'
    assert read_extra("") == read_extra("{}") == read_extra({}) == ""


@pytest.mark.parametrize(
    "text",
    ["x", "{", "[]", "1", "null", '"{}"', '{"a": NaN}', "{'a': 1}", "[" * 100_000, '{"a": 1,}'],
)
def test_what_is_no_json_object_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="`judge_extra` must be a JSON object") as caught:
        apply({"judge_extra": text})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["model", "messages", "n", "stream", "logprobs", "top_logprobs"])
def test_what_a_request_is_made_of_cannot_be_set(name: str) -> None:
    with pytest.raises(UsageError, match=f"cannot set {name}"):
        apply({"judge_extra": json.dumps({name: 1, "seed": 2})})


def test_a_local_judge_has_no_requests() -> None:
    with pytest.raises(UsageError, match="for a judge at an endpoint"):
        apply({"judge_model": "local", "judge_extra": '{"a": 1}'})


def test_a_folder_remembers_it_for_its_own_judge(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    extra = read_extra(OFF)
    settings = fakes.settings(4, judge=JudgeSettings(model="m", extra=extra))
    runs = fakes.open_runs([folder], settings)
    asyncio.run(fakes.pipeline(runs, settings).run())
    folders = {"trait": TraitFolder(folder)}

    def found(**given: object) -> str:
        return resolve(folders, given)[0]["trait"].judge.extra

    assert found() == found(judge_model="m") == extra
    assert found(judge_model="another") == found(judge_extra="{}") == ""
    assert found(judge_model="local") == ""
    metadata = json.loads((folder / "activations/metadata.json").read_bytes())
    assert metadata["judge"]["extra"] == extra


# --- the headers ---


async def test_headers_of_the_environment_are_sent_with_every_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(HEADERS, '{"X-Title": "my study", "HTTP-Referer": "http://h"}')
    monkeypatch.setenv("OPENAI_API_KEY", "sk-live-0123456789")
    with MisbehavingServer() as server:
        await judged(judge_of(server, profile=None), 2)
        sent = [{name.lower(): value for name, value in s.headers.items()} for s in server.log]
    assert len(sent) >= 3
    for headers in sent:
        assert (headers["x-title"], headers["http-referer"]) == ("my study", "http://h")
        assert headers["authorization"] == "Bearer sk-live-0123456789"


@pytest.mark.parametrize(
    ("headers", "authorization"),
    [
        ({"api-key": "azure-0123456789"}, None),
        ({"Authorization": "Bearer own-0123456789"}, "Bearer own-0123456789"),
        ({"authorization": "Basic own-0123456789"}, "Basic own-0123456789"),
    ],
)
async def test_a_key_in_the_headers_needs_no_other(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], authorization: str | None
) -> None:
    monkeypatch.setenv(HEADERS, json.dumps(headers))
    with MisbehavingServer() as server:
        [verdict] = await judged(judge_of(server))
        sent = {name.lower(): value for name, value in server.log[0].headers.items()}
    assert verdict.status == "scored"
    assert sent.get("authorization") == authorization
    assert sent.get("api-key") == headers.get("api-key")


async def test_f28_a_key_in_the_headers_reaches_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "azure-0123456789abc"
    monkeypatch.setenv(
        HEADERS, json.dumps({"api-key": secret, "Authorization": f"Bearer {secret}"})
    )
    said = [completion(f"{secret} 85"), completion("85"), error(400, f"bad key {secret} here")]
    with MisbehavingServer(script=said) as server:
        judge = judge_of(server)
        first, second = await judged(judge, 2)
    texts = [str(each) for each in (first, second)]
    assert any("[redacted]" in text for text in texts)
    assert not any(secret in text for text in texts)
    wrong = error(401, f"{secret} is wrong")
    with MisbehavingServer(script=lambda _: wrong) as server, pytest.raises(AccessError) as caught:
        await judged(judge_of(server))
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "[]",
        '{"a": 1}',
        '{"a": null}',
        '{"a b": "c"}',
        '{"": "c"}',
        '{"a": "b\\nc"}',
        '{"a": "é"}',
    ],
)
def test_headers_that_are_none_are_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(HEADERS, text)
    with pytest.raises(UsageError, match=HEADERS) as caught:
        read_headers()
    assert "\n" not in str(caught.value)


# --- the commands ---


def test_bad_json_is_met_before_anything_else(
    traitmill: Traitmill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.make_trait(tmp_path, "trait")
    where = ["--experiment", "exp", "--trait", "trait", "--experiments_dir", str(tmp_path)]
    judge = ["--judge_model", "m", "--judge_base_url", "http://127.0.0.1:9/v1"]
    model = lab.make_model(tmp_path)
    code, said = traitmill("generate", *where, *judge, "--gen_model", model, "--judge_extra", "{x}")
    assert code == ExitCode.USAGE
    assert "--judge_extra must be a JSON object" in " ".join(said.split())
    assert "Traceback" not in said
    monkeypatch.setenv(HEADERS, "secret-value")
    code, said = traitmill("generate", *where, *judge, "--gen_model", model)
    assert code == ExitCode.USAGE
    assert HEADERS in said
    assert "secret-value" not in said
    assert not (tmp_path / "exp/trait/parquet").exists()
