"""What can go wrong with a call, how endpoints say it, and whether one is down."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator

from ..errors import AccessError, StoppedError
from .capabilities import JudgeProfile
from .rate_limit import Throttle, Ticket

FLAGGED = "flagged_input"
"""Our code for an error that OpenRouter marks so: its moderation refused a text."""
NO_CREDIT = "insufficient_quota"
NO_QUOTA = {
    NO_CREDIT,
    "billing_hard_limit_reached",
    "billing_not_active",
    "budget_exceeded",
    "insufficient_balance",
    "Arrearage",
}
BAD_KEY = {"invalid_api_key", "account_deactivated"}
WRONG_KEY = re.compile(r"API key not valid|API_KEY_INVALID")
"""In a 400 of Gemini's."""
BAD_SAMPLE = "json_validate_failed"
"""Groq's code where the model's own answer is not what the request's form asks for."""
NO_MODEL = {"model_not_found"}
FATAL = NO_QUOTA | BAD_KEY | NO_MODEL
"""Codes that end all judging, whatever the status they come under."""
PASSING = {408, 409, 423, 424, 425, 499}
"""Statuses below 500 that are about the moment, not about what was sent."""
UNANSWERED = {408, 499, 504, 524}
"""Statuses of a gateway that waited in vain for an answer to what it had passed on."""
_LOADING = 503
"""Status of a server that is up before its model is."""
_WANTS_CREDIT = re.compile(
    r"credit balance is too low|budget has been exceeded|exceeded budget"
    r"|insufficient (?:account )?(?:balance|credits?\b|funds|quota)"
    r"|account is in good standing",
    re.IGNORECASE,
)
_SAID_FIRST = 400
"""Characters of a message that are the endpoint's own; further on it may quote a text."""
_FILTERED = {
    FLAGGED,
    "content_filter",
    "content_policy_violation",
    "invalid_prompt",
    "moderation_blocked",
    "ResponsibleAIPolicyViolation",
    "data_inspection_failed",
    "DataInspectionFailed",
}
_POLICY = re.compile(
    r"ContentPolicyViolation|content management policy|Content violates usage guidelines"
    r"|SAFETY_CHECK_TYPE|Content Exists Risk",
    re.IGNORECASE,
)
"""In a 400 or 403 of LiteLLM's, Azure's, xAI's or DeepSeek's, whose code may say nothing: the text
is refused."""
_TOO_LARGE = r"too large|must be reduced|reduce the (?:length|size)"
_TOO_LONG = re.compile(
    rf"{_TOO_LARGE}|context[ _](?:length|window|size)|too (?:long|many (?:input )?tokens)"
    r"|maximum (?:input|prompt) (?:length|tokens)",
    re.IGNORECASE,
)


class CallError(Exception):
    """One call has no answer. `raw` is what came instead."""

    def __init__(self, message: str, raw: str = "") -> None:
        super().__init__(message)
        self.raw = raw


class TransientError(CallError):
    """Asking again may help: no connection, no answer in time, a server error, a body that is no
    answer."""


class UnansweredError(TransientError):
    """A request that was taken and not answered: it may be billed all the same."""


class UnreadyError(TransientError):
    """Nothing listens, or what does is still loading: it may be ready in a while."""


class ProxyError(TransientError):
    """The environment's proxy, which the endpoint is asked through, cannot be reached."""


class LateError(UnansweredError):
    """No answer within the deadline."""


class RejectedError(CallError):
    """Asking the same again will not help."""


class DeniedError(RejectedError):
    """Asking the same again will not help now, and may later."""


class MendableError(CallError):
    """A rejected probe; asking with the profile `better`, where there is one, may help."""

    def __init__(self, error: CallError, better: JudgeProfile | None) -> None:
        super().__init__(str(error), error.raw)
        self.better = better


class UnknownModelError(AccessError):
    """An endpoint that has no such model, or that is no endpoint."""


