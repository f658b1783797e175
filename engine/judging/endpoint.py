"""A judge at an OpenAI-compatible endpoint: what its model can be asked, and a verdict for each
response."""

from __future__ import annotations

import json
from collections.abc import Callable

from ..errors import AccessError, StoppedError
from ..records import REFUSED_TEXT, TEXT_ALONE, Response, Verdict
from ..settings import JudgeLimits, JudgeSettings
from ..traits import Scale, Trait, fill
from .calls import Calls
from .capabilities import (
    CAP,
    RAISED_CAP,
    JudgeProfile,
    Message,
    Mode,
    escape_surrogates,
    first_guess,
    judge_key,
    plain_request,
    raw_text,
    seconds_for,
)
from .client import Client
from .cost import Usage, at_tier, find_price, need_price
from .faults import (
    CallError,
    DeniedError,
    ProxyError,
    RejectedError,
    TransientError,
    UnknownModelError,
    UnreadyError,
    is_too_long,
)
from .probe import Prober
from .rate_limit import Throttle
from .reading import (
    Answer,
    Reading,
    read_expected,
    read_integer,
    splits_number,
    spoken,
)

_MOST_UNMEASURED = 5
"""Answers in a row without the log-probabilities that the verdict set is measured by."""


class EndpointJudge:
    """Judges through chat completions. `judge` may be called from many tasks at once, of one event
    loop."""

    def __init__(
        self,
        judging: JudgeSettings,
        limits: JudgeLimits,
        *,
        profile: JudgeProfile | None = None,
        mode: Mode | None = None,
        on_event: Callable[[str], None] = lambda _: None,
        deadline: float = 60.0,
        backoff: float = 0.5,
    ) -> None:
        """`profile` of an earlier run at this endpoint saves the probe; `mode` is the measurement
        that the verdict set was begun with, if it was. `on_event` gets one-line messages, such as a
        countdown.

        `deadline`: least seconds that one attempt may take. `backoff`: scale, in seconds, of pauses
        before it is repeated. Raises UsageError for a malformed URL, or a cost limit without price.
        """
        self._judging, self._mode = judging, mode
        extra = json.loads(judging.extra or "{}")
        deadline = max(deadline, seconds_for(extra))
        price = need_price(judging.model) if limits.max_cost else find_price(judging.model)
        self._client = Client(judging.model, limits.base_url, deadline)
        self._calls = Calls(
            self._client,
            Throttle(limits, on_event, deadline),
            Usage(at_tier(price, extra.get("service_tier"))),
            profile or first_guess(judging.model, self._client.base_url),
            limits.max_cost,
            backoff,
            extra,
        )
        self._calls.known = profile is not None and mode in {None, profile.mode}
        self._prober = Prober(self._calls, self._client, judging)
        self._proven = self._calls.known
        """Whether a text was answered in an earlier run."""
        self._asked_short = self._cut_short = self._unmeasured = 0
        self._room: bool | None = None
        """Whether an answer may be RAISED_CAP long; None while that was not tried."""

    @property
    def usage(self) -> Usage:
        """What has been used so far."""
        return self._calls.meter

    @property
    def where(self) -> str:
        """The endpoint's address."""
        return self._client.where

    async def open(self) -> JudgeProfile:
        """Check key, endpoint and model; find out what the model can be asked (one or two calls for
        most).

        With a profile of an earlier run only the list of models is fetched, which is free; where
        that cannot be had, or names the model, nothing more is asked, and one question where it is
        refused to the key. Raises AccessError (key,
        address, model), UsageError (a mode the model cannot serve) or StoppedError (no quota).
        """
        self._client.open()
        try:
            if self._calls.known and await self._prober.is_missing():
                self._calls.known, self._mode = False, self._calls.profile.mode
                self._calls.profile = first_guess(self._judging.model, self._client.base_url)
            if not self._calls.known:
                guess = self._calls.profile
                self._calls.profile = await self._prober.find_profile(self._mode)
                self._calls.known = True
                self._calls.meter.opened()
                self._calls.tell_sampled(guess)
        except UnknownModelError as error:
            raise await self._client.unknown_model(error) from None
        except UnreadyError as error:
            raise AccessError(
                f"judge {self._judging.model} at {self._client.where} is not ready ({error}): "
                "start it, or run the same command again once it is up; `judge_base_url` names "
                "another address"
            ) from None
        except ProxyError as error:
            raise AccessError(
                f"judge {self._judging.model} at {self._client.where} was not asked: {error}; mend "
                "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, or name the judge's host in NO_PROXY"
            ) from None
        except CallError as error:
            raise AccessError(
                f"judge {self._judging.model} at {self._client.where} cannot be used ({error}): "
                "check `judge_model` and `judge_base_url`"
            ) from None
        return self._calls.profile

    def interrupt(self) -> None:
        """Send nothing more; what is under way may still be answered. All other calls raise
        StoppedError."""
        self._calls.throttle.stop(StoppedError("interrupted"))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def judge(self, trait: Trait, response: Response) -> Verdict:
        """Judge one response. Trouble with this one alone becomes its verdict's status.

        Raises AccessError (key or model no longer accepted) or StoppedError (no quota; patience or
        `max_cost` reached); from then on every call raises the same at once, without a request.
        """
        self._calls.throttle.check()
        question = response.sample.question
        prompt = fill(trait.eval_prompt, question=question, answer=response.response)
        tally, reading, error = Usage(None), None, ""
        answered = self._prober.answered_texts
        try:
            answer, reading = await self._decide(escape_surrogates(prompt), trait.scale, tally)
            raw = answer.text or answer.refusal
        except CallError as failure:
            others = self._prober.answered_texts - answered - tally.answered > 0
            raw, error = failure.raw, f"{await self._blame(failure, others)}{failure}"
        self._calls.meter.requests += 1
        return Verdict(
            trait=trait.name,
            sample_id=response.sample.id,
            judge_key=judge_key(self._judging, trait),
            status="failed" if reading is None else reading.status,
            score=None if reading is None else reading.score,
            mode=self._calls.profile.mode,
            model=self._judging.model,
            raw=raw_text(self._client.without_key(raw)),
            attempts=tally.attempts,
            input_tokens=tally.input_tokens,
            output_tokens=tally.output_tokens,
            hidden_tokens=tally.hidden_tokens,
            error=error,
        )

    # --- one verdict ---

    async def _blame(self, failure: CallError, others: bool) -> str:
        """Return what a failure says of its text; nothing where it may not be the text's.

        `others`: texts that were answered meanwhile. Raise StoppedError where the endpoint refuses
        a plain question as well.
        """
        if not isinstance(failure, RejectedError | TransientError):
            return TEXT_ALONE  # it was answered, if not as it should be
        if isinstance(failure, DeniedError):
            return TEXT_ALONE if others else ""
        refused = isinstance(failure, RejectedError)
        if refused and not (self._proven or self._prober.answered_texts):
            return ""
        if refused and is_too_long(0, str(failure)):
            return REFUSED_TEXT
        # A word of refusal may come of an endpoint that takes no text any more.
        alive = bool(failure.raw) and (refused or not others) and await self._prober.is_alive()
        if refused:
            return REFUSED_TEXT if alive else ""
        return TEXT_ALONE if others or alive else ""

    async def _decide(self, prompt: str, scale: Scale, tally: Usage) -> tuple[Answer, Reading]:
        """Ask; once more where the answer cannot be read, and once with more room where it was cut
        off."""
        messages: list[Message] = [{"role": "user", "content": prompt}]
        # where a tenth of the answers needs more room, asking with less first would be paying twice
        often = self._cut_short * 10 > self._asked_short + 10
        cap = RAISED_CAP if (often and self._room) or self._calls.caps_itself else CAP
        self._asked_short += cap == CAP
        asked_again, cut = False, None
        while True:
            try:
                answer = await self._calls.answer(messages, cap, tally, scale)
            except RejectedError as error:
                if cut is None or isinstance(error, DeniedError):
                    raise
                self._room = False  # the text was taken, so it is the room that is refused
                return cut
            if cap == RAISED_CAP:
                self._room = True
            if self._calls.profile.mode == "expected":
                self._check_measured(answer)
                reading = read_expected(answer, scale)
            else:
                reading = read_integer(answer, scale)
            if reading.status == "truncated" and cap < RAISED_CAP and self._room is not False:
                self._cut_short += 1
                cap, cut = RAISED_CAP, (answer, reading)
            elif reading.status == "unparsable" and not asked_again:
                asked_again = True
                said = raw_text(spoken(answer.text)) or "(no answer)"
                messages = [
                    *messages,
                    {"role": "assistant", "content": said},
                    {"role": "user", "content": plain_request(scale)},
                ]
            else:
                return answer, reading

    def _check_measured(self, answer: Answer) -> None:
        """Raise CallError where the endpoint does not measure as the verdict set does any more.

        No log-probabilities come, or numbers come in several tokens: the endpoint changed, not the
        answer. After a few in a row, StoppedError: the rest would be paid for in vain.
        """
        split = splits_number(answer)
        if not split and (not answer.text or answer.alternatives):
            self._unmeasured = 0
            return
        lacking = "returns no log-probabilities any more"
        if split:
            lacking = "writes a number as several tokens now"
        self._unmeasured += 1
        if self._unmeasured >= _MOST_UNMEASURED:
            raise self._calls.stop(
                StoppedError(
                    f"judge {self._judging.model} at {self._client.where} {lacking}, by which this "
                    "verdict set is measured: begin another with `judge_mode` integer"
                )
            )
        raise CallError(
            f"the endpoint {lacking}: it is no measurement of this verdict set", answer.text
        )
