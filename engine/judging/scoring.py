"""From a judge's answer to a score, and how well the scores tell the two sides apart."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..settings import JudgeSettings
from ..traits import Trait

ReadingStatus = Literal["scored", "refused", "unparsable", "truncated"]

PLAIN_REQUEST = "Answer with a single integer from 0 to 100 and nothing else."
"""Ends the prompt for endpoints that cannot be held to a schema, and is the re-ask after an
unparsable answer."""

SCORE_SCHEMA: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "rating",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "score": {
                    # null, because a judge that must write an integer invents one where the prompt
                    # allows REFUSAL
                    "type": ["integer", "null"],
                    "description": (
                        "The number asked for, 0 to 100; null only in place of an answer such as "
                        "REFUSAL."
                    ),
                }
            },
            "required": ["score"],
            "additionalProperties": False,
        },
    },
}

_MIN_WEIGHT = 0.25
_INTEGER = re.compile(r"100|[1-9]?[0-9]")
_ONE_NUMBER = re.compile(
    r"(?:(?:score|rating|answer)\W{1,6})?(?P<score>100|[1-9]?[0-9])(?:\.0+)?\W{0,2}"
    r"(?:%|\s*/\s*100|\s+out\s+of\s+100)?\W{0,2}",
    re.IGNORECASE,
)
"""Forms that can mean one number only on a scale of 0 to 100."""
_THOUGHT = re.compile(r"\A\s*<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)
_FENCE = re.compile(r"```[a-z]*\s*(?P<content>.*?)\s*```", re.DOTALL)
_INTEGER_BEGUN = re.compile(r"[0-9]{0,3}")
_NUMBER_BEGUN = re.compile(r"[-+]?\.?[0-9]")
_REFUSAL = re.compile(r"\W*(refusal|refused|refuse)\W*", re.IGNORECASE)
_MAX_RAW = 4000


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from one call, as far as it matters for the score."""

    text: str
    """The message's content, lone surrogates escaped; empty when there was none."""
    finish_reason: str = "stop"
    refusal: str = ""
    """The endpoint's own refusal field."""
    tokens: tuple[str, ...] = ()
    """The text token by token, where log-probabilities were asked for."""
    alternatives: Mapping[str, float] = field(default_factory=dict)
    """Log-probabilities of the candidates for the first token, by token text."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer means. `score` is set exactly when `status` is `scored`."""

    status: ReadingStatus
    score: float | None = None


def local_prompt(trait: Trait) -> str:
    """The judge prompt of the local judge, `{question}` and `{answer}` still to be filled."""
    if trait.yes_no_prompt is not None:
        return trait.yes_no_prompt
    return (
        trait.eval_prompt
        + "\n\nInstead of a number, answer with one word: is the score above 50? Answer Yes or No."
    )


def judge_key(judging: JudgeSettings, trait: Trait) -> str:
    """Which verdict set: 16 hex digits of sha256 over canonical JSON of judge model, mode asked
    for, judge prompt."""
    prompt = local_prompt(trait) if judging.is_local else trait.eval_prompt
    content = json.dumps([judging.model, judging.mode, prompt], separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def escape_surrogates(text: str) -> str:
    r"""Lone surrogates as `\udXXX`: neither UTF-8 nor Arrow can carry them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def raw_text(text: str) -> str:
    """A judge's answer as it is stored: surrogates escaped, at most 4000 characters."""
    text = escape_surrogates(text)
    return text if len(text) <= _MAX_RAW else f"{text[:_MAX_RAW]}... ({len(text)} characters)"


# --- reading an answer ---


def read_integer(answer: Answer) -> Reading:
    """The whole answer as an integer from 0 to 100, alone or as `{"score": n}`; never a number
    found in prose.

    `truncated` only where more room could still turn the answer into a number.
    """
    text = spoken(answer.text)
    cut = answer.finish_reason == "length"
    if answer.refusal or answer.finish_reason == "content_filter" or _REFUSAL.fullmatch(text):
        return Reading("refused")
    if cut and (
        _INTEGER_BEGUN.fullmatch(text) or (text.startswith("{") and not text.endswith("}"))
    ):
        return Reading("truncated")
    if found := _ONE_NUMBER.fullmatch(_undressed(text)):
        return Reading("scored", float(found["score"]))
    return _read_object(_undressed(text))


def spoken(text: str) -> str:
    """Return an answer without the thought before it. A thought that does not end is no answer."""
    return _THOUGHT.sub("", text).strip()


def _undressed(text: str) -> str:
    """Return an answer without a code fence, emphasis or quotes around it."""
    fenced = _FENCE.fullmatch(text)
    if fenced:
        text = fenced["content"]
    return text.strip().strip("*_`\"'").strip()


def _read_object(text: str) -> Reading:
    try:
        # pairs, so that a key given twice is seen
        pairs = (
            json.loads(text, object_pairs_hook=lambda items: items)
            if text.startswith("{")
            else None
        )
    except (ValueError, RecursionError):
        pairs = None
    match pairs:
        case [("score", None)]:
            return Reading("refused")
        case [("score", int(score))] if not isinstance(score, bool) and 0 <= score <= 100:
            return Reading("scored", float(score))
    return Reading("unparsable")


def read_expected(answer: Answer) -> Reading:
    """Expectation over the integer tokens 0 to 100 among the candidates for the first token, two
    decimals.

    score = sum(p * n) / sum(p); `unparsable` below a total weight sum(p) of 0.25, where it would
    rest on crumbs, and where the number goes on: the first token of `8/10`, `0.85` or `1. The
    answer ...` is no score.
    """
    text = answer.text.strip()
    if answer.refusal or answer.finish_reason == "content_filter" or _REFUSAL.fullmatch(text):
        return Reading("refused")
    if _NUMBER_BEGUN.match(text) and not _INTEGER.fullmatch(text):
        return Reading("unparsable")
    if splits_number(answer):
        return Reading("unparsable")
    weight = total = 0.0
    for token, logprob in answer.alternatives.items():
        if _INTEGER.fullmatch(token.strip()):
            p = math.exp(logprob)
            weight += p
            total += p * int(token)
    if weight >= _MIN_WEIGHT:
        return Reading("scored", round(min(total / weight, 100.0), 2))
    return Reading("unparsable")


def splits_number(answer: Answer) -> bool:
    """Return whether the answer is a number whose first token is only a part of it."""
    text = answer.text.strip()
    first = next((token.strip() for token in answer.tokens if token.strip()), text)
    return bool(_INTEGER.fullmatch(text)) and first != text


def whole_numbers(text: str, tokens: Sequence[str]) -> bool:
    """Whether `tokens`, which make up `text`, hold every number of `text` in one piece, "100" among
    them."""
    numbers = re.findall(r"[0-9]+", text)
    pieces = [piece for token in tokens for piece in re.findall(r"[0-9]+", token)]
    return "100" in numbers and numbers == pieces
