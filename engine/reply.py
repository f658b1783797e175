"""One HTTP answer of an OpenAI-compatible endpoint, read without trusting it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .cost import Tokens
from .scoring import Answer, escape_surrogates


@dataclass(frozen=True, slots=True)
class Reply:
    """Status, headers (looked up in lower case) and body."""

    status: int
    headers: Mapping[str, str]
    text: str

    def fault(self) -> Fault:
        """What the body says of an error, in the forms that OpenAI, vLLM and FastAPI servers use."""
        try:
            body = json.loads(self.text)
        except (ValueError, RecursionError):
            return Fault(self.text)
        if not isinstance(body, dict):
            return Fault(self.text)
        error = body.get("error", body)
        if not isinstance(error, dict):
            return Fault(str(error))
        message = error.get("message") or error.get("detail") or self.text
        codes = {str(error.get(name)) for name in ("code", "type") if error.get(name)}
        return Fault(str(message), str(error.get("param") or ""), frozenset(codes))

    def completion(self) -> tuple[Answer, Tokens]:
        """The first choice, and the tokens used. Raises ValueError where the body holds no chat completion."""
        try:
            body = json.loads(self.text)
            choice = body["choices"][0]
            message = choice["message"]
            text, refusal = message.get("content") or "", message.get("refusal") or ""
            listed = (choice.get("logprobs") or {}).get("content") or []
            first = listed[0].get("top_logprobs") or [] if listed else []
            answer = Answer(
                escape_surrogates(text),
                str(choice.get("finish_reason") or "stop"),
                escape_surrogates(refusal),
                tuple(str(each["token"]) for each in listed),
                {str(each["token"]): float(each["logprob"]) for each in first},
            )
            return answer, _tokens(body.get("usage") or {})
        except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError("no chat completion") from error


@dataclass(frozen=True, slots=True)
class Fault:
    """What an error body says."""

    message: str
    param: str = ""
    """The parameter it is about, where named."""
    codes: frozenset[str] = frozenset()
    """Its `code` and `type`."""


def _tokens(usage: Mapping[str, Any]) -> Tokens:
    prompt, completion = (usage.get(f"{side}_tokens_details") or {} for side in ("prompt", "completion"))
    return Tokens(
        int(usage.get("prompt_tokens") or 0),
        int(prompt.get("cached_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
        int(completion.get("reasoning_tokens") or 0),
    )
