"""What a judge can be asked, which verdict set its answers belong to, and how they are stored.

The first guess is from a small table, made right by what the model answers to probes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..settings import JudgeSettings
from ..traits import FULL, Scale, Trait

CAP = 512
"""Most output tokens of an integer answer: a few are visible, but hidden reasoning counts as well.
"""
RAISED_CAP = 4096
"""The cap after an answer that was cut off."""
CAPS = frozenset({"max_tokens", "max_completion_tokens"})
"""Names under which a request says how long its answer may be."""
_SLOWEST = 25.0
"""Tokens a second of a judge that is given room for a thought, at least."""
_EXPECTED_CAP = 16
"""One token is measured; a few more let a stored answer be read, such as a refusal."""
_NEXT_EFFORT: dict[str | None, str | None] = {"minimal": "none", "none": "low", "low": None}
_UNSUPPORTED = re.compile(
    r"unsupported|not support|not permitted|not allowed|unknown|unrecogni|unexpected|extra",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"['\"`]([a-z_]+)[.'\"`]")
_LEAST_LOGPROBS = 5
"""With fewer alternatives too little of the probability may be seen."""
_ALLOWED = re.compile(
    r"(?:\bmax\w*(?:\s+\w+){0,3}[:\s]\s*|at most\s+|up to\s+|equal to\s+|[<\u2264]=?\s*"
    r"|between \d+ and\s+)(\d{1,2})\b",
    re.IGNORECASE,
)
"""How an endpoint says how many alternatives may be asked for."""

Mode = Literal["integer", "expected"]
Message = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeProfile:
    """Which parameters the model accepts, and the measurement that follows from it."""

    model: str
    mode: Mode = "integer"
    """`expected` only where the probe showed log-probabilities and numbers, "100" among them, as
    single tokens."""
    cap_name: Literal["max_completion_tokens", "max_tokens"] = "max_tokens"
    temperature: bool = True
    """Whether temperature 0 is accepted."""
    top_logprobs: int = 20
    """How many alternatives are returned for a token, 0 for none."""
    schema: bool = True
    """Whether an answer can be held to a JSON schema."""
    effort: str | None = None
    """Least reasoning effort accepted; None sends no such parameter."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> JudgeProfile:
        """The inverse of `as_json`. Raises TypeError on keys of another version."""
        return cls(**values)

    def request(self, messages: Sequence[Message], cap: int, scale: Scale = FULL) -> dict[str, Any]:
        """The parameters of one chat completion that measures a score."""
        out: dict[str, Any] = {"model": self.model, "messages": list(messages)}
        out[self.cap_name] = cap if self.mode == "integer" else _EXPECTED_CAP
        if self.temperature:
            out["temperature"] = 0
        if self.effort is not None:
            out["reasoning_effort"] = self.effort
        if self.mode == "expected":
            out |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        elif self.schema:
            out["response_format"] = score_schema(scale)
        elif messages[-1]["content"] != plain_request(scale):
            content = f"{messages[-1]['content']}\n\n{plain_request(scale)}"
            out["messages"] = [*messages[:-1], {"role": "user", "content": content}]
        return out


def seconds_for(request: Mapping[str, Any]) -> float:
    """Return the seconds that an answer may take where a request gives it room for a thought."""
    room = max(caps_of(request), default=0)
    return room / _SLOWEST if room > CAP else 0.0


def caps_of(request: Mapping[str, Any]) -> list[int]:
    """Return the limits that a request sets to its answer."""
    return [request[name] for name in CAPS if isinstance(request.get(name), int)]


def first_guess(model: str, base_url: str | None) -> JudgeProfile:
    """The profile to probe first, by the model's name; an unknown one is tried with everything."""
    name = model.rpartition("/")[2]
    cap: Literal["max_completion_tokens", "max_tokens"] = (
        "max_tokens" if base_url else "max_completion_tokens"
    )
    if re.match(r"gpt-5\.\d", name):
        return _reasoning(JudgeProfile(model=model), "none")
    if re.match(r"gpt-5(-(?!chat)|$)", name):
        return _reasoning(JudgeProfile(model=model), "minimal")
    if re.match(r"o\d(-|$)", name):
        return _reasoning(JudgeProfile(model=model), "low")
    return JudgeProfile(model=model, cap_name=cap)


def _reasoning(profile: JudgeProfile, effort: str) -> JudgeProfile:
    return replace(
        profile,
        cap_name="max_completion_tokens",
        temperature=False,
        top_logprobs=0,
        effort=effort,
        mode="integer",
    )


