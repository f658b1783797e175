"""Calls to an endpoint until one is answered. The loop is ours: every attempt stands in line and is
metered.

The client's own retries are off: they would pass the limits by, and ask again where no quota is
left.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import AccessError, TraitmillError
from ..traits import FULL, Scale
from .capabilities import CAPS, JudgeProfile, Message, caps_of, plainer, refine, seconds_for
from .client import Client
from .cost import Tokens, Usage
from .faults import (
    FATAL,
    PASSING,
    UNANSWERED,
    DeniedError,
    LateError,
    MendableError,
    Outage,
    RejectedError,
    TransientError,
    UnansweredError,
    UnreadyError,
    is_too_long,
)
from .pace import wait_asked
from .rate_limit import Throttle, Ticket
from .reading import Answer
from .reply import Reply

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")

ATTEMPTS, PROBE_ATTEMPTS = 8, 3
_LONGEST_BACKOFF, _LONGEST_AT_OPENING = 30.0, 8.0
"""Seconds. What is not ready when it is opened is waited for half a minute in all."""
_MOST_DENIED = 5
"""Answers in a row that deny key or model, of an endpoint that had accepted both, until they are
believed."""
_NO_ROUTE = re.compile(r"requested parameters", re.IGNORECASE)
"""In a 404 of OpenRouter's: no provider of the model takes the request in this form."""
_MOST_LIMITED = 12
"""429s of one call, while so many others are answered, until it fails alone."""
_MOST_UNANSWERED = 3
"""Attempts of one call that may be taken and not answered: each may be billed, and takes long."""
_MOST_CHANGES = 3
"""Other forms of a request that one call may try."""


