"""One plain answer of an endpoint's model, for a text that is no verdict."""

from __future__ import annotations

from ..errors import AccessError
from ..settings import JudgeLimits, JudgeSettings
from .client import Client
from .faults import CallError, TransientError
from .reading import spoken

_DEADLINE = 300.0
"""Seconds: a thinking model writes a page in them."""
_ATTEMPTS = 3


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
            except CallError as error:
                raise _unusable(client, judging, error) from None
    finally:
        await client.close()
    raise AssertionError("every attempt returns or raises")


async def _answer(client: Client, model: str, prompt: str) -> str:
    request = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    reply = await client.complete(request)
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
