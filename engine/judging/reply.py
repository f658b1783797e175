"""One HTTP answer of an OpenAI-compatible endpoint, read without trusting it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .capabilities import escape_surrogates
from .cost import Tokens
from .faults import BAD_SAMPLE, FLAGGED, NO_CREDIT, WRONG_KEY, is_filtered, lacks_credit
from .reading import Answer, Ending, number_place

_MOST_TOKENS = 1 << 26
"""More than any context; all attempts at one verdict together fit 32 bits."""
_SERVER_ERROR = 502
_WORDED = {"rate_limit": 429, "context_length": 400, "invalid_request": 400}
"""Codes in words, by what they begin with."""
_MAY_BE_ERROR = re.compile(r'"error|"base_resp"|"success"\s*:\s*false')
_TEXT_PARTS = {None, "text", "output_text"}
"""Kinds of the parts that hold what is said; a part need not name its kind."""
_WHOLE = {"stop", "eos", "eos_token", "end", "end_turn", "stop_sequence", "complete", "completed"}
_WHOLE |= {"tool_calls", "function_call", "stop_token", "eos_token_id", "end_of_text", "finished"}
_WHOLE |= {"end_of_sequence", "end_of_turn", "stopped", "done", "finish", "success", "unload"}
_WHOLE |= {"normal"}
_CUT = {"length", "max_tokens", "max_output_tokens", "model_length", "max_length"}
_HELD_BACK = {"content_filter", "refusal", "safety", "recitation", "blocklist", "sensitive"}
_HELD_BACK |= {"prohibited_content", "spii", "guardrail_intervened"}
"""Why an answer ended, as OpenAI's form and those that gateways pass on name it."""
_LOGPROB_SLACK = 1e-2
"""Rounding puts certain tokens a little above log 1."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Status, headers (looked up in lower case) and body."""

    status: int
    headers: Mapping[str, str]
    text: str

    def fault(self) -> Fault:
        """What the reply says of an error, in the forms that OpenAI, vLLM and FastAPI use."""
        fault = self._stated_fault()
        if self.status == 400 and WRONG_KEY.search(self.text):
            fault = replace(fault, codes=fault.codes | {"invalid_api_key"})
        if lacks_credit(self.status, fault.codes, fault.message):
            return replace(fault, codes=fault.codes | {NO_CREDIT})
        return fault

    def _stated_fault(self) -> Fault:
        try:
            body = json.loads(self.text)
        except (ValueError, RecursionError):
            return Fault(self.text)
        if isinstance(body, list) and body:  # Gemini's
            body = body[0]
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
        if self.status >= 400 or not _MAY_BE_ERROR.search(self.text):  # few are read twice
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

    def as_answer(self, said: str, *, known: bool) -> Answer | None:
        """Return the answer that a failure is: a text refused for what it says, or a form that the
        judge has missed; None where it is none.

        `said` is the failure's message. `known`: whether the request's form was accepted before.
        """
        fault = self.fault()
        if is_filtered(self.status, fault.codes, fault.message):
            return Answer("", "content_filter", said)
        return Answer(said) if known and BAD_SAMPLE in fault.codes else None

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
            ending = _ending(choice.get("finish_reason"))
            held_back = ending == "content_filter"  # then some send no message
            message = (choice.get("message") or {}) if held_back else choice["message"]
            text, refusal = _joined(message.get("content")), message.get("refusal") or ""
            listed = (choice.get("logprobs") or {}).get("content") or []
            tokens = tuple(str(each["token"]) for each in listed)
            place = number_place(text, tokens)
            likely = _candidates(listed[place]) if listed else []
            answer = Answer(
                escape_surrogates(text),
                ending,
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
    if body.get("object") == "error":
        return body
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    choice = first if isinstance(first, dict) else {}
    for place in (body, choice, choice.get("message")):
        stated = place.get("error") or place.get("errors") if isinstance(place, dict) else None
        stated = stated[0] if isinstance(stated, list) and stated else stated
        if any(stated.values()) if isinstance(stated, dict) else stated:  # some are empty forms
            return stated
    if body.get("success") is False:
        return body
    if str(choice.get("finish_reason")).lower() == "error":
        return {"message": "the provider ended the answer with an error"}
    return _providers_error(body)


def _providers_error(body: Mapping[str, Any]) -> Any:
    """Return the error that a body states in a provider's own form; else None."""
    base = body.get("base_resp")  # MiniMax
    if isinstance(base, dict) and base.get("status_code"):
        return {"message": base.get("status_msg")}
    if body.get("error_code"):  # Baidu
        return {"message": body.get("error_msg")}
    return None


def _ending(reason: Any) -> Ending:
    """Return why an answer ended: what names no known reason may have cut it off."""
    said = str(reason or "stop").strip().lower()
    said = said.removeprefix("finish_reason_").replace("-", "_").replace(" ", "_")
    if said in _WHOLE:
        return "stop"
    if _HELD_BACK & {part.strip(" _") for part in said.split(":")}:  # "content_filter: RECITATION"
        return "content_filter"
    return "length" if said in _CUT else "broken off"


def _status_of(error: Any) -> int:
    """Return the status that an error's code states, as a number or in digits."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code.isdecimal() and len(code) == 3:
        code = int(code)
    if isinstance(code, int) and 400 <= code < 600:
        return code
    for worded, status in _WORDED.items():
        if str(code).startswith(worded):
            return status
    return _SERVER_ERROR


def _joined(content: Any) -> str:
    """Return a message's content; one in parts is joined, without those that are no text.

    A thought stands in parts of its own there, or in fields such as `reasoning_content`.
    """
    parts = content if isinstance(content, list) else [content]
    return "".join(map(_text_of, parts))


def _text_of(part: Any) -> str:
    if isinstance(part, dict):
        if "text" in part or "type" in part:
            return (part["text"] or "") if part.get("type") in _TEXT_PARTS else ""
        return json.dumps(part)  # an answer in JSON that was read on the way
    number = isinstance(part, int | float) and not isinstance(part, bool)
    return str(part) if number else part or ""


def _candidates(token: Mapping[str, Any]) -> list[Any]:
    """Return the candidates for a token, without those that cannot be.

    What a schema forbids has minus infinity, which JSON has no number for: it comes as null, as a
    word, or as NaN. What was written has a probability.
    """
    return [
        each
        for each in token.get("top_logprobs") or []
        if each["token"] == token["token"]
        or (each["logprob"] is not None and math.isfinite(float(each["logprob"])))
    ]


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
    # Some count what was thought in the total alone (xAI, Gemini through gateways), or beside.
    total = _count(usage.get("total_tokens")) or 0
    made = max(made, total - given, made + hidden if hidden > made else 0)
    return Tokens(given, min(cached, given), made, min(hidden, made))


def _count(value: Any) -> int | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if number and 0 <= value <= _MOST_TOKENS else None