def refine(
    profile: JudgeProfile, param: str, message: str, *, plainly: bool = False
) -> JudgeProfile | None:
    """The profile after a request was rejected, None where the rejection is about nothing a profile
    decides.

    `param` and `message` are the error's; some endpoints name the parameter in the message only.
    `plainly`: only where it names the parameter as such and says that it is not supported; a
    message on somebody's text may hold any word.
    """
    if plainly:
        named = {param.partition(".")[0]} if param else set(_QUOTED.findall(message))
        if not _UNSUPPORTED.search(message):
            return None
    else:
        named = {param.partition(".")[0], *re.findall(r"[a-z_]+", message)}
    if profile.cap_name in named and not _UNSUPPORTED.search(message):
        return None  # the cap's size is rejected, for example for a prompt that leaves no room
    change: dict[str, Any] = {}
    if profile.temperature and "temperature" in named:
        # models that reason in hidden tokens reject it, and logprobs with it
        return _reasoning(profile, "minimal")
    if profile.top_logprobs and named & {"logprobs", "top_logprobs"}:
        fewer = _fewer_logprobs(profile.top_logprobs, "top_logprobs" in named, message)
        change = {"top_logprobs": fewer, "mode": profile.mode if fewer else "integer"}
    elif profile.effort is not None and named & {"reasoning_effort", "reasoning"}:
        change = {"effort": _NEXT_EFFORT.get(profile.effort)}
    elif profile.schema and named & {
        "response_format",
        "json_schema",
        "guided_json",
        "structured_outputs",
    }:
        change = {"schema": False}
    elif profile.cap_name in named:
        other = "max_tokens" if profile.cap_name != "max_tokens" else "max_completion_tokens"
        change = {"cap_name": other}
    return replace(profile, **change) if change else None


def _fewer_logprobs(asked: int, by_number: bool, message: str) -> int:
    """Return how many alternatives to ask for instead, 0 for none: as many as the message allows.

    `by_number`: it names the parameter that says how many.
    """
    found = _ALLOWED.search(message)
    allowed = int(found[1]) if found else _LEAST_LOGPROBS if by_number else 0
    return allowed if _LEAST_LOGPROBS <= allowed < asked else 0


def plainer(profile: JudgeProfile) -> JudgeProfile | None:
    """The profile after a rejection that names no parameter of several: first without
    log-probabilities, then without a schema, then the barest; None where there is nothing left.

    Temperature 0 goes last: without it verdicts are sampled.
    """
    if profile.top_logprobs:
        return replace(profile, top_logprobs=0, mode="integer")
    if profile.schema:
        return replace(profile, schema=False)
    for temperature in (profile.temperature, False):
        bare = JudgeProfile(
            model=profile.model, temperature=temperature, top_logprobs=0, schema=False
        )
        if bare != profile:
            return bare
    return None


_MAX_RAW = 4000


def plain_request(scale: Scale = FULL) -> str:
    """Return what ends the prompt for endpoints that cannot be held to a schema.

    It is the re-ask after an unparsable answer as well.
    """
    return f"Answer with a single integer from {scale} and nothing else."


def score_schema(scale: Scale = FULL) -> dict[str, Any]:
    """Return the response format that holds an answer to one number, or to none."""
    return {
        "type": "json_schema",
        "json_schema": {
            "name": "rating",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {
                    "score": {
                        # null, because a judge that must write an integer invents one where the
                        # prompt allows REFUSAL
                        "type": ["integer", "null"],
                        "description": (
                            f"The number asked for, {scale}; null only in place of an answer such "
                            "as REFUSAL."
                        ),
                    }
                },
                "required": ["score"],
                "additionalProperties": False,
            },
        },
    }


def local_prompt(trait: Trait) -> str:
    """The judge prompt of the local judge, `{question}` and `{answer}` still to be filled."""
    if trait.yes_no_prompt is not None:
        return trait.yes_no_prompt
    middle = (trait.scale.low + trait.scale.high) / 2
    return (
        f"{trait.eval_prompt}\n\nInstead of a number, answer with one word: is the score above "
        f"{middle:g}? Answer Yes or No."
    )


def judge_key(judging: JudgeSettings, trait: Trait) -> str:
    """Which verdict set: 16 hex digits of sha256 over canonical JSON of judge model, mode asked
    for, judge prompt; of the scale where it is not the usual one, and of what is added to requests.
    """
    parts: list[Any] = [judging.model, judging.mode]
    if judging.is_local:
        parts.append(local_prompt(trait))
    else:
        parts.append(trait.eval_prompt)
        if trait.scale != FULL:
            parts.append({"scale": [trait.scale.low, trait.scale.high]})
    if judging.extra:
        parts.append({"extra": json.loads(judging.extra)})
    content = json.dumps(parts, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def escape_surrogates(text: str) -> str:
    r"""Lone surrogates as `\udXXX`: neither UTF-8 nor Arrow can carry them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def raw_text(text: str) -> str:
    """A judge's answer as it is stored: surrogates escaped, at most 4000 characters."""
    text = escape_surrogates(text)
    return text if len(text) <= _MAX_RAW else f"{text[:_MAX_RAW]}... ({len(text)} characters)"
