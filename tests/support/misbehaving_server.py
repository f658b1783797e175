"""A chat-completions server over real HTTP that does as it is told: good answers, and every fault a
judge may meet.

In a test it runs in a thread (`with MisbehavingServer(...) as server`) and its log can be read
while it runs. As a program it serves one persona until its input closes, for benchmarks: it prints
its URL, and `GET /log` returns `[arrival, status]` pairs. Times are `time.monotonic()`, which all
processes of one machine share.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

Body = dict[str, Any]


@dataclass
class Reply:
    """One scripted answer. `act`: answer, hang (never answer), reset (cut the connection), or
    break off (answer, then cut it).
    `held`: as long as this is true, it is not given."""

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    act: str = "answer"
    held: Callable[[], bool] = lambda: False


@dataclass
class Seen:
    """One request to /chat/completions."""

    at: float
    headers: dict[str, str]
    body: Body
    status: int = 0
    answered_at: float = math.inf

    @property
    def prompt(self) -> str:
        """The last message."""
        return str(self.body["messages"][-1]["content"])


def error(
    status: int, message: str, *, code: str | None = None, param: str | None = None, **headers: str
) -> Reply:
    """An error in OpenAI's form. `retry_after="1"` becomes the header Retry-After."""
    body = {"error": {"message": message, "type": code, "param": param, "code": code}}
    return Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def completion(
    content: str | None,
    *,
    finish_reason: str = "stop",
    refusal: str | None = None,
    tokens: Iterable[tuple[str, Mapping[str, float]]] | None = None,
    usage: tuple[int, int, int] = (100, 5, 0),
) -> Reply:
    """A good answer. `tokens`: each token with its alternatives' probabilities; `usage`: input,
    output, hidden."""
    logprobs = None
    if tokens is not None:
        logprobs = {
            "content": [
                {
                    "token": token,
                    "logprob": math.log(top.get(token, 1.0)),
                    "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in top.items()],
                }
                for token, top in tokens
            ]
        }
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, "refusal": refusal},
        "finish_reason": finish_reason,
        "logprobs": logprobs,
    }
    counted = {
        "prompt_tokens": usage[0],
        "completion_tokens": usage[1],
        "completion_tokens_details": {"reasoning_tokens": usage[2]},
    }
    return Reply(
        200,
        {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "choices": [choice],
            "usage": counted,
        },
    )


# --- personas: how a model of a kind answers a request that nothing is wrong with ---

Persona = Callable[["MisbehavingServer", Seen], Reply]


def _scored(server: MisbehavingServer, seen: Seen) -> Reply:
    """A score as the request asks for it: in the schema, or as a bare number."""
    score = server.score(seen)
    structured = "response_format" in seen.body
    return completion(json.dumps({"score": score}) if structured else str(score))


def gpt_5_mini(server: MisbehavingServer, seen: Seen) -> Reply:
    """Reasons: temperature, max_tokens and logprobs are 400, one complaint at a time."""
    for name, value in seen.body.items():
        unsupported = name in {"max_tokens", "logprobs", "top_logprobs"} or (
            name == "temperature" and value != 1
        )
        if unsupported or (
            name == "reasoning_effort" and value not in {"minimal", "low", "medium", "high"}
        ):
            return error(
                400,
                f"Unsupported parameter: '{name}' is not supported with this model.",
                param=name,
            )
    reply = _scored(server, seen)
    reply.body["usage"]["completion_tokens_details"]["reasoning_tokens"] = 3
    return reply


def gpt_5_1(server: MisbehavingServer, seen: Seen) -> Reply:
    """Like gpt-5-mini, but its least effort is called none."""
    if seen.body.get("reasoning_effort") == "minimal":
        return error(
            400, "Unsupported value: 'minimal' is not supported.", param="reasoning_effort"
        )
    effort = {"reasoning_effort": "low"} if seen.body.get("reasoning_effort") == "none" else {}
    return gpt_5_mini(server, Seen(seen.at, seen.headers, seen.body | effort))


