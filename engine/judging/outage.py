"""Whether an endpoint is down: what tells a moment's trouble from the end of judging.

After so many failures in a row, of all calls together, requests go one at a time, after growing
pauses. The first answer ends that. A burst of failures, as of a gateway that starts anew, passes
so; where no trial is answered, judging stops, before every text of the run has failed by itself.
"""

from __future__ import annotations

import asyncio

from .rate_limit import Throttle, Ticket

_MOST_FAILED = 24
"""Failures in a row until requests go one at a time."""
_TRIALS = 5
"""Such requests until the endpoint counts as down. Their pauses are 2, 4, 8, ... backoffs: half a
minute in all."""


class Outage:
    """Failures in a row of one endpoint."""

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
