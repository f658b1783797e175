"""Which judge, and what it may use."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import require

DEFAULT_JUDGE = "gpt-5-mini"
LOCAL_JUDGE = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSettings:
    """Which judge. A change adds a verdict set beside the old one."""

    model: str = DEFAULT_JUDGE
    """A model at an OpenAI-compatible endpoint, `local` (the loaded engine), or `local:MODEL`."""
    mode: Literal["auto", "integer", "expected"] = "auto"
    extra: str = ""
    """What a request's body holds beside our own keys: a JSON object, as `read_extra` writes it."""

    def __post_init__(self) -> None:
        require(
            not (self.extra and self.is_local),
            f"`judge_extra` is for a judge at an endpoint; `judge_model` {self.model} has none",
        )

    @property
    def is_local(self) -> bool:
        return self.model == LOCAL_JUDGE or self.model.startswith(f"{LOCAL_JUDGE}:")


def read_extra(given: str | Mapping[str, Any]) -> str:
    """Return what is to be added to a judge's requests as canonical JSON, empty where it is none.

    Raise UsageError where it is no JSON object, or holds what a request is made of.
    """
    found: Any = given
    try:
        if isinstance(given, str):
            found = json.loads(given or "{}", parse_constant=_refuse_constant)
        text = json.dumps(found, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        found, text = None, ""
    shown = " ".join(str(given).split())[:60]
    require(
        isinstance(found, Mapping),
        f'`judge_extra` must be a JSON object, like {{"reasoning": {{"enabled": false}}}}; '
        f"{shown!r} is none",
    )
    owned = sorted(_OWN_KEYS & set(found))
    require(not owned, f"`judge_extra` cannot set {', '.join(owned)}: these are the judge's own")
    return text if found else ""


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


_OWN_KEYS = frozenset({"model", "messages", "n", "stream", "logprobs", "top_logprobs"})
"""Of a request's body: another value would make other verdicts, or answers that cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeLimits:
    """What the judge may use of an endpoint; never changes a result."""

    base_url: str | None = None
    rpm: float = 500.0
    """Requests per minute."""
    tpm: float = 0.0
    """Tokens per minute, 0 is off."""
    concurrency: int = 0
    """Requests in flight; 0 adapts."""
    patience: float = 600.0
    """Longest Retry-After, in seconds, that is waited for; a longer one stops resumably."""
    max_cost: float = 0.0
    """US dollars; 0 is off."""
    retry: bool = False
    """Whether verdicts that were given up are asked for once more."""

    def __post_init__(self) -> None:
        finite = math.isfinite
        require(self.rpm > 0 and finite(self.rpm), f"`judge_rpm` must be above 0, not {self.rpm}")
        require(
            self.tpm >= 0 and finite(self.tpm),
            f"`judge_tpm` must be 0 (off) or more, not {self.tpm}",
        )
        require(self.concurrency >= 0, "`judge_concurrency` must be auto or at least 1")
        require(
            self.patience >= 0 and finite(self.patience),
            f"`judge_patience` must be 0 or more seconds, not {self.patience}",
        )
        require(
            self.max_cost >= 0 and finite(self.max_cost),
            f"`max_cost` must be 0 (off) or more, not {self.max_cost}",
        )
