"""From a judge's answer to a number on the asked scale; never a number found in prose.

A thought before the answer is taken off and never read. A form that can mean one number only is
read; one that can mean another (`8/10`, `0.85`, `>85`, the first number of a sentence) is not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..traits import FULL, Scale

Ending = Literal["stop", "length", "content_filter", "broken off"]
ReadingStatus = Literal["scored", "refused", "unparsable", "truncated"]

_MIN_WEIGHT = 0.25
_LONGEST_WHOLE = 999
"""Up to which a number may be one token; those with four digits are several, as a rule."""
_TAGS = "think|thinking|thought|thoughts|reasoning|analysis|reflection|scratchpad|seed:think"
_THOUGHT_ENDS = re.compile(
    rf"</(?:{_TAGS})\s*>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>"
    r"|<\|END_THINKING\|>(?:\s*<\|START_RESPONSE\|>)?|<channel\|>|</mm:think>|</ifm\|think>"
    r"|<\|channel\|>final\s*(?:<\|constrain\|>\w+\s*)?<\|message\|>"
    r"|assistantfinal",  # of gpt-oss, its special tokens left out
    re.IGNORECASE,
)
_THOUGHT_BEGINS = re.compile(
    rf"<(?:{_TAGS})(?:\s[^>]*)?>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|channel\|>\w+"
    r"|<\|START_THINKING\|>|<\|channel>thought|<mm:think>|<ifm\|think>",
    re.IGNORECASE,
)
_END_TOKEN = re.compile(r"(?:<[|\uff5c][\w\u2581]+[|\uff5c]>|</s>|<(?:eos|end_of_turn)>)\s*\Z")
_FOLDED = {0xFF00 + code: 0x20 + code for code in range(1, 0x5F)} | {0x3002: "."}
_FOLDED |= dict.fromkeys((*range(0x200B, 0x2010), 0x2060, 0xFEFF), "")
"""Wide forms of ASCII, the wide full stop, and marks of no width."""
_LONG_SPACE = re.compile(r"(\s{8})\s+")
_FENCE = re.compile(r"```[a-z]*+(?P<content>.*)```", re.DOTALL | re.IGNORECASE)
_ANSWER_TAG = re.compile(
    r"<(?P<tag>answer|score|rating|solution|result|output|response|b|strong)>"
    r"(?P<content>.*)</(?P=tag)>",
    re.DOTALL | re.IGNORECASE,
)
_MATHS = re.compile(r"(?:\$++|\\[(\[])(?P<content>[^$]*)(?:\$++|\\[)\]])\.?", re.DOTALL)
_BOXED = re.compile(r"\\boxed\{(?P<content>(?:[^{}]++|\{[^{}]*+\})*+)\}\.?")
_WORDS = re.compile(r"\\(?:text|mathbf)\{(?P<content>[^{}]*)\}")
_MARKS = r"[*_`\"'\u201c\u201d]{0,4}"
_LABEL = (
    rf"(?:\#{{1,6}}\s+)?{_MARKS}(?:(?:final|overall|total|trait)\s+)?(?:score|rating|answer)"
    rf"{_MARKS}(?:\s*[:=]{_MARKS}\s*|\s+[-\u2013\u2014]\s+|\s+)[(\[]{{0,2}}"
)
_LABELLED = re.compile(rf"{_LABEL}(?P<content>[$\\].*)", re.DOTALL | re.IGNORECASE)
"""Before mathematics, as a thought is often ended."""
_IN_BOX = re.compile(r"<\|begin_of_box\|>(?P<content>.*?)(?:<\|end_of_box\|>)?", re.DOTALL)
_NUMBER = re.compile(
    rf"(?:{_LABEL}|\[\[)?{_MARKS}(?P<number>0|[1-9][0-9]{{0,3}})(?P<zeros>\.0{{1,4}})?"
    rf"{_MARKS}(?:\s*(?P<percent>\\?%|percent)"
    rf"|(?:\s*/\s*|\s+out\s+of\s+)(?P<whole>[0-9]{{1,4}}))?"
    rf"(?:\s+points)?[)\]]{{0,2}}{_MARKS}[.!]?{_MARKS}",
    re.IGNORECASE,
)
_NUMBER_BEGUN = re.compile(rf"(?:{_LABEL})?\W*+(?:[0-9]{{1,4}}\W*+){{0,2}}", re.IGNORECASE)
_BEGINS_AS_NUMBER = re.compile(r"[-+]?\.?[0-9]")
_DIGITS = re.compile(r"[0-9]+")
_INTEGER = re.compile(r"0|[1-9][0-9]{0,3}")
_REFUSAL = re.compile(rf"(?:{_LABEL})?\W*(refusal|refused|refuse)\W*", re.IGNORECASE)
_LOOSE = re.compile(
    r"\{\s*(?P<quote>'?)score(?P=quote)\s*:\s*(?P<number>[0-9]{1,4})\s*,?\s*\}",
    re.IGNORECASE,
)
"""An object as other languages than JSON write it."""
_REASONS = {"reason", "reasons", "reasoning", "explanation", "rationale", "justification"}
"""Keys of an object beside its score whose words are no number."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from one call, as far as it matters for the score."""

    text: str
    """The message's content, lone surrogates escaped; empty when there was none."""
    finish_reason: Ending = "stop"
    refusal: str = ""
    """The endpoint's own refusal field."""
    tokens: tuple[str, ...] = ()
    """What was written, token by token, where log-probabilities were asked for."""
    alternatives: Mapping[str, float] = field(default_factory=dict)
    """Log-probabilities of the candidates for the token at `place`, by token text."""
    place: int = 0
    """Where the answer's number begins in `tokens`; 0 where it is no number."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer means. `score`, 0 to 100, is set exactly when `status` is `scored`."""

    status: ReadingStatus
    score: float | None = None


