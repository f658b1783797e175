"""One HTTP answer of an OpenAI-compatible endpoint, read without trusting it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .cost import Tokens
from .reading import Answer, number_place
from .scoring import escape_surrogates

_MOST_TOKENS = 1 << 26
"""More than any context; all attempts at one verdict together fit 32 bits."""
FLAGGED = "flagged_input"
"""Our code for an error that OpenRouter marks so: its moderation refused a text."""
_SERVER_ERROR = 502
_TEXT_PARTS = {"text", "output_text"}
_LOGPROB_SLACK = 1e-2
"""Rounding puts certain tokens a little above log 1."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Status, headers (looked up in lower case) and body."""

    status: int
    headers: Mapping[str, str]
    text: str

    def fault(self) -> Fault:
        """What the body says of an error, in the forms that OpenAI, vLLM and FastAPI use."""
        try:
            body = json.loads(self.text)
        except (ValueError, RecursionError):
            return Fault(self.text)
        if not isinstance(body, dict):
            return Fault(self.text)
        error = _stated_error(body) or body
        if not isinstance(error, dict):
            return Fault(str(error))
        message = error.get("message") or error.get("detail") or self.text
        codes = {str(error.get(name)) for name in ("code", "type") if error.get(name)}
        metadata = error.get("metadata")
        if isinstance(metadata, dict) and "flagged_input" in metadata:
            codes.add(FLAGGED)
        return Fault(str(message), str(error.get("param") or ""), frozenset(codes))

    @property
    def honest(self) -> Reply:
        """The same under the status that the body states.

        Some gateways send errors of their providers as 200, beside the choices or inside one. An
        error without a code of its own is a server error.
        """
        if self.status >= 400 or '"error"' not in self.text:  # few answers are read twice
            return self
        error = _stated_error(self._body())
        if error is None:
            return self
        return Reply(_status_of(error), self.headers, self.text)

    def _body(self) -> dict[str, Any]:
        try:
            body = json.loads(self.text)
        except (ValueError, RecursionError):
            return {}
        return body if isinstance(body, dict) else {}

    def usage(self) -> Tokens | None:
        """Return the tokens that the body reports, whatever else it holds."""
        return _tokens(self._body().get("usage"))

    def completion(self) -> tuple[Answer, Tokens | None]:
        """The first choice, and the tokens used, None where they are not reported (or are no
        counts).

        Raises ValueError where the body holds no chat completion, or log-probabilities that are
        none.
        """
        try:
            body = json.loads(self.text)
            choice = body["choices"][0]
            message = choice["message"]
            text, refusal = _joined(message.get("content")), message.get("refusal") or ""
            listed = (choice.get("logprobs") or {}).get("content") or []
            tokens = tuple(str(each["token"]) for each in listed)
            place = number_place(text, tokens)
            likely = listed[place].get("top_logprobs") or [] if listed else []
            answer = Answer(
                escape_surrogates(text),
                str(choice.get("finish_reason") or "stop"),
                escape_surrogates(refusal),
                tokens,
                {str(each["token"]): _logprob(each["logprob"]) for each in likely},
                place,
            )
            return answer, _tokens(body.get("usage"))
        except (
            KeyError,
            IndexError,
            TypeError,
            AttributeError,
            RecursionError,
            OverflowError,
        ) as error:
            raise ValueError("no chat completion") from error

    def model_ids(self) -> frozenset[str]:
        """The models of a list of models; none where the body is no such list."""
        try:
            return frozenset(str(model["id"]) for model in json.loads(self.text)["data"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return frozenset()


@dataclass(frozen=True, slots=True)
class Fault:
    """What an error body says."""

    message: str
    param: str = ""
    """The parameter it is about, where named."""
    codes: frozenset[str] = frozenset()
    """Its `code` and `type`."""


def _stated_error(body: Mapping[str, Any]) -> Any:
    """Return the error that a body states, for the whole or for its first choice; else None."""
    if body.get("error"):
        return body["error"]
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    if choices[0].get("error"):
        return choices[0]["error"]
    if choices[0].get("finish_reason") == "error":
        return {"message": "the provider ended the answer with an error"}
    return None


def _status_of(error: Any) -> int:
    """Return the status that an error's code states, as a number or in digits."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code.isdecimal() and len(code) == 3:
        code = int(code)
    if isinstance(code, int) and 400 <= code < 600:
        return code
    return _SERVER_ERROR


def _joined(content: Any) -> str:
    """Return a message's content; one in parts is joined, without those that are no text.

    A thought stands in parts of its own there, or in fields such as `reasoning_content`.
    """
    if not isinstance(content, list):
        return content or ""
    texts = [part for part in content if isinstance(part, dict)]
    return "".join(part["text"] or "" for part in texts if part.get("type") in _TEXT_PARTS)


def _logprob(value: Any) -> float:
    logprob = float(value)
    if not (math.isfinite(logprob) and logprob <= _LOGPROB_SLACK):
        raise ValueError("a log-probability that is none")
    return min(logprob, 0.0)


def _tokens(usage: Any) -> Tokens | None:
    if not isinstance(usage, Mapping):
        return None
    given, made = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if given is None or made is None:
        return None
    details = [usage.get(f"{side}_tokens_details") for side in ("prompt", "completion")]
    prompt, completion = (part if isinstance(part, Mapping) else {} for part in details)
    cached, hidden = (
        _count(prompt.get("cached_tokens")) or 0,
        _count(completion.get("reasoning_tokens")) or 0,
    )
    return Tokens(given, min(cached, given), made, min(hidden, made))


def _count(value: Any) -> int | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if number and 0 <= value <= _MOST_TOKENS else None
