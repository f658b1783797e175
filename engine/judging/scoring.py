"""What a judge is asked, which verdict set its answers belong to, and how they are stored."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ..settings import JudgeSettings
from ..traits import FULL, Scale, Trait

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
