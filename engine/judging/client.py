"""The connection to an OpenAI-compatible endpoint: one request, one reply, one deadline, and no
secret let out."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import AccessError, StoppedError, UsageError
from .faults import (
    BAD_KEY,
    NO_MODEL,
    NO_QUOTA,
    CallError,
    LateError,
    TransientError,
    UnknownModelError,
    kind_of,
    unconnected,
)
from .headers import authorizes, read_headers, secrets
from .reply import Reply

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OPENAI = "https://api.openai.com/v1"
_NEAR = (".local", ".localhost", ".internal", ".lan")
_LONGEST_URL = 2000
_FOUR_NUMBERS = re.compile(r"\d+(?:\.\d+){3}")
_COMPLETIONS = "/chat/completions"
_LIST_SECONDS = 10.0
_MOST_CONNECTIONS = 1024
_LEAST_KEY = 8
"""Characters of a key that no text holds by chance: endpoints of one's own take any word, such as
`none`."""
_MESSAGE_CHARS = 300
_LISTED = 12
"""Models of an endpoint that a message names."""
_KEY_LIKE = re.compile(r"\b(?:sk|hf)[-_][A-Za-z0-9_\-*.]{6,}|(?i:bearer)\s+\S+")


def read_base_url(url: str) -> str:
    """`url`, checked. Raises UsageError, which shows no more of it than scheme, host and path."""
    shown = "this"
    try:
        parts = urlsplit(url)
        if parts.scheme and parts.hostname:
            shown = f"{parts.scheme}://{parts.hostname}{parts.path}"[:_MESSAGE_CHARS]
        plain = not any(mark in url for mark in "@?#\\") and url.isprintable() and " " not in url
        good = (
            plain and parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        )
        good = good and url.isascii() and len(url) <= _LONGEST_URL
        host = str(parts.hostname)
        host.encode("idna")
        if "[" in parts.netloc or _FOUR_NUMBERS.fullmatch(host):
            ipaddress.ip_address(host)
    except ValueError:  # a port, an address or a name that is none; UnicodeError is one
        good = False
    if not good:
        raise UsageError(
            "`judge_base_url` must be like http://HOST:PORT/v1, without a name or password, a "
            "query or a fragment; "
            f"{'the one given' if shown == 'this' else repr(shown)} is not"
        )
    return url


def is_near(url: str) -> bool:
    """Return whether an address is this machine's, or one of a network of one's own."""
    host = urlsplit(url).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        # Resolvers read a number without dots as an address anywhere.
        return ("." not in host and host[:1].isalpha()) or host.endswith(_NEAR)


def _is_here(url: str) -> bool:
    """Return whether an endpoint is on this machine."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