class Calls:
    """Answers of one endpoint's model, inside its limits."""

    def __init__(
        self,
        client: Client,
        throttle: Throttle,
        meter: Usage,
        profile: JudgeProfile,
        max_cost: float,
        backoff: float,
        extra: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """`profile` is what requests start from, `extra` is added to each. `backoff`: scale, in
        seconds, of the pauses before a repetition."""
        self._client, self.throttle, self.meter, self.profile = client, throttle, meter, profile
        self._max_cost, self._backoff, self._extra = max_cost, backoff, dict(extra)
        self._answered, self._denied = False, 0
        self._outage = Outage(throttle, backoff)
        self.answers = 0
        self.known = False
        """Whether the profile is right; until then a rejected one is the prober's business."""

    async def answer(
        self, messages: Sequence[Message], cap: int, tally: Usage, scale: Scale = FULL
    ) -> Answer:
        """One answer; transient trouble is retried after random, exponentially growing pauses."""
        return await self.retried(
            ATTEMPTS if self.known else PROBE_ATTEMPTS, self._attempt, messages, cap, tally, scale
        )

    async def retried(
        self, attempts: int, function: Callable[..., Awaitable[T]], *arguments: Any
    ) -> T:
        """Call, again after TransientError: so many attempts, with random, exponentially growing
        pauses.

        At opening an endpoint that is not ready gets as many as in a run, with steady pauses.
        """
        import tenacity

        unanswered = 0

        def over(state: RetryCallState) -> bool:
            nonlocal unanswered
            error = state.outcome.exception() if state.outcome is not None else None
            unanswered += isinstance(error, UnansweredError)
            waits = isinstance(error, UnreadyError) and not self.known
            most = ATTEMPTS if waits else attempts
            return state.attempt_number >= most or unanswered >= _MOST_UNANSWERED

        pauses = tenacity.wait_exponential(self._backoff, _LONGEST_AT_OPENING)
        if self.known:
            pauses = tenacity.wait_random_exponential(self._backoff, _LONGEST_BACKOFF)
        retrying = tenacity.AsyncRetrying(
            stop=over,
            wait=pauses,
            retry=tenacity.retry_if_exception_type(TransientError),
            sleep=self.throttle.pause,
            reraise=True,
        )
        return await retrying(function, *arguments)

    async def _attempt(
        self, messages: Sequence[Message], cap: int, tally: Usage, scale: Scale
    ) -> Answer:
        """Stand in line and ask once.

        A 429 goes back into line, however often, as long as patience lasts; so does a request whose
        parameters were rejected, in a few other forms. The form that is answered is what later
        calls start from.
        """
        prompt_tokens = sum(len(message["content"]) for message in messages) / 4
        expected = partial(self.meter.expected_tokens, prompt_tokens, cap)
        limited, answered, rejected = 0, self.answers, list[JudgeProfile]()
        form: JudgeProfile | None = None
        while True:
            async with self.throttle.slot(expected) as ticket:
                profile = form or self.profile  # as it is now, not as it was when the wait began
                request = self._request(profile, messages, cap, scale)
                try:
                    reply = await self._send(request, prompt_tokens, cap, tally)
                    if reply.status < 300:
                        answer = self._receive(reply, ticket, prompt_tokens, tally)
                        before = self.profile
                        self.profile = profile if before in rejected else before
                        self.tell_sampled(before)
                        return answer
                except TransientError as error:
                    self._failed(ticket, str(error))
                    raise
                fault, wait = reply.fault(), wait_asked(reply.headers)
                if (used := reply.usage()) is not None:  # a failure may be billed
                    tally.add(used)
                    self.meter.add(used, estimated=False)
                elif reply.status in UNANSWERED:
                    self._estimate(prompt_tokens, cap)
                if reply.status >= 500 or reply.status in PASSING:
                    self._failed(ticket, f"HTTP {reply.status}: {fault.message}")
                elif reply.status != 429:
                    self._outage.over()  # it refuses, so it is up
                too_large = is_too_long(reply.status, fault.message)
                if reply.status == 429 and (too_large or self._passed_over(limited, answered)):
                    self.throttle.resumed()
                    kind = RejectedError if too_large else DeniedError
                    raise kind(f"HTTP 429: {self._client.redact(fault.message)}", reply.text)
                if reply.status == 429 and not fault.codes & FATAL:
                    grown = min(self._backoff * 2.0**limited, _LONGEST_BACKOFF)
                    self.throttle.limited(ticket, grown if wait is None else wait)
                    limited += 1
                    continue
                if wait and (reply.status >= 500 or reply.status in PASSING):
                    self.throttle.shut(wait)
                else:
                    self.throttle.resumed()
                said = self._client.redact(fault.message)
                if (held := reply.as_answer(said, known=self.known)) is not None:
                    return held
            rejected.append(profile)
            form = self._other_form(reply, rejected)

    def tell_sampled(self, before: JudgeProfile) -> None:
        """Say so where the profile has given up the temperature 0 that the one `before` had."""
        if before.temperature and not self.profile.temperature:
            self.throttle.say(
                f"judge {self.profile.model} takes no temperature 0: its verdicts are sampled, and "
                "the same text may score otherwise when it is judged again"
            )

    @property
    def caps_itself(self) -> bool:
        """Whether what is added to requests says how long an answer may be."""
        return not CAPS.isdisjoint(self._extra)

    def _request(
        self, profile: JudgeProfile, messages: Sequence[Message], cap: int, scale: Scale
    ) -> dict[str, Any]:
        request = profile.request(messages, cap, scale)
        if self.caps_itself:  # under whichever of the two names
            request.pop(profile.cap_name)
        return request | self._extra

    def _passed_over(self, limited: int, answered: int) -> bool:
        """Return whether this call alone is held up: refused often while others are answered."""
        return min(limited, self.answers - answered) >= _MOST_LIMITED

    def _failed(self, ticket: Ticket, said: str) -> None:
        """Count a request without an answer. Raise StoppedError where the endpoint is down."""
        if self._outage.goes_on(ticket):
            said = self._client.redact(" ".join(said.split()))[:200]
            raise self.stop(self._outage.ended(self._client.where, said))

    def _other_form(self, reply: Reply, rejected: Sequence[JudgeProfile]) -> JudgeProfile:
        """What to ask with after a failure, where another form may help; else raise."""
        fault, profile, better = reply.fault(), rejected[-1], None
        if not self.known and reply.status == 404 and _NO_ROUTE.search(fault.message):
            better = plainer(profile)
        elif reply.status in {400, 403, 422}:
            better = refine(profile, fault.param, fault.message, plainly=self.known)
        error = self._client.failure(reply, mendable=better is not None)
        accepted = self._answered or self.known  # a stored profile is one that was answered by
        if (
            isinstance(error, AccessError)
            and reply.status in {403, 404}
            and not fault.codes & FATAL
            and accepted
        ):
            self._denied += 1  # a gateway may deny one text, or fail for a moment
            if self._denied < _MOST_DENIED:
                error = DeniedError(
                    f"HTTP {reply.status}: {self._client.redact(fault.message)}", reply.text
                )
        if isinstance(error, TraitmillError):
            self.stop(error)
        if not isinstance(error, RejectedError):
            raise error
        if not self.known:
            raise MendableError(error, better)
        if self.profile not in rejected:
            better = self.profile  # another call's finding
        if (
            better is None
            or better.mode != profile.mode
            or better in rejected
            or len(rejected) > _MOST_CHANGES
        ):
            raise error
        return better

    async def _send(
        self, request: dict[str, Any], prompt_tokens: float, cap: int, tally: Usage
    ) -> Reply:
        dollars = self.meter.most(prompt_tokens, max(caps_of(request), default=cap))
        if not await self.meter.has_room(self._max_cost, dollars, self.throttle.pause):
            raise self.stop(self.meter.reached(self._max_cost, dollars))
        tally.attempts += 1
        self.meter.attempts += 1
        with self.meter.expecting(dollars):
            try:
                reply = await self._client.complete(request, seconds_for(request))
            except UnansweredError as error:
                if isinstance(error, LateError):
                    self.throttle.late()
                self._estimate(prompt_tokens, cap)
                raise
        self.throttle.learn(reply.headers)
        return reply

    def _estimate(self, prompt_tokens: float, cap: int) -> None:
        """Count what was taken and not answered: it may be billed all the same."""
        guess = Tokens(round(prompt_tokens), 0, round(self.meter.mean_output or cap))
        self.meter.add(guess, estimated=True)

    def _receive(self, reply: Reply, ticket: Ticket, prompt_tokens: float, tally: Usage) -> Answer:
        """The answer in a reply, counted. Raises TransientError where it holds none."""
        try:
            answer, tokens = reply.completion()
        except ValueError:
            self.throttle.resumed()
            used = reply.usage() or Tokens(round(prompt_tokens), 0, 0)
            tally.add(used)
            self.meter.add(used, estimated=reply.usage() is None)
            said = f"the endpoint's {reply.status} holds no chat completion"
            if not self.known:  # later a verdict's row has it beside
                said += f": {self._client.redact(' '.join(reply.text.split()))[:200]}"
            raise TransientError(said, reply.text) from None
        tally.add(tokens or Tokens())  # a verdict's row holds counts only
        counted = tokens or Tokens(round(prompt_tokens), 0, round(len(answer.text) / 4 + 0.5))
        self._answered, self._denied = True, 0
        self.answers += 1
        self._outage.over()
        self.meter.add(counted, estimated=tokens is None)
        self.throttle.answered(ticket, counted.input + counted.output)
        return answer

    def stop(self, error: TraitmillError) -> TraitmillError:
        """End all calls with this error."""
        self.throttle.stop(error)
        return error
