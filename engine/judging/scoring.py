"""What a judge is asked, which verdict set its answers belong to, and how they are stored."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ..settings import JudgeSettings
from ..traits import Trait

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

_MAX_RAW = 4000


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
