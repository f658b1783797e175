"""The settings of a run, checked on creation, in classes by what a change means on an existing
folder.

Messages name a setting in backquotes, as `temperature`; the command line shows it as its option.
"""

from __future__ import annotations

from .arguments import plain_arguments
from .capture import DEFAULT_POOL, POOLS, CaptureSettings, check_pool
from .given import parse_layers
from .judge import JudgeLimits, JudgeSettings, read_extra
from .run import (
    DEFAULTS,
    NAMES,
    Execution,
    RunSettings,
    apply,
    check_thresholds,
    value_of,
)
from .sampling import DTYPES, PROMPT_FORMATS, THINKING, SampleCounts, Sampling

__all__ = [
    "DEFAULTS",
    "DEFAULT_POOL",
    "DTYPES",
    "NAMES",
    "POOLS",
    "PROMPT_FORMATS",
    "THINKING",
    "CaptureSettings",
    "Execution",
    "JudgeLimits",
    "JudgeSettings",
    "RunSettings",
    "SampleCounts",
    "Sampling",
    "apply",
    "check_pool",
    "check_thresholds",
    "parse_layers",
    "plain_arguments",
    "read_extra",
    "value_of",
]