def gpt_4_1_mini(server: MisbehavingServer, seen: Seen) -> Reply:
    """Log-probabilities over tokens in which every number up to 100 is whole."""
    return _with_logprobs(server, seen, re.compile(r"[0-9]+|[^0-9]+"))


def vllm_small(server: MisbehavingServer, seen: Seen) -> Reply:
    """A small model under `vllm serve`: log-probabilities, but every digit is a token."""
    return _with_logprobs(server, seen, re.compile(r"[0-9]|[^0-9]+"))


def _with_logprobs(server: MisbehavingServer, seen: Seen, token: re.Pattern[str]) -> Reply:
    if not seen.body.get("logprobs"):
        return _scored(server, seen)
    if "Repeat" in seen.prompt:
        text = seen.prompt.splitlines()[-1]
        return completion(text, tokens=[(piece, {piece: 0.9}) for piece in token.findall(text)])
    score = server.score(seen)
    top = {str(score): 0.6, str(max(0, score - 10)): 0.2, "The": 0.1}
    return completion(str(score), tokens=[(str(score), top)])


def plain(server: MisbehavingServer, seen: Seen) -> Reply:
    """An old server: knows neither schemas nor log-probabilities, and ignores them."""
    return completion(str(server.score(seen)))


PERSONAS: dict[str, Persona] = {
    "gpt-5-mini": gpt_5_mini,
    "gpt-5.1": gpt_5_1,
    "gpt-4.1-mini": gpt_4_1_mini,
    "vllm-small": vllm_small,
    "plain": plain,
}


