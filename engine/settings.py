"""The settings of a run, checked on creation, in classes by what a change means on an existing
folder.

Messages name a setting in backquotes, as `temperature`; the command line shows it as its option.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal

from .errors import UsageError

DEFAULT_JUDGE = "gpt-5-mini"
LOCAL_JUDGE = "local"
POOLS = ("response_mean", "prompt_last", "prompt_mean", "response_last")
DEFAULT_POOL = POOLS[0]
DTYPES = ("auto", "bfloat16", "float16", "float32")
THINKING = ("auto", "off", "template")
"""auto: off where the template can; off: refused where it cannot; template: as it has it."""
PROMPT_FORMATS = ("user", "system", "raw")
_OWN_VARIABLES = {
    "add_generation_prompt",
    "continue_final_message",
    "conversation",
    "messages",
    "return_dict",
    "strftime_now",
    "tokenize",
}
"""Of a chat template's call, ours to set."""
_MAX_TEMPERATURE = 2.0
"""vLLM's."""
_MAX_EXAMPLES = 1_000_000
"""Of a polarity of one trait; a plan is held in memory."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Model and sampling: what a sample's id hashes, and the generation dtype.

    A change on an existing folder is refused.
    """

    model: str = ""
    """A hub name, or the name of a local folder; found by the run where it is empty."""
    revision: str = ""
    """Commit of a hub model, or a fingerprint of a local folder's files."""
    dtype: str = "auto"
    """Of generation, one of DTYPES; auto is the model's own."""
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    """0 is off."""
    max_new_tokens: int = 150
    seed: int = 0
    prompt_format: Literal["user", "system", "raw"] = "user"
    """Where the instruction stands: before the question in the user turn, as the system turn, or in
    plain text although there is a chat template."""
    system_prompt: str | None = None
    """A fixed system turn, may be empty; None leaves it to the template."""
    prefill: str = ""
    """What the model's turn begins with; no part of the response."""
    thinking: str = "auto"
    """One of THINKING: what a template that can turn a model's thought off is told."""
    chat_template_kwargs: str = ""
    """A JSON object of variables for the chat template."""

    def __post_init__(self) -> None:
        _require(
            self.prompt_format in PROMPT_FORMATS,
            f"`prompt_format` {self.prompt_format!r} is unknown; choose from "
            f"{', '.join(PROMPT_FORMATS)}",
        )
        _require(
            self.thinking in THINKING,
            f"`thinking` {self.thinking!r} is unknown; choose from {', '.join(THINKING)}",
        )
        self.template_variables()
        _require(
            self.dtype in DTYPES,
            f"`dtype` {self.dtype!r} is unknown; choose from {', '.join(DTYPES)}",
        )
        _require(
            self.max_new_tokens >= 1,
            f"`max_new_tokens` must be at least 1, not {self.max_new_tokens}",
        )
        _require(
            0 <= self.temperature <= _MAX_TEMPERATURE,
            f"`temperature` must be from 0 to {_MAX_TEMPERATURE}, not {self.temperature}",
        )
        _require(0 < self.top_p <= 1, f"`top_p` must be above 0 and at most 1, not {self.top_p}")
        _require(self.top_k >= 0, f"`top_k` must be 0 (off) or more, not {self.top_k}")

    @property
    def wants_system(self) -> bool:
        """Whether something is to stand in a system turn."""
        if self.prompt_format == "raw":
            return False
        return self.prompt_format == "system" or self.system_prompt is not None

    def template_variables(self) -> dict[str, Any]:
        """Return `chat_template_kwargs` as a dict. Raise UsageError."""
        said = f"`chat_template_kwargs` {self.chat_template_kwargs[:60]!r}"
        try:
            found = json.loads(self.chat_template_kwargs or "{}")
        except ValueError as error:
            raise UsageError(f"{said} is not JSON: {error}") from None
        _require(
            isinstance(found, dict), f'{said} must be an object, as {{"enable_thinking": false}}'
        )
        own = sorted(_OWN_VARIABLES & found.keys())
        _require(not own, f"{said}: {', '.join(own)} cannot be set there")
        return dict(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCounts:
    """How many samples. A change extends the plan, or selects a part of it."""

    n_examples: int = 100
    """Per polarity."""
    min_kept: int = 0
    """Add rounds of `n_examples` until so many pass on each side; 0 is off."""
    max_examples: int = 0
    """Per polarity, the end of adding rounds; 0 means ten rounds."""

    def __post_init__(self) -> None:
        _require(
            1 <= self.n_examples <= _MAX_EXAMPLES,
            f"`n_examples` must be from 1 to {_MAX_EXAMPLES:,}, not {self.n_examples}",
        )
        _require(self.min_kept >= 0, f"`min_kept` must be 0 (off) or more, not {self.min_kept}")
        _require(
            self.max_examples == 0 or self.n_examples <= self.max_examples <= _MAX_EXAMPLES,
            f"`max_examples` must be from `n_examples` ({self.n_examples}) to {_MAX_EXAMPLES:,}, "
            f"not {self.max_examples}",
        )

    @property
    def limit(self) -> int:
        """Most samples a side may reach."""
        if not self.min_kept:
            return self.n_examples
        return self.max_examples or 10 * self.n_examples


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSettings:
    """Which judge. A change adds a verdict set beside the old one."""

    model: str = DEFAULT_JUDGE
    """A model at an OpenAI-compatible endpoint, `local` (the loaded engine), or `local:MODEL`."""
    mode: Literal["auto", "integer", "expected"] = "auto"
    extra: str = ""
    """What a request's body holds beside our own keys: a JSON object, as `read_extra` writes it."""

    def __post_init__(self) -> None:
        _require(
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
    _require(
        isinstance(found, Mapping),
        f'`judge_extra` must be a JSON object, like {{"reasoning": {{"enabled": false}}}}; '
        f"{shown!r} is none",
    )
    owned = sorted(_OWN_KEYS & set(found))
    _require(not owned, f"`judge_extra` cannot set {', '.join(owned)}: these are the judge's own")
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
        _require(self.rpm > 0 and finite(self.rpm), f"`judge_rpm` must be above 0, not {self.rpm}")
        _require(
            self.tpm >= 0 and finite(self.tpm),
            f"`judge_tpm` must be 0 (off) or more, not {self.tpm}",
        )
        _require(self.concurrency >= 0, "`judge_concurrency` must be auto or at least 1")
        _require(
            self.patience >= 0, f"`judge_patience` must be 0 or more seconds, not {self.patience}"
        )
        _require(self.max_cost >= 0, f"`max_cost` must be 0 (off) or more, not {self.max_cost}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSettings:
    """What is captured. A change makes a new activation set; other pools stand beside the old."""

    pools: tuple[str, ...] = (DEFAULT_POOL,)
    layers: tuple[int, ...] | None = None
    """Block indices, ascending; None is all."""
    include_embeddings: bool = False
    dtype: str = "auto"
    """Compute dtype of the pass; pooling is float32 always.

    auto: the model's own, float32 where the device does not support that.
    """
    attention: str = "auto"
    """transformers' attn_implementation; auto picks one that is right for the model family."""

    def __post_init__(self) -> None:
        _require(
            self.dtype in DTYPES,
            f"`capture_dtype` {self.dtype!r} is unknown; choose from {', '.join(DTYPES)}",
        )
        _require(bool(self.pools), "`pool` names at least one of " + ", ".join(POOLS))
        for pool in self.pools:
            _require(pool in POOLS, f"`pool` {pool!r} is unknown; choose from {', '.join(POOLS)}")
        _require(len(set(self.pools)) == len(self.pools), "`pool` names a pool twice")
        if self.layers is not None:
            _require(bool(self.layers), "`layers` names at least one layer")
            _require(
                list(self.layers) == sorted(set(self.layers)) and self.layers[0] >= 0,
                f"`layers` must be ascending, 0 or more and without repeats, not "
                f"{list(self.layers)}",
            )


def check_thresholds(
    threshold: float, neg_threshold: float | None = None, *, name: str = "threshold"
) -> float | None:
    """Return the threshold of neg, None where it is that of pos.

    pos is kept at or above `threshold`, neg below `neg_threshold`. Raise UsageError.
    """
    for said, value in ((name, threshold), ("neg_threshold", neg_threshold)):
        _require(
            value is None or (math.isfinite(value) and 0 <= value <= 100),
            f"`{said}` must lie between 0 and 100, not {value}",
        )
    if neg_threshold is None or neg_threshold == threshold:
        return None
    _require(
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
    flush_seconds: float = 5.0
    capture_device: str = "auto"
    self_check: Literal["off", "sample", "all"] = "sample"
    blocks: str | None = None
    """Path of the decoder blocks in the model, where they are not found."""

    def __post_init__(self) -> None:
        _require(
            self.batch_size is None or self.batch_size >= 1,
            f"`batch_size` must be auto or at least 1, not {self.batch_size}",
        )
        _require(
            self.tensor_parallel_size >= 1,
            f"`tensor_parallel_size` must be at least 1, not {self.tensor_parallel_size}",
        )
        _require(
            self.flush_seconds > 0, f"`flush_seconds` must be above 0, not {self.flush_seconds}"
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
            "flush_seconds",
            "capture_device",
            "self_check",
            "blocks",
        )
    },
}
"""Each setting by the one name it has everywhere: (class in RunSettings, field)."""
NAMES = tuple(_FLAT)


def value_of(settings: RunSettings, name: str) -> Any:
    """Return one setting by its name, as `judge_model`."""
    group, field_name = _FLAT[name]
    return getattr(getattr(settings, group) if group else settings, field_name)


def apply(given: Mapping[str, Any], base: RunSettings = DEFAULTS) -> RunSettings:
    """Return `base` with the settings `given` by name. Raise UsageError for unknown names or
    values."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        if name not in _FLAT:
            close = get_close_matches(name, NAMES, 1)
            hint = f"; did you mean `{close[0]}`?" if close else f"; known: {', '.join(NAMES)}"
            raise UsageError(f"there is no setting {name!r}{hint}")
        group, field_name = _FLAT[name]
        groups.setdefault(group, {})[field_name] = value
    if isinstance(pools := groups.get("capture", {}).get("pools"), str):
        groups["capture"]["pools"] = tuple(pool.strip() for pool in pools.split(","))
    if "extra" in groups.get("judge", {}):
        groups["judge"]["extra"] = read_extra(groups["judge"]["extra"])
    direct = groups.pop("", {})
    changed = {group: replace(getattr(base, group), **fields) for group, fields in groups.items()}
    return replace(base, **changed, **direct)
