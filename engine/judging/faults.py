"""What can go wrong with a call, and how endpoints say it."""

from __future__ import annotations

import re

from ..errors import AccessError

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
NO_MODEL = {"model_not_found"}
FATAL = NO_QUOTA | BAD_KEY | NO_MODEL
"""Codes that end all judging, whatever the status they come under."""
PASSING = {408, 409, 423, 424, 425, 499}
"""Statuses below 500 that are about the moment, not about what was sent."""
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
}
_POLICY = re.compile(r"ContentPolicyViolation|content management policy", re.IGNORECASE)
"""In a 400 of LiteLLM's or Azure's, whose code may say nothing: the text is refused."""
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


class LateError(TransientError):
    """No answer within the deadline."""


class RejectedError(CallError):
    """Asking the same again will not help."""


class DeniedError(RejectedError):
    """Asking the same again will not help now, and may later."""


class UnknownModelError(AccessError):
    """An endpoint that has no such model, or that is no endpoint."""


def lacks_credit(status: int, codes: frozenset[str], message: str) -> bool:
    """Return whether an endpoint wants to be paid first: some say so in words only, as a 400."""
    said = status in {400, 403, 429} and _WANTS_CREDIT.search(message[:_SAID_FIRST])
    return bool(said) or status == 402 or bool(codes & NO_QUOTA)


def is_filtered(status: int, codes: frozenset[str], message: str) -> bool:
    """Return whether a text was refused for what it says, which is an answer."""
    return bool(codes & _FILTERED) or (status == 400 and bool(_POLICY.search(message)))


def is_too_long(status: int, message: str) -> bool:
    """Return whether a text was refused for its length, however long one waits.

    A 429 may name lengths that are those of a minute, so it says less.
    """
    if status == 429:
        return re.search(_TOO_LARGE, message, re.IGNORECASE) is not None
    return status == 413 or _TOO_LONG.search(message[:_SAID_FIRST]) is not None