class MisbehavingServer:
    """`script`: answers for the first requests, or a function asked each time; None leaves it to
    the persona."""

    def __init__(
        self,
        persona: str = "gpt-4.1-mini",
        *,
        script: Iterable[Reply | None] | Callable[[Seen], Reply | None] = (),
        latency: float = 0.0,
        rpm: float = 0.0,
        window: float = 60.0,
        tell_limits: bool = False,
        key: str | None = None,
        models: Iterable[str] = (),
    ) -> None:
        """`rpm`: enforced over any `window` seconds, with a Retry-After until the oldest request
        leaves it.

        `key`: the one Authorization accepted, None for any. `models`: what is listed; any other is
        unknown, if any is.
        """
        self._persona = PERSONAS[persona]
        self._answers = None if callable(script) else deque(script)
        self._script = script if callable(script) else None
        self._latency, self._rpm, self._window, self._tell_limits = (
            latency,
            rpm,
            window,
            tell_limits,
        )
        self._key, self._models = key, tuple(models)
        self.list_faults: deque[Reply] = deque()
        """Answers to the first requests for the list of models."""
        self._admitted: deque[float] = deque()
        self.log: list[Seen] = []
        self.listed = 0
        """How often the list of models was fetched."""
        self.score: Callable[[Seen], int] = lambda _: 80
        self.keep_bodies = True
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    @property
    def statuses(self) -> list[int]:
        """In order of arrival; 0 is not answered."""
        return [seen.status for seen in self.log]

    def reply_to(self, seen: Seen) -> Reply:
        reply = self._script(seen) if self._script else None
        if self._answers:
            reply = self._answers.popleft()
        if self._key is not None and seen.headers.get("authorization") != f"Bearer {self._key}":
            reply = error(
                401,
                f"Incorrect API key provided: {seen.headers.get('authorization')}.",
                code="invalid",
            )
        if self._models and seen.body.get("model") not in self._models:
            reply = error(
                404, f"The model `{seen.body.get('model')}` does not exist.", code="model_not_found"
            )
        return reply or self._over_limit(seen) or self._persona(self, seen)

    def list_models(self, headers: Mapping[str, str]) -> Reply:
        self.listed += 1
        if self.list_faults:
            return self.list_faults.popleft()
        if self._key is not None and headers.get("authorization") != f"Bearer {self._key}":
            return error(401, "Incorrect API key provided", code="invalid")
        return Reply(
            200,
            {"object": "list", "data": [{"id": name, "object": "model"} for name in self._models]},
        )

    def _over_limit(self, seen: Seen) -> Reply | None:
        if not self._rpm:
            return None
        while self._admitted and self._admitted[0] <= seen.at - self._window:
            self._admitted.popleft()
        if len(self._admitted) >= self._rpm * self._window / 60:
            wait = self._admitted[0] + self._window - seen.at
            return error(
                429, "Rate limit reached", code="rate_limit_exceeded", retry_after=f"{wait:.3f}"
            )
        self._admitted.append(seen.at)
        return None

    def extra_headers(self) -> dict[str, str]:
        return {"x-ratelimit-limit-requests": f"{self._rpm:.0f}"} if self._tell_limits else {}

    @property
    def latency(self) -> float:
        return self._latency


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with Content-Length, one request after the other, which is all the client sends."""

    def __init__(self, server: MisbehavingServer) -> None:
        self._server = server
        self._data = b""
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, rest = self._data.partition(b"\r\n\r\n")
        if not end:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self._data = rest[length:]
        self._handle(first.split(" ")[1], headers, rest[:length])

    def _handle(self, path: str, headers: dict[str, str], body: bytes) -> None:
        server = self._server
        if path.endswith("/log"):
            self._write(Reply(200, [[seen.at, seen.status] for seen in server.log]))
            return
        if path.endswith("/models"):
            reply = server.list_models(headers)
            if reply.act == "reset":
                self._transport.abort()
            elif reply.act == "answer":
                self._write(reply)
            return
        seen = Seen(time.monotonic(), headers, json.loads(body))
        server.log.append(seen)
        reply = server.reply_to(seen)
        if not server.keep_bodies:
            seen.body, seen.headers = {}, {}
        delay = reply.delay or (server.latency if reply.status == 200 else 0.0)
        if delay or reply.held():
            task = asyncio.get_running_loop().create_task(self._later(seen, reply, delay))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._act(seen, reply)

    async def _later(self, seen: Seen, reply: Reply, delay: float) -> None:
        await asyncio.sleep(delay)
        while reply.held():
            await asyncio.sleep(0.002)
        self._act(seen, reply)

    def _act(self, seen: Seen, reply: Reply) -> None:
        if reply.act == "hang":
            return
        seen.status, seen.answered_at = reply.status, time.monotonic()
        if reply.act == "reset":
            self._transport.abort()
            return
        self._write(reply)
        if reply.act == "break off":
            self._transport.close()

    def _write(self, reply: Reply) -> None:
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        kind = "text/html" if body.startswith(b"<") else "application/json"
        headers = {"content-type": kind, "content-length": str(len(body))}
        headers |= {**self._server.extra_headers(), **reply.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._transport.write(f"HTTP/1.1 {reply.status} X\r\n{lines}\r\n".encode("latin-1") + body)


async def _serve(server: MisbehavingServer) -> None:
    await server.start()
    print(server.url, flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until the parent closes it, or dies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--persona", choices=sorted(PERSONAS), default="gpt-5-mini")
    for name in ("latency", "rpm", "window"):
        parser.add_argument(f"--{name}", type=float, default=60.0 if name == "window" else 0.0)
    parser.add_argument("--tell_limits", action="store_true")
    parser.add_argument(
        "--pause_at", type=int, default=0, help="answer this request with a 429 and --retry_after"
    )
    parser.add_argument("--retry_after", default="2")
    options = parser.parse_args()
    count = 0

    def script(_: Seen) -> Reply | None:
        nonlocal count
        count += 1
        if count == options.pause_at:
            return error(
                429,
                "Rate limit reached",
                code="rate_limit_exceeded",
                retry_after=options.retry_after,
            )
        return None

    server = MisbehavingServer(
        options.persona,
        script=script,
        latency=options.latency,
        rpm=options.rpm,
        window=options.window,
        tell_limits=options.tell_limits,
    )
    server.keep_bodies = False
    asyncio.run(_serve(server))


if __name__ == "__main__":
    main()