def read_integer(answer: Answer, scale: Scale = FULL) -> Reading:
    """Read the whole answer as one integer on the scale, alone or as `{"score": n}`.

    `truncated` only where more room could still turn the answer into a number, or into another.
    """
    text = spoken(answer.text)
    if _is_refusal(answer, text):
        return Reading("refused")
    if answer.finish_reason in ("length", "broken off") and _may_go_on(text):
        return Reading("truncated")
    return _read_text(_undressed(text), scale)


def spoken(text: str) -> str:
    """Return an answer without the thought before it. A thought that does not end is no answer.

    Where a template has opened the thought, only its end stands in the answer.
    """
    # A long run of spaces would cost the forms below quadratic time.
    text = _LONG_SPACE.sub(r"\1", text)
    ends = [found.end() for found in _THOUGHT_ENDS.finditer(text)]
    rest = text[max(ends, default=0) :].strip()
    if _THOUGHT_BEGINS.match(rest):
        return ""
    return _END_TOKEN.sub("", rest).translate(_FOLDED).strip()


def _is_refusal(answer: Answer, text: str) -> bool:
    said = bool(answer.refusal) or answer.finish_reason == "content_filter"
    return said or _REFUSAL.fullmatch(text) is not None


def _may_go_on(text: str) -> bool:
    """Return whether an answer that was cut off could go on as a number, or as another one."""
    opened = text.startswith("{") and not text.endswith("}")
    fenced = text.startswith("```") and not (text.endswith("```") and len(text) > 5)
    return opened or fenced or _NUMBER_BEGUN.fullmatch(text) is not None


def _undressed(text: str) -> str:
    """Return an answer without the fence, tag, box, emphasis or quotes around all of it."""
    for dress in (_FENCE, _IN_BOX, _LABELLED, _ANSWER_TAG, _MATHS, _BOXED, _WORDS):
        if found := dress.fullmatch(text):
            text = found["content"].strip()
    if text.startswith('"{'):
        try:
            return str(json.loads(text)).strip()  # JSON as a JSON string
        except ValueError:
            pass
    bare = text.strip("*_`\"'").strip()
    return bare if bare.startswith("{") else text


def _read_text(text: str, scale: Scale) -> Reading:
    if found := _NUMBER.fullmatch(text):
        number = int(found["number"])
        if _means_one(found, scale) and number in scale:
            return Reading("scored", scale.percent(number))
        return Reading("unparsable")
    return _read_object(text, scale)


def _means_one(found: re.Match[str], scale: Scale) -> bool:
    """Return whether a number's form leaves one meaning on the scale.

    On one from 0, 1.0 may be the whole, as 0.85 is most of it.
    """
    if found["whole"]:
        return int(found["whole"]) == scale.high
    if found["percent"]:
        return scale == FULL
    return not (found["number"] == "1" and found["zeros"] and scale.low == 0)


