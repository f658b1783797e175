"""The judge without a key or a network: the loaded model's own Yes against No, centred on the
trait's own samples.

m = logsumexp(log P of the Yes forms) - logsumexp(log P of the No forms), after one chat turn that
asks the trait's yes/no question. score = 100 * sigmoid(m - b), where b is the mean of m over up to
16 samples a side, evenly spaced over the initial plan and without looking at their side. So 50 is
the middle of the two sides: a relative measure, recorded as `local_relative`, not comparable
between traits.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..errors import AccessError, DeadlyError, StoppedError, UsageError
from ..models import ModelRef, chat_token_ids, load_tokenizer
from ..records import POLARITIES, Response, Verdict
from ..settings import JudgeSettings
from ..traits import Plan, Trait, counts_per_instruction, fill
from .capabilities import judge_key, local_prompt

CALIBRATION_PER_SIDE = 16
_MIN_MASS = 0.05
_FORMS = {"yes": ("Yes", "yes", " Yes", " yes"), "no": ("No", "no", " No", " no")}


class NextTokenEngine(Protocol):
    """What the judge needs of an engine."""

    async def next_logprobs(
        self, prompt_token_ids: Sequence[int], token_ids: Sequence[int]
    ) -> dict[int, float]: ...


@dataclass(slots=True)
class _Calibration:
    """The offset of one trait, on its way, and the time that its prompts state."""

    waiting: set[str]
    moment: str
    margins: list[float] = field(default_factory=list)
    offset: asyncio.Future[float] = field(default_factory=asyncio.Future)


def calibration_positions(plan: Plan, n_examples: int) -> list[int]:
    """Positions of the samples that fix a trait's offset: up to 16 a side, evenly spaced over the
    initial plan.

    A plan that grew by rounds holds the initial one as the first samples of each instruction.
    """
    out: list[int] = []
    for code in range(len(POLARITIES)):
        side = np.flatnonzero(plan.polarity == code)
        instruction = plan.instruction_index[side]
        starts = np.searchsorted(instruction, np.arange(instruction[-1] + 1))
        share = np.array(counts_per_instruction(n_examples, len(starts)))
        side = side[np.arange(len(side)) - starts[instruction] < share[instruction]]
        picks = np.linspace(0, len(side) - 1, min(CALIBRATION_PER_SIDE, len(side)))
        out += [int(side[round(pick)]) for pick in picks]
    return out


class LocalJudge:
    """Judges with an engine's next-token probabilities."""

    def __init__(
        self,
        engine: NextTokenEngine,
        tokenizer: Any,
        judging: JudgeSettings,
        model: str,
        on_offset: Callable[[str, float], None],
    ) -> None:
        """`model` is the judging model's name; `on_offset(trait, b)` is called once when b is
        fixed."""
        self._engine = engine
        self._tokenizer = tokenizer
        self._judging = judging
        self._model = model
        self._on_offset = on_offset
        self._calibrations: dict[str, _Calibration] = {}
        self._token_ids = _word_ids(tokenizer, model)

    def open_trait(
        self, trait: str, waiting: Iterable[str], offset: float | None, moment: str
    ) -> None:
        """Announce a trait: the frozen offset, or else the calibration samples still expected.

        `moment` is the time for a template that asks, in ISO 8601.
        """
        calibration = _Calibration(set(waiting), moment)
        self._calibrations[trait] = calibration
        if offset is not None:
            calibration.offset.set_result(offset)
        elif not calibration.waiting:
            calibration.offset.set_result(math.nan)

    def skip(self, response: Response) -> None:
        """This response will not be judged (empty, failed): the offset does without it."""
        self._calibrated(response.sample.trait, response.sample.id, None)

    def give_up(self) -> None:
        """No more samples come: offsets that wait for some stay open, and so do the verdicts that
        wait for those."""
        for name, calibration in self._calibrations.items():
            if not calibration.offset.done():
                calibration.offset.set_exception(
                    StoppedError(
                        f"{name}: the local judge lacks samples that it places all others by; run "
                        f"again"
                    )
                )
                calibration.offset.exception()  # nobody may be waiting, and that is no fault

    async def judge(self, trait: Trait, response: Response) -> Verdict:
        """Judge one response. Waits for the trait's offset; raises EngineDiedError, or StoppedError
        after `give_up`."""
        question, answer = response.sample.question, response.response
        prompt = fill(local_prompt(trait), question=question, answer=answer)
        token_ids = [*self._token_ids["yes"], *self._token_ids["no"]]
        try:
            prompt_token_ids = await asyncio.to_thread(
                chat_token_ids, self._tokenizer, prompt, self._calibrations[trait.name].moment
            )
            logprobs = await self._engine.next_logprobs(prompt_token_ids, token_ids)
        except UsageError as too_long:
            self._calibrated(trait.name, response.sample.id, None)
            return self._verdict(trait, response, "unparsable", None, "", str(too_long), 0)
        except DeadlyError as deadly:
            self._calibrated(trait.name, response.sample.id, None)
            return self._verdict(trait, response, "failed", None, "", deadly.message, 0)
        yes = _logsumexp([logprobs[token] for token in self._token_ids["yes"]])
        no = _logsumexp([logprobs[token] for token in self._token_ids["no"]])
        margin, mass = yes - no, math.exp(yes) + math.exp(no)
        believable = mass >= _MIN_MASS
        self._calibrated(trait.name, response.sample.id, margin if believable else None)
        raw = json.dumps({"m": round(margin, 4), "mass": round(mass, 4)})
        if not believable:
            error = "the model answers neither Yes nor No"
            return self._verdict(
                trait, response, "unparsable", None, raw, error, len(prompt_token_ids)
            )
        offset = await self._calibrations[trait.name].offset
        if math.isnan(offset):
            error = "no calibration sample could be judged"
            return self._verdict(
                trait, response, "unparsable", None, raw, error, len(prompt_token_ids)
            )
        return self._verdict(
            trait,
            response,
            "scored",
            relative_score(margin, offset),
            raw,
            "",
            len(prompt_token_ids),
        )

    def _calibrated(self, trait: str, sample_id: str, margin: float | None) -> None:
        calibration = self._calibrations[trait]
        if sample_id not in calibration.waiting or calibration.offset.done():
            return
        calibration.waiting.remove(sample_id)
        if margin is not None:
            calibration.margins.append(margin)
        if not calibration.waiting:
            # fsum, so that the order of arrival cannot move the last digit
            n = len(calibration.margins)
            offset = round(math.fsum(calibration.margins) / n, 6) if n else math.nan
            if n:
                self._on_offset(trait, offset)
            calibration.offset.set_result(offset)

    def _verdict(
        self,
        trait: Trait,
        response: Response,
        status: Any,
        score: float | None,
        raw: str,
        error: str,
        n_tokens: int,
    ) -> Verdict:
        return Verdict(
            trait=trait.name,
            sample_id=response.sample.id,
            judge_key=judge_key(self._judging, trait),
            status=status,
            score=score,
            mode="local_relative",
            model=self._model,
            raw=raw,
            input_tokens=n_tokens,
            output_tokens=1,
            error=error,
        )

    async def close(self) -> None:
        """Nothing is open."""


def need_words(ref: ModelRef) -> Any:
    """The tokenizer of a judging model. Raises AccessError where it has none, or no single tokens
    for Yes and No."""
    tokenizer = load_tokenizer(ref)
    _word_ids(tokenizer, ref.name)
    return tokenizer


def _word_ids(tokenizer: Any, model: str) -> dict[str, tuple[int, ...]]:
    token_ids = {word: _single_tokens(tokenizer, forms) for word, forms in _FORMS.items()}
    for word, ids in token_ids.items():
        if not ids:
            raise AccessError(
                f"the tokenizer of {model} has no single token for {word!r}; use another "
                f"`judge_model`"
            )
    return token_ids


def relative_score(margin: float, offset: float) -> float:
    """100 * sigmoid(m - b), two decimals."""
    return round(100.0 / (1.0 + math.exp(min(700.0, offset - margin))), 2)


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def _single_tokens(tokenizer: Any, forms: Sequence[str]) -> tuple[int, ...]:
    encoded = [tokenizer(form, add_special_tokens=False)["input_ids"] for form in forms]
    return tuple(dict.fromkeys(ids[0] for ids in encoded if len(ids) == 1))
