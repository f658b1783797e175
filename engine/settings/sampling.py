"""What the samples are: model, sampling, prompts, and how many."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import UsageError, require

DTYPES = ("auto", "bfloat16", "float16", "float32")
THINKING = ("auto", "off", "on", "template")
"""auto: off where the template can, else on where the model thinks; off, on: refused where that
cannot be; template: as it has it, a thought being part of the response."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Model and sampling: what a sample's id hashes, and the generation dtype.

    A change on an existing folder is refused.
    """

    model: str = ""
    """A hub name, or the name of a local folder; found by the run where it is empty."""
    revision: str = ""
    """Commit of a hub model, or a fingerprint of a local folder's files."""
    adapter: str = ""
    """A LoRA adapter over the model: a hub name, or the name of a local folder."""
    adapter_revision: str = ""
    """Commit of a hub adapter, or a fingerprint of a local folder's files."""
    dtype: str = "auto"
    """Of generation, one of DTYPES; auto is the model's own."""
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    """0 is off."""
    max_new_tokens: int = 150
    """Of the response; a thought before it has an allowance of its own."""
    seed: int = 0
    prompt_format: Literal["user", "system", "raw"] = "user"
    """Where the instruction stands: before the question in the user turn, as the system turn, or in
    plain text although there is a chat template."""
    system_prompt: str | None = None
    """A fixed system turn, may be empty; None leaves it to the template."""
    prefill: str = ""
    """What the model's turn begins with; no part of the response."""
    thinking: str = "auto"
    """One of THINKING: whether the model thinks before it responds."""
    max_thinking_tokens: int = 2048
    """What a thought may take; 0: a thought is part of the response, as runs had it once."""
    chat_template_kwargs: str = ""
    """A JSON object of variables for the chat template."""

    def __post_init__(self) -> None:
        require(
            self.prompt_format in PROMPT_FORMATS,
            f"`prompt_format` {self.prompt_format!r} is unknown; choose from "
            f"{', '.join(PROMPT_FORMATS)}",
        )
        require(
            self.thinking in THINKING,
            f"`thinking` {self.thinking!r} is unknown; choose from {', '.join(THINKING)}",
        )
        require(
            self.max_thinking_tokens >= (self.thinking == "on"),
            "`max_thinking_tokens` must be at least 1 where the model thinks, not "
            f"{self.max_thinking_tokens}",
        )
        self.template_variables()
        require(
            self.dtype in DTYPES,
            f"`dtype` {self.dtype!r} is unknown; choose from {', '.join(DTYPES)}",
        )
        require(
            self.max_new_tokens >= 1,
            f"`max_new_tokens` must be at least 1, not {self.max_new_tokens}",
        )
        require(
            0 <= self.temperature <= _MAX_TEMPERATURE,
            f"`temperature` must be from 0 to {_MAX_TEMPERATURE}, not {self.temperature}",
        )
        require(0 < self.top_p <= 1, f"`top_p` must be above 0 and at most 1, not {self.top_p}")
        require(self.top_k >= 0, f"`top_k` must be 0 (off) or more, not {self.top_k}")

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
        require(
            isinstance(found, dict), f'{said} must be an object, as {{"enable_thinking": false}}'
        )
        own = sorted(_OWN_VARIABLES & found.keys())
        require(not own, f"{said}: {', '.join(own)} cannot be set there")
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
        require(
            1 <= self.n_examples <= _MAX_EXAMPLES,
            f"`n_examples` must be from 1 to {_MAX_EXAMPLES:,}, not {self.n_examples}",
        )
        require(self.min_kept >= 0, f"`min_kept` must be 0 (off) or more, not {self.min_kept}")
        require(
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