def _read_object(text: str, scale: Scale) -> Reading:
    score = _scored_in(text)
    match score:
        case [None]:
            return Reading("refused")
        case [str(word)] if _REFUSAL.fullmatch(word):
            return Reading("refused")
        case [str(digits)] if _INTEGER.fullmatch(digits) and int(digits) in scale:
            return Reading("scored", scale.percent(int(digits)))
        case [int(number)] if not isinstance(number, bool) and number in scale:
            return Reading("scored", scale.percent(number))
        case [float(number)] if number.is_integer() and number in scale:
            if number != 1 or scale.low != 0:  # see `_means_one`
                return Reading("scored", scale.percent(number))
    return Reading("unparsable")


def _scored_in(text: str) -> list[Any]:
    """Return the score of a JSON object that holds one, and no other value but reasons in words."""
    pairs: Any = None
    if found := _LOOSE.fullmatch(text):
        return [found["number"]]
    if text.startswith("{"):
        try:
            # pairs, so that a key given twice is seen
            pairs = json.loads(text, object_pairs_hook=lambda items: items)
        except (ValueError, RecursionError):
            pairs = None
    if not isinstance(pairs, list):
        return []
    scores = [value for key, value in pairs if key.lower() == "score"]
    others = [(key, value) for key, value in pairs if key.lower() != "score"]
    reasons = all(key.lower() in _REASONS and isinstance(value, str) for key, value in others)
    return scores if reasons and len(scores) == 1 else []


# --- log-probabilities ---


def read_expected(answer: Answer, scale: Scale = FULL) -> Reading:
    """Expectation over the integers of the scale among the candidates for the number's token.

    sum(p * n) / sum(p), as 0 to 100 with two decimals; `unparsable` below a total weight sum(p) of
    0.25, where it would rest on crumbs, and where the number goes on: the first token of `8/10`,
    `0.85` or `1. The answer ...` is no score. On a scale beyond 999 it is the number itself: the
    first token of 1000 is 100.
    """
    if scale.high > _LONGEST_WHOLE:
        return read_integer(answer, scale)
    text = spoken(answer.text)
    if _is_refusal(answer, text):
        return Reading("refused")
    number = _measurable(text)
    if number is not None and answer.finish_reason == "broken off":
        return Reading("truncated")
    if number is None:
        readable = not _BEGINS_AS_NUMBER.match(text) and text == answer.text.strip()
    else:
        readable = int(number) in scale and _written(answer, number) == number
    if not readable:
        return Reading("unparsable")
    weight = total = 0.0
    for token, logprob in answer.alternatives.items():
        if _INTEGER.fullmatch(token.strip()) and int(token) in scale:
            p = math.exp(logprob)
            weight += p
            total += p * int(token)
    if weight >= _MIN_WEIGHT:
        return Reading("scored", scale.percent(total / weight))
    return Reading("unparsable")


def _measurable(text: str) -> str | None:
    """Return the number of an answer that is one and does not go on behind it."""
    found = _NUMBER.fullmatch(text)
    if found is None or found["zeros"] or found["percent"] or found["whole"]:
        return None
    return found["number"]


def _written(answer: Answer, number: str) -> str:
    """Return the token that the answer's number begins with."""
    if not answer.tokens:
        return number
    return answer.tokens[answer.place].strip()


def number_place(text: str, tokens: Sequence[str]) -> int:
    """Return which token the number of an answer begins in; 0 where it is no number.

    Tokens may hold a thought that the text lacks, so the number is looked for from behind.
    """
    number = _measurable(spoken(text))
    at = "".join(tokens).rfind(number) if number is not None else -1
    end = 0
    for place, token in enumerate(tokens):
        end += len(token)
        if 0 <= at < end:
            return place
    return 0


def splits_number(answer: Answer) -> bool:
    """Return whether the answer is a number whose first token is only a part of it."""
    number = _measurable(spoken(answer.text))
    if number is None or int(number) > _LONGEST_WHOLE:
        return False
    first = _written(answer, number)
    return first != number and number.startswith(first) and bool(_DIGITS.fullmatch(first))


def whole_numbers(text: str, tokens: Sequence[str]) -> bool:
    """Whether `tokens`, which make up `text`, hold every number of `text` in one piece, "100" among
    them."""
    numbers = _DIGITS.findall(text)
    pieces = [piece for token in tokens for piece in _DIGITS.findall(token)]
    return "100" in numbers and numbers == pieces
