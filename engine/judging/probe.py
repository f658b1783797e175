"""What is asked of an endpoint beside the texts: what its model can do, whether it answers, and
plain answers that are no verdict."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

from ..errors import AccessError, StoppedError, UsageError
from ..settings import JudgeLimits, JudgeSettings
from .calls import PROBE_ATTEMPTS, Calls
from .capabilities import CAP, JudgeProfile, Mode, plainer
from .client import Client
from .cost import Usage
from .faults import FATAL, CallError, DeniedError, MendableError, RejectedError, TransientError
from .pace import wait_asked
from .reading import Answer, spoken, whole_numbers
from .reply import Reply

_MAX_PROBES = 8
_NUMBERS_PROBE = "Repeat this line exactly, with nothing before or after it:\n0 7 42 100"
_SCORE_PROBE = (
    "Rate from 0 to 100 how much the following text is about the sea. Answer with a single "
    "number.\n\nThe ship rose on the waves, and the gulls followed it out of the harbour."
)


class Prober:
    """Asks questions of ours, whose answers are no verdicts."""

    def __init__(self, calls: Calls, client: Client, judging: JudgeSettings) -> None:
        self._calls, self._client, self._judging = calls, client, judging
        self._answers = 0
        self._asking = asyncio.Lock()
        self._alive_at = -1.0
        """Loop time at which the last question that was answered had been asked."""

    @property
    def answered_texts(self) -> int:
        """How many answers there were to others than questions of ours."""
        return self._calls.answers - self._answers

    async def _ask(self, prompt: str) -> Answer:
        answer = await self._calls.answer([{"role": "user", "content": prompt}], CAP, Usage(None))
        self._answers += 1
        return answer

    async def is_alive(self) -> bool:
        """Return whether the endpoint answers a plain question, asked from now on.

        Raise StoppedError where it refuses that too: then it takes no text.
        """
        came = asyncio.get_running_loop().time()
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if self._alive_at < came:
                try:
                    await self._ask(_SCORE_PROBE)
                except DeniedError:
                    return False
                except RejectedError as error:
                    raise self._calls.stop(
                        StoppedError(
                            f"judge {self._judging.model} at {self._client.where} refuses a plain "
                            f"question as well as texts ({error}): run the same command when that "
                            "is mended; no text is given up for it"
                        )
                    ) from None
                except CallError:
                    return False
                self._alive_at = now
        return True

    async def is_missing(self) -> bool:
        """Return whether the endpoint lists models and not this one.

        What is no list says nothing: many serve none, and a key may be one for answers alone, so
        where it is refused one question tells. Raise AccessError where that is refused too.
        """
        try:
            reply = await self._calls.retried(PROBE_ATTEMPTS, self._list)
        except TransientError:
            return False
        if reply.status == 401:
            with suppress(CallError):  # it is the key that is asked about
                await self._ask(_SCORE_PROBE)
            return False
        if reply.fault().codes & FATAL:
            raise self._client.failure(reply)
        listed = reply.model_ids() if reply.status < 400 else frozenset()
        return bool(listed) and self._judging.model not in listed

    async def _list(self) -> Reply:
        reply = await self._client.list_models()
        if reply.status >= 400 and (wait := wait_asked(reply.headers)):
            self._calls.throttle.shut(wait)
            return reply
        if reply.status >= 500 or reply.status in {408, 429}:
            raise TransientError(f"HTTP {reply.status}", reply.text)
        return reply

    async def find_profile(self, mode: Mode | None) -> JudgeProfile:
        """Ask for numbers where log-probabilities may be had, then for a score, mending the profile
        on the way.

        `mode` is the measurement that the verdict set was begun with. Raise UsageError where it
        cannot be had.
        """
        asked, lacking = mode or self._judging.mode, "returns no log-probabilities"
        profile = self._calls.profile
        if asked != "integer" and profile.top_logprobs:
            profile = replace(profile, mode="expected")
        rejected = list[JudgeProfile]()
        for _ in range(_MAX_PROBES):
            if asked == "expected" and profile.mode == "integer":
                remedy = "use `judge_mode` auto"
                if self._judging.mode == "auto":
                    remedy = (
                        "its verdict set was measured so elsewhere; begin another with "
                        "`judge_mode` integer"
                    )
                raise UsageError(
                    f"`judge_mode` expected cannot be had of {self._judging.model}: it {lacking}; "
                    f"{remedy}"
                )
            self._calls.profile = profile
            prompt = _NUMBERS_PROBE if profile.mode == "expected" else _SCORE_PROBE
            try:
                answer = await self._ask(prompt)
            except MendableError as error:
                rejected.append(profile)
                better = error.better if error.better not in rejected else None
                better = better or plainer(profile)
                if better is None:
                    raise
                profile = better
                continue
            if profile.mode == "integer":
                plain = (
                    profile.schema
                    and not spoken(answer.text).startswith("{")
                    and answer.finish_reason != "length"
                )
                return replace(profile, schema=False) if plain else profile
            if answer.alternatives and whole_numbers(answer.text, answer.tokens):
                return profile
            if answer.alternatives:
                lacking = "does not write 100 as one token"
            profile = replace(profile, mode="integer")
        raise RejectedError("it rejects every form of request tried")


_DEADLINE = 300.0
"""Seconds: a thinking model writes a page in them."""
_ATTEMPTS = 3
_PAUSE, _LONGEST_WAIT = 1.0, 60.0
"""Seconds between attempts, and of a wait that an endpoint asks for beside."""


async def complete(judging: JudgeSettings, limits: JudgeLimits, prompt: str) -> str:
    """Return the text that a model answers to one user turn.

    Transient trouble is tried again. Raise AccessError (key, address, model, no answer) or
    StoppedError (no quota).
    """
    client = Client(judging.model, limits.base_url, _DEADLINE)
    client.open()
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await _answer(client, judging.model, prompt)
            except TransientError as error:
                if attempt == _ATTEMPTS:
                    raise _unusable(client, judging, error) from None
                await asyncio.sleep(_PAUSE)
            except CallError as error:
                raise _unusable(client, judging, error) from None
    finally:
        await client.close()
    raise AssertionError("every attempt returns or raises")


async def _answer(client: Client, model: str, prompt: str) -> str:
    request = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    reply = await client.complete(request)
    if reply.status == 429 and not reply.fault().codes & FATAL:
        await asyncio.sleep(min(wait_asked(reply.headers) or 0.0, _LONGEST_WAIT))
        raise TransientError(f"HTTP 429: {client.redact(reply.fault().message)}", reply.text)
    if reply.status >= 300:
        raise client.failure(reply)
    try:
        answer, _ = reply.completion()
    except ValueError as error:
        raise TransientError(str(error)) from None
    text = spoken(answer.text)
    if not text:
        raise CallError(answer.refusal or f"no text (finish_reason {answer.finish_reason})")
    return text


def _unusable(client: Client, judging: JudgeSettings, error: CallError) -> AccessError:
    return AccessError(f"{judging.model} at {client.where} gave no answer ({error})")
