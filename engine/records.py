"""The records that flow through a run: Sample -> Response -> Verdict and Activation. Plain data, no
Arrow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

Polarity = Literal["pos", "neg"]
POLARITIES: tuple[Polarity, Polarity] = ("pos", "neg")

ResponseStatus = Literal["ok", "empty", "overlong", "failed", "unfinished"]
RESPONSE_STATUSES: tuple[ResponseStatus, ...] = ("ok", "empty", "overlong", "failed", "unfinished")
"""`empty`: nothing but white space. `overlong`: the prompt leaves no room in the context. `failed`
is retried. `unfinished`: the thought before the response did not end within its allowance."""

VerdictStatus = Literal["scored", "refused", "unparsable", "truncated", "failed"]
VERDICT_STATUSES: tuple[VerdictStatus, ...] = (
    "scored",
    "refused",
    "unparsable",
    "truncated",
    "failed",
)
"""Only `scored` carries a number. `failed` is retried by the next run until it is given up, the
others are final."""
REFUSED_TEXT = "the text is refused: "
"""Begins the error of a failed verdict where asking the same again is vain: it is given up."""
TEXT_ALONE = "this text alone: "
"""Begins the error of a verdict that failed while others, or the endpoint at least, answered."""
MOST_TRIES = 3
"""Runs in which a text may fail alone until it is given up."""

VerdictMode = Literal["integer", "expected", "local_relative"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One response to be generated: (trait, polarity, instruction, question, rollout)."""

    trait: str
    id: str
    """32 hex digits; unique within a trait (see `traits.sample_id`)."""
    polarity: Polarity
    instruction_index: int
    question_index: int
    rollout: int
    """How many earlier samples of this side share the instruction and the question."""
    instruction: str
    question: str
    prompt: str
    prompt_token_ids: tuple[int, ...]
    seed: int

    @property
    def key(self) -> tuple[str, str]:
        return (self.trait, self.id)


@dataclass(frozen=True, slots=True)
class Response:
    """What the model wrote for a sample."""

    sample: Sample
    status: ResponseStatus
    response: str = ""
    response_token_ids: tuple[int, ...] = ()
    """As sampled, a closing end token included."""
    finish_reason: str = ""
    """`stop` (the model ended), `length` (max_new_tokens reached) or empty (not generated)."""
    logprobs: tuple[float, ...] | None = None
    """Log-probability of each sampled token (temperature 1), for the samples the self-check looks
    at."""
    error: str = ""
    thought: str = ""
    """What the model thought before it answered, without its tags; no part of the response."""
    thought_token_ids: tuple[int, ...] = ()
    """As sampled: all between prompt and response, tags and white space around them included."""
    thought_span: tuple[int, int] = (0, 0)
    """First and end of the thought itself in `thought_token_ids`."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt, thought and response."""
        return (*self.sample.prompt_token_ids, *self.thought_token_ids, *self.response_token_ids)

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        """First and end, in `token_ids`, of what counts in a pool of prompt, thought, response."""
        prompt = len(self.sample.prompt_token_ids)
        start = prompt + len(self.thought_token_ids)
        first, end = self.thought_span
        return {
            "prompt": (0, prompt),
            "thought": (prompt + first, prompt + end),
            "response": (start, start + self.n_pooled),
        }

    @property
    def n_pooled(self) -> int:
        """Response tokens that count in a pool: all but a closing end token."""
        return len(self.response_token_ids) - (
            self.finish_reason == "stop" and len(self.response_token_ids) > 0
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said of a response."""

    trait: str
    sample_id: str
    judge_key: str
    """Which verdict set this belongs to: hash of judge model, mode asked for and judge prompt."""
    status: VerdictStatus
    score: float | None
    """0 to 100, two decimals; None unless status is `scored`."""
    mode: VerdictMode
    model: str
    raw: str = ""
    """The judge's answer as it came (local judge: m and the probability mass)."""
    attempts: int = 1
    input_tokens: int = 0
    output_tokens: int = 0
    """Billed output tokens, hidden reasoning included."""
    hidden_tokens: int = 0
    error: str = ""

    def __post_init__(self) -> None:
        if (self.score is not None) != (self.status == "scored"):
            raise ValueError(
                f"a verdict carries a score exactly when it is scored, not "
                f"{self.status}/{self.score}"
            )
        if self.score is not None and not 0.0 <= self.score <= 100.0:
            raise ValueError(f"a score lies between 0 and 100, not {self.score}")


@dataclass(frozen=True, slots=True, eq=False)
class Activation:
    """What capture made of one response: its pools, or why there are none."""

    trait: str
    sample_id: str
    pools: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By name, float32 `[n_layers_captured, hidden_dim]` each, without those that the response has
    no token for, such as of a thought; empty where `error` is not."""
    error: str = ""
    """Why nothing was captured (a NaN, say); the next run tries again."""