class Client:
    """Sends chat completions. The key is OPENAI_API_KEY; an endpoint of one's own may need none."""

    def __init__(self, model: str, base_url: str | None, deadline: float) -> None:
        """`base_url` None: OPENAI_BASE_URL, else OpenAI's own; a given one stands, whatever the
        environment says. `deadline`: seconds a request may take.

        Raises UsageError for a malformed URL, or headers in the environment that are none.
        """
        url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        self.base_url = None if url in (None, OPENAI) else read_base_url(str(url))
        """None is OpenAI's own."""
        self._model, self._deadline = model, deadline
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        self._headers = read_headers()
        self._header_key = authorizes(self._headers)
        kept = [self._key, *sorted(secrets(self._headers), key=len, reverse=True)]
        self._secrets = [secret for secret in kept if len(secret) >= _LEAST_KEY]
        self._client: AsyncOpenAI | None = None

    @property
    def where(self) -> str:
        """The endpoint, as messages name it."""
        return self.base_url or OPENAI

    @property
    def has_key(self) -> bool:
        return bool(self._key) or self._header_key

    def open(self) -> None:
        """Prepare connections. Raises AccessError where a key is missing or cannot be one."""
        import httpx2
        import openai

        if not self.has_key and self.base_url is None:
            raise AccessError(
                f"judge {self._model} needs a key: put OPENAI_API_KEY=sk-... into .env, or name "
                f"your own endpoint "
                "with `judge_base_url`, or judge without one: `judge_model` local"
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise AccessError(
                "OPENAI_API_KEY holds characters no key has (a line break, an accent): copy it "
                "again"
            )
        # aiohttp's transport takes half the processor time of the default, where every request
        # walks all connections
        connections = httpx2.Limits(
            max_connections=_MOST_CONNECTIONS, max_keepalive_connections=_MOST_CONNECTIONS
        )
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=self.where,  # else the client would look into the environment
            max_retries=0,
            timeout=None,  # the deadline is ours: the client's is one between two reads
            http_client=openai.DefaultAioHttpClient(
                limits=connections,
                timeout=None,
                follow_redirects=False,
                # No proxy of the environment leads back to this machine.
                trust_env=not _is_here(self.where),
            ),
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    async def complete(self, request: dict[str, Any], seconds: float = 0.0) -> Reply:
        """One chat completion, whatever its status. Raises TransientError without a connection or
        past the deadline, which is `seconds` where that is later."""
        deadline = max(self._deadline, seconds)
        return (await self._reply("post", _COMPLETIONS, deadline, body=request)).honest

    async def list_models(self) -> Reply:
        """The list of models, which is free. Raises TransientError as `complete` does."""
        return await self._reply("get", "/models", _LIST_SECONDS)

    async def _reply(self, method: str, path: str, deadline: float, **options: Any) -> Reply:
        import aiohttp
        import httpx2
        import openai

        headers: dict[str, Any] = dict(self._headers)
        if self._header_key and not self._key:
            # the client's placeholder must not stand beside the key that is given
            headers = {"Authorization": openai.Omit(), **headers}
        # Else it is a bug in the caller, not a fault.
        assert self._client is not None, "open() comes first"  # noqa: S101
        try:
            # the generic call: the typed one walks every request's type annotations, a third of the
            # processor time
            async with asyncio.timeout(deadline):
                raw = await getattr(self._client, method)(
                    path, cast_to=httpx2.Response, options={"headers": headers}, **options
                )
        except openai.APIStatusError as error:
            return Reply(error.status_code, error.response.headers, error.response.text)
        except TimeoutError:
            raise LateError(f"no answer within {deadline:g} s") from None
        except (openai.APIConnectionError, aiohttp.ClientError, UnicodeError) as error:
            # UnicodeError: a proxy's name in the environment that is none
            raise unconnected(error, self.redact) from None
        return Reply(raw.status_code, raw.headers, raw.text)

    def failure(
        self, reply: Reply, *, mendable: bool = False
    ) -> CallError | AccessError | StoppedError:
        """What a status of 300 or more means: the end of all judging, or something about this call
        alone.

        `mendable`: it is about a parameter that can be left out.
        """
        fault, model = reply.fault(), self._model
        said = self.redact(" ".join(fault.message.split()))[:_MESSAGE_CHARS] or "no text"
        what = f"HTTP {reply.status}: {said}"
        if fault.codes & NO_QUOTA:
            remedy = (
                "add credit with your provider, then run the same command; what was made so far is "
                "saved"
            )
            return StoppedError(f"judge {model} has no quota left: {remedy}")
        if fault.codes & BAD_KEY or reply.status == 401:
            problem = "refused the key: put a valid" if self.has_key else "asks for a key: put its"
            return AccessError(f"{self.where} {problem} OPENAI_API_KEY into .env")
        if fault.codes & NO_MODEL or (reply.status == 404 and not mendable):
            remedy = "check `judge_model` and `judge_base_url`"
            return UnknownModelError(f"{self.where} has no model {model} ({what}): {remedy}")
        if reply.status == 403 and not mendable:
            return AccessError(f"{self.where} refuses judge {model} to this key: {said}")
        if reply.status < 400:
            return self._sent_on(reply)
        return kind_of(reply.status)(what, reply.text)

    def _sent_on(self, reply: Reply) -> AccessError:
        target = " ".join(reply.headers.get("location", "elsewhere").split())
        target = self.redact(target.partition("?")[0].removesuffix(_COMPLETIONS))
        return AccessError(
            f"{self.where} sends on to {target[:_MESSAGE_CHARS]} (HTTP {reply.status}), where "
            "nothing is sent unasked: name that with `judge_base_url`"
        )

    async def unknown_model(self, error: UnknownModelError) -> AccessError:
        """Return what to do about a model that is not there: what the endpoint offers, or where it
        may be.

        The list of models is asked for, which is free.
        """
        model, offered = self._model, frozenset[str]()
        try:
            reply = await self.list_models()
            if reply.status < 400:
                offered = reply.model_ids()
        except TransientError:
            pass
        if offered:
            near = get_close_matches(model, offered, _LISTED, 0.4)
            names = [*near, *sorted(offered - set(near))]
            listed = ", ".join(" ".join(name.split())[:80] for name in names[:_LISTED])
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            return AccessError(
                f"{self.where} has no model {model}; it offers {self.redact(listed)}{more}: name "
                "one with `judge_model`, or another endpoint with `judge_base_url`"
            )
        if self.base_url is not None and "/v1" not in urlsplit(self.base_url).path:
            return AccessError(
                f"{self.where} does not answer as an OpenAI-compatible endpoint (404): these "
                f"mostly end in /v1; try `judge_base_url` {self.base_url.rstrip('/')}/v1"
            )
        return error

    def without_key(self, text: str) -> str:
        """`text` without the key itself: for texts that are not ours to change further."""
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return text

    def redact(self, text: str) -> str:
        """`text` without the key or anything like one: for error messages."""
        if self._key:
            text = text.replace(self._key, "[redacted]")
        return _KEY_LIKE.sub("[redacted]", self.without_key(text))
