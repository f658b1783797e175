"""Response → Verdict: a judge at an OpenAI-compatible endpoint, or the loaded model itself."""

from __future__ import annotations

from .capabilities import JudgeProfile, judge_key, local_prompt
from .client import OPENAI, is_near, read_base_url
from .cost import Usage, find_price
from .endpoint import EndpointJudge
from .headers import authorizes, read_headers
from .headers import secrets as header_secrets
from .local import LocalJudge, NextTokenEngine, calibration_positions, need_words
from .probe import complete

__all__ = [
    "OPENAI",
    "EndpointJudge",
    "JudgeProfile",
    "LocalJudge",
    "NextTokenEngine",
    "Usage",
    "authorizes",
    "calibration_positions",
    "complete",
    "find_price",
    "header_secrets",
    "is_near",
    "judge_key",
    "local_prompt",
    "need_words",
    "read_base_url",
    "read_headers",
]
