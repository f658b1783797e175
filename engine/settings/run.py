"""All settings of a run, each by one name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal, get_type_hints

from ..errors import UsageError, require
from .capture import CaptureSettings
from .given import plain
from .judge import JudgeLimits, JudgeSettings, read_extra
from .sampling import SampleCounts, Sampling


def check_thresholds(
    threshold: float, neg_threshold: float | None = None, *, name: str = "threshold"
) -> float | None:
    """Return the threshold of neg, None where it is that of pos.

    pos is kept at or above `threshold`, neg below `neg_threshold`. Raise UsageError.
    """
    for said, value in ((name, threshold), ("neg_threshold", neg_threshold)):
        require(
            value is None or (math.isfinite(value) and 0 <= value <= 100),
            f"`{said}` must lie between 0 and 100, not {value}",
        )
    if neg_threshold is None or neg_threshold == threshold:
        return None
    require(
        neg_threshold < threshold,
        f"`neg_threshold` {neg_threshold:g} must not be above `threshold` {threshold:g}: what lies "
        "between would pass on both sides",
    )
    return neg_threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How the machine is used. Never changes a result."""

    batch_size: int | None = None
    """Caps sequences in flight and capture rows; None is auto."""
    tensor_parallel_size: int = 1
    replicas: int = 1
    """Engines that share the work, each with its capture; 0 is auto: as many as the cards bear."""
    ray_address: str | None = None
    """Of the Ray cluster with the replicas: auto (this machine's) or HOST:PORT; None starts one."""
    flush_seconds: float = 5.0
    capture_device: str = "auto"
    self_check: Literal["off", "sample", "all"] = "sample"
    blocks: str | None = None
    """Path of the decoder blocks in the model, where they are not found."""

    def __post_init__(self) -> None:
        require(
            self.batch_size is None or self.batch_size >= 1,
            f"`batch_size` must be auto or at least 1, not {self.batch_size}",
        )
        require(
            self.tensor_parallel_size >= 1,
            f"`tensor_parallel_size` must be at least 1, not {self.tensor_parallel_size}",
        )
        require(self.replicas >= 0, f"`replicas` must be auto or at least 1, not {self.replicas}")
        require(
            self.ray_address is None or self.replicas != 1,
            "`ray_address` needs `replicas`: auto, or a number above 1",
        )
        require(
            self.flush_seconds > 0 and math.isfinite(self.flush_seconds),
            f"`flush_seconds` must be above 0, not {self.flush_seconds}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """All settings of a run."""

    sampling: Sampling = field(default_factory=Sampling)
    counts: SampleCounts = field(default_factory=SampleCounts)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    limits: JudgeLimits = field(default_factory=JudgeLimits)
    capture: CaptureSettings = field(default_factory=CaptureSettings)
    capture_rows: Literal["all", "kept", "none"] = "all"
    """Whose activations are captured: every response's, only kept ones', or nobody's."""
    threshold: float = 50.0
    """pos is kept at or above it, neg below it. A change only exports again."""
    neg_threshold: float | None = None
    """neg is kept below it; None is `threshold`."""
    paired: bool = False
    """Whether a sample counts only where its twin passes: the same instruction pair, question and
    repeat on the other side."""
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        check_thresholds(self.threshold, self.neg_threshold)


DEFAULTS = RunSettings()
_FLAT: dict[str, tuple[str, str]] = {
    **{
        name: ("sampling", name)
        for name in (
            "dtype",
            "temperature",
            "top_p",
            "top_k",
            "max_new_tokens",
            "seed",
            "prompt_format",
            "system_prompt",
            "prefill",
            "thinking",
            "max_thinking_tokens",
            "chat_template_kwargs",
        )
    },
    **{name: ("counts", name) for name in ("n_examples", "min_kept", "max_examples")},
    "judge_model": ("judge", "model"),
    "judge_mode": ("judge", "mode"),
    "judge_extra": ("judge", "extra"),
    **{
        f"judge_{name}": ("limits", name)
        for name in ("base_url", "rpm", "tpm", "concurrency", "patience", "retry")
    },
    "max_cost": ("limits", "max_cost"),
    "pool": ("capture", "pools"),
    "layers": ("capture", "layers"),
    "include_embeddings": ("capture", "include_embeddings"),
    "capture_dtype": ("capture", "dtype"),
    "attention": ("capture", "attention"),
    "capture": ("", "capture_rows"),
    **{name: ("", name) for name in ("threshold", "neg_threshold", "paired")},
    **{
        name: ("execution", name)
        for name in (
            "batch_size",
            "tensor_parallel_size",
            "replicas",
            "ray_address",
            "flush_seconds",
            "capture_device",
            "self_check",
            "blocks",
        )
    },
}
"""Each setting by the one name it has everywhere: (class in RunSettings, field)."""
NAMES = tuple(_FLAT)
_ELSEWHERE = {
    "gen_model": "; it is `model` here",
    "extract_activations": "; it is `capture` here: all, kept or none",
}
"""What has another name on the command line, or in the guide."""


def value_of(settings: RunSettings, name: str) -> Any:
    """Return one setting by its name, as `judge_model`."""
    group, field_name = _FLAT[name]
    return getattr(getattr(settings, group) if group else settings, field_name)


def plain_value(name: str, given: Any) -> Any:
    """Return what is given for a setting as a plain value of its type. Raise UsageError."""
    if name not in _FLAT:
        close = get_close_matches(name, NAMES, 1)
        hint = f"; did you mean `{close[0]}`?" if close else f"; known: {', '.join(NAMES)}"
        raise UsageError(f"there is no setting {name!r}{_ELSEWHERE.get(name, hint)}")
    if name == "judge_extra":
        return read_extra(given)
    group, field_name = _FLAT[name]
    owner = type(getattr(DEFAULTS, group)) if group else RunSettings
    return plain(name, given, get_type_hints(owner)[field_name])


def apply(given: Mapping[str, Any], base: RunSettings = DEFAULTS) -> RunSettings:
    """Return `base` with the settings `given` by name. Raise UsageError for unknown names or
    values."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in {name: plain_value(name, each) for name, each in given.items()}.items():
        group, field_name = _FLAT[name]
        groups.setdefault(group, {})[field_name] = value
    direct = groups.pop("", {})
    changed = {group: replace(getattr(base, group), **fields) for group, fields in groups.items()}
    return replace(base, **changed, **direct)