def kind_of(status: int) -> type[CallError]:
    """Return what a failing status says of one call, where it says nothing of all of them."""
    if status in UNANSWERED:
        return UnansweredError
    if status == _LOADING:
        return UnreadyError
    return TransientError if status >= 500 or status in PASSING else RejectedError


def unconnected(error: Exception, redact: Callable[[str], str]) -> TransientError:
    """Return what it means that the client had no reply.

    It names a connection that never stood and one that broke with a request on its way alike; what
    it rests on does not.
    """
    import aiohttp

    causes = list(_causes(error))
    said = redact(" ".join(str(causes[-1]).split())[:200] or type(causes[-1]).__name__)
    for cause in causes:
        if isinstance(cause, aiohttp.ClientProxyConnectionError):
            return ProxyError(
                f"the environment's proxy {cause.host}:{cause.port} cannot be reached: {said}"
            )
        if isinstance(cause, aiohttp.ClientConnectorError):
            break
        if isinstance(
            cause,
            aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError | aiohttp.ClientOSError,
        ):
            return UnansweredError(f"the connection was lost: {said}")
    refused = isinstance(causes[-1], ConnectionRefusedError)
    return (UnreadyError if refused else TransientError)(f"no connection: {said}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def lacks_credit(status: int, codes: frozenset[str], message: str) -> bool:
    """Return whether an endpoint wants to be paid first: some say so in words only, as a 400."""
    said = status in {400, 403, 429} and _WANTS_CREDIT.search(message[:_SAID_FIRST])
    return bool(said) or status == 402 or bool(codes & NO_QUOTA)


def is_filtered(status: int, codes: frozenset[str], message: str) -> bool:
    """Return whether a text was refused for what it says, which is an answer."""
    return bool(codes & _FILTERED) or (status in {400, 403} and _POLICY.search(message) is not None)


def is_too_long(status: int, message: str) -> bool:
    """Return whether a text was refused for its length, however long one waits.

    A 429 may name lengths that are those of a minute, so it says less.
    """
    if status == 429:
        return re.search(_TOO_LARGE, message, re.IGNORECASE) is not None
    return status == 413 or _TOO_LONG.search(message[:_SAID_FIRST]) is not None


_MOST_FAILED = 24
"""Failures in a row until requests go one at a time."""
_TRIALS = 5
"""Such requests until the endpoint counts as down. Their pauses are 2, 4, 8, ... backoffs: half a
minute in all."""


class Outage:
    """Failures in a row of one endpoint: a moment's trouble, or the end of judging.

    After so many, of all calls together, requests go one at a time, after growing pauses. The first
    answer ends that. A burst of failures, as of a gateway that starts anew, passes so; where no
    trial is answered, judging stops, before every text of the run has failed by itself.
    """

    def __init__(self, throttle: Throttle, backoff: float) -> None:
        """`backoff`: scale, in seconds, of the pauses."""
        self._throttle, self._backoff = throttle, backoff
        self._trials, self._tried_from = 0, 0.0
        self.failed = 0
        """Requests in a row without an answer."""

    def over(self) -> None:
        """An answer came."""
        self.failed = self._trials = 0
        self._throttle.one_at_a_time = False

    def goes_on(self, ticket: Ticket) -> bool:
        """Count a request without an answer; return whether the endpoint is down."""
        self.failed += 1
        if self.failed < _MOST_FAILED:
            return False
        if self._trials and ticket.sent_at < self._tried_from:
            return False  # it was under way when the pause began: no trial
        if self._trials == _TRIALS:
            return True
        self._trials += 1
        pause = self._backoff * 2.0**self._trials
        self._tried_from = asyncio.get_running_loop().time()
        self._throttle.one_at_a_time = True
        self._throttle.hold(pause, "the judge does not answer: trying again")
        return False

    def ended(self, where: str, said: str) -> StoppedError:
        """Return what stops a judge that is down. `said`: how the last request ended."""
        return StoppedError(
            f"{where} is down: {self.failed} requests in a row had no answer (the last one: "
            f"{said}); run the same command when it is up again"
        )
