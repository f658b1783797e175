"""What a run has to do, in samples and tokens, from definitions alone: no tokenizer is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ..records import POLARITIES
from ..settings import RunSettings
from ..traits import Trait

_CHARACTERS = 4
"""To a token, of English text: what the judge's meter counts where an endpoint does not."""
_TEMPLATE_TOKENS = 16
"""Of a chat template around a prompt, and of an endpoint's around the judge's."""
_TYPICAL_PROMPT, _TYPICAL_JUDGE = 133, 866
"""Characters of instruction and question, and of the judge's prompt: means of experiments/library.
"""
JUDGE_OUTPUT = 16
"""Tokens of a judge's answer, a number in JSON. Hidden reasoning comes on top: not foreseen."""


@dataclass(frozen=True, slots=True)
class Job:
    """Samples and tokens; a response is counted with all the tokens it may have."""

    traits: int
    samples: int
    """Over both sides of all traits."""
    prompt_tokens: float
    """Mean of a prompt."""
    longest_prompt: int
    new_tokens: int
    """The longest response."""
    judge_tokens: float
    """Mean of what a judge reads of a sample, the response included; 0: no judge."""
    captures: bool
    thought_tokens: int = 0
    """The longest thought before a response; 0: the model does not think."""
    unjudged: int = 0
    """Stored responses that are judged too."""

    @property
    def verdicts(self) -> int:
        """Return how many responses are judged."""
        return self.samples + self.unjudged

    @property
    def generated_tokens(self) -> int:
        """Return the tokens that are generated of a sample, thought and response."""
        return self.thought_tokens + self.new_tokens

    @property
    def sample_tokens(self) -> float:
        """Return the tokens of a sample, prompt, thought and response."""
        return self.prompt_tokens + self.generated_tokens

    @property
    def tokens_per_sequence(self) -> int:
        return self.longest_prompt + self.generated_tokens


def job_of(traits: Sequence[Trait], settings: RunSettings) -> Job:
    """Return the job of some traits under a run's settings."""
    prompts = [
        _tokens(sum(map(len, trait.asked(polarity, place, number))))
        for trait in traits
        for place in range(len(trait.instructions))
        for polarity in POLARITIES
        for number in range(len(trait.questions))
    ]
    templates = [trait.eval_prompt for trait in traits]
    questions = fmean(
        len(trait.asked("pos", 0, number)[1])
        for trait in traits
        for number in range(len(trait.questions))
    )
    judge = fmean(map(len, templates)) + questions
    return _job(len(traits), settings, fmean(prompts), round(max(prompts)), judge)


def typical_job(n_traits: int, settings: RunSettings) -> Job:
    """Return the job of so many traits like those of experiments/library."""
    prompt = _tokens(_TYPICAL_PROMPT)
    return _job(n_traits, settings, prompt, round(2 * prompt), _TYPICAL_JUDGE)


def _tokens(characters: float) -> float:
    return characters / _CHARACTERS + _TEMPLATE_TOKENS


def _job(
    n_traits: int, settings: RunSettings, prompt: float, longest: int, judge_characters: float
) -> Job:
    new = settings.sampling.max_new_tokens
    thinks = settings.sampling.thinking == "on"
    return Job(
        traits=n_traits,
        samples=n_traits * len(POLARITIES) * settings.counts.n_examples,
        prompt_tokens=prompt,
        longest_prompt=longest,
        new_tokens=new,
        judge_tokens=_tokens(judge_characters) + new,
        captures=settings.capture_rows != "none",
        thought_tokens=settings.sampling.max_thinking_tokens if thinks else 0,
    )
