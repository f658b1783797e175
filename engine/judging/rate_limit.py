"""How fast an endpoint may be asked: requests and tokens a minute, requests in flight, one gate for
cool-downs.

One line, first come first sent: every attempt, first or repeated, waits here for its turn. What is
learnt of the endpoint on the way (limits in its headers, a 429) makes the pace slower than what was
allowed, never faster.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from aiolimiter import AsyncLimiter

from ..errors import StoppedError, TraitmillError
from ..settings import JudgeLimits
from .pace import Pace, show_seconds

# Requests leave evenly at 97 % of the rate: arrival times jitter, and a minute of arrivals must not
# exceed the rate.
_REQUESTS_SHARE = 0.97
# A timer that fires late would lose its slot for good; so much of the rate may be caught up.
_CATCH_UP_SECONDS = 0.02
# Tokens come in lumps of one request: 5 % may be spent at once, 5 % more where requests used less
# than was taken for them, the rest evenly; together the limit.
_TOKENS_SHARE, _TOKENS_BURST = 0.90, 0.05
_FIRST_WINDOW, _LARGEST_WINDOW = 16, 512
_CUT_WINDOW = 0.5
_ANNOUNCED_SECONDS = 5.0
_COUNTDOWN_SECONDS = 10.0
_STOP_CHECK_SECONDS = 1.0
_COUNT = re.compile(r"[0-9]{1,15}")


class Allowance:
    """So many units a minute, spent evenly; a slower pace is a higher price per unit.

    aiolimiter grants its whole capacity at once on top of the rate (AsyncLimiter(50, 1) granted 99
    in its first second), so the capacity is kept small.
    """

    def __init__(self, per_minute: float, burst: float) -> None:
        self._limiter = AsyncLimiter(burst, 60 * burst / per_minute)

    async def take(self, amount: float, check: Callable[[], None]) -> None:
        """Wait for `amount` units. `check` is called every second and may raise."""
        while amount > 0:
            check()
            part = min(amount, self._limiter.max_rate)  # more than the capacity would be refused
            try:
                async with asyncio.timeout(_STOP_CHECK_SECONDS):
                    await self._limiter.acquire(part)
            except TimeoutError:
                continue
            amount -= part


@dataclass(slots=True)
class Ticket:
    """One request in flight."""

    sent_at: float
    tokens: float


class Throttle:
    """The one line to an endpoint, of one event loop."""

    def __init__(
        self, limits: JudgeLimits, on_event: Callable[[str], None], deadline: float = math.inf
    ) -> None:
        """`on_event` gets one-line messages, such as the countdown of a long wait. `deadline`: as a
        request's."""
        per_second = limits.rpm / 60
        self._allowed, self._pace = limits.rpm, Pace(limits.rpm)
        self._requests = Allowance(_REQUESTS_SHARE * limits.rpm, 1 + _CATCH_UP_SECONDS * per_second)
        self._tpm = 0.0
        self._tokens: Allowance | None = None
        self._owed = 0.0
        """Tokens used beyond what was taken for them."""
        self._limit_tokens(limits.tpm)
        self._adaptive = limits.concurrency == 0
        self._window = float(limits.concurrency or _FIRST_WINDOW)
        self._slow_start = True
        self._deadline = deadline
        self._grows_from = 0.0
        """Loop time before which no more requests are put in flight than now."""
        self._patience = limits.patience
        self.say = on_event
        self._line = asyncio.Lock()
        self._wake = asyncio.Event()
        self._gate, self._why = 0.0, ""
        """Loop time before which nothing is sent, and why."""
        self.one_at_a_time = False
        """Whether one request only may be in flight, until an endpoint that fails answers again."""
        self._cooling_since: float | None = None
        self._cut_at = -1.0
        self._stopped: TraitmillError | None = None
        self.in_flight = 0

    @property
    def window(self) -> int:
        """Requests that may be in flight."""
        return 1 if self.one_at_a_time else int(self._window)

    @property
    def pace(self) -> float:
        """Requests a minute aimed at: what was allowed, or less where the endpoint is slower."""
        return self._pace.rpm

    # --- the line ---

    @asynccontextmanager
    async def slot(self, expected: Callable[[], float]) -> AsyncIterator[Ticket]:
        """One request in flight, once it may be sent. `expected` tells how many tokens it will use,
        and is asked when its turn comes.

        Raises the error given to `stop`, at once, also in those who wait.
        """
        async with self._line:  # asyncio's lock is fair
            while self.in_flight >= self.window and not self._stopped:
                await self._woken(None)
            await self._pass_gate()
            tokens = expected()
            if self._tokens is not None:
                most, self._owed = max(0.0, tokens + self._owed), min(0.0, tokens + self._owed)
                await self._tokens.take(most, self.check)
            # The request's turn comes last, and anew where the gate was shut meanwhile: of a turn
            # that was taken and not used at once, the allowance has filled up again, and two would
            # leave together.
            while True:
                await self._pass_gate()
                await self._requests.take(self._allowed / self.pace, self.check)
                if not self._shut:
                    break
            self.in_flight += 1
        ticket = Ticket(asyncio.get_running_loop().time(), tokens)
        self._pace.sent(ticket.sent_at)
        try:
            yield ticket
        finally:
            self.in_flight -= 1
            self._wake.set()

    async def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until `stop`; then raise its error."""
        end = asyncio.get_running_loop().time() + seconds
        while (left := end - asyncio.get_running_loop().time()) > 0:
            self.check()
            await asyncio.sleep(min(left, _STOP_CHECK_SECONDS))
        self.check()

    @property
    def _shut(self) -> bool:
        return self._gate > asyncio.get_running_loop().time()

    async def _pass_gate(self) -> None:
        loop = asyncio.get_running_loop()
        next_line = loop.time()
        while (left := self._gate - loop.time()) > 0:
            self.check()
            if left >= _ANNOUNCED_SECONDS and loop.time() >= next_line:
                self.say(f"{self._why} in {show_seconds(left)}")
                next_line = loop.time() + _COUNTDOWN_SECONDS
            await self._woken(min(left, _COUNTDOWN_SECONDS))
        self.check()

    async def _woken(self, timeout: float | None) -> None:
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()

    # --- what comes back ---

    def answered(self, ticket: Ticket, tokens: float) -> None:
        """A request was answered, using `tokens`: grow where that was the limit."""
        now = asyncio.get_running_loop().time()
        if self._tokens is not None:
            self._owed = max(self._owed + tokens - ticket.tokens, -_TOKENS_BURST * self._tpm)
        self.resumed()
        self._pace.answered(now)
        # A server that answers late is full: more in flight would only wait there, and in the end
        # past the deadline.
        swift = now - ticket.sent_at <= self._deadline / 2 and now >= self._grows_from
        if self._adaptive and swift and 2 * self.in_flight >= self.window:
            self._window = min(
                _LARGEST_WINDOW, self._window + (1.0 if self._slow_start else 1 / self._window)
            )

    def resumed(self) -> None:
        """The endpoint said something else than to wait: its pauses no longer add up."""
        self._cooling_since = None

    def late(self) -> None:
        """A request was not answered within the deadline: for as long again, put no more in flight
        than now."""
        self._grows_from = asyncio.get_running_loop().time() + self._deadline
        self._slow_start = False

    def limited(self, ticket: Ticket, wait: float) -> None:
        """A 429: shut the gate for `wait` seconds, and slow down once for all requests sent before
        this was known."""
        now = asyncio.get_running_loop().time()
        self._pace.refused(now)
        if ticket.sent_at > self._cut_at:
            self._cut_at = now
            self._slow_start = False
            if self._pace.cut(now) and self._adaptive:
                self._window = max(1.0, self._window * _CUT_WINDOW)
        self.shut(wait)

    def shut(self, wait: float) -> None:
        """Let nothing through for `wait` seconds; stop where that would go on longer than the
        patience allows."""
        now = asyncio.get_running_loop().time()
        if self._cooling_since is None:
            self._cooling_since = now
        if now + wait - self._cooling_since > self._patience:
            waited = show_seconds(now + wait - self._cooling_since)
            self.stop(
                StoppedError(
                    f"the judge asks for a pause of {waited}, longer than `judge_patience` "
                    f"{self._patience:g}: "
                    "run the same command later to go on, or raise `judge_patience`"
                )
            )
        self.hold(wait, "the judge asked for a pause: going on")

    def hold(self, wait: float, why: str) -> None:
        """Let nothing through for `wait` seconds; `why` begins the line of its countdown."""
        end = asyncio.get_running_loop().time() + wait
        if end > self._gate:
            self._gate, self._why = end, why

    def learn(self, headers: Mapping[str, str]) -> None:
        """Slow down to limits stated in an answer's headers. Header names are lower case."""
        requests, tokens = (
            headers.get(f"x-ratelimit-limit-{kind}", "").strip() for kind in ("requests", "tokens")
        )
        if _COUNT.fullmatch(requests) and int(requests):
            # the allowance stays, and a request costs more of it: a new one would be full, whatever
            # was just sent
            self._pace.allow(float(requests))
        if _COUNT.fullmatch(tokens):
            self._limit_tokens(float(tokens))

    def _limit_tokens(self, tpm: float) -> None:
        if tpm > 0 and (self._tokens is None or tpm < self._tpm):
            self._tpm = tpm
            self._tokens = Allowance(_TOKENS_SHARE * tpm, _TOKENS_BURST * tpm)

    # --- the end ---

    def stop(self, error: TraitmillError) -> None:
        """From now on `check` and everyone in line raise this error. The first one stays."""
        if self._stopped is None:
            self._stopped = error
        self._wake.set()

    def check(self) -> None:
        """Raise the error given to `stop`, if any."""
        if self._stopped is not None:
            raise type(self._stopped)(
                str(self._stopped)
            )  # a fresh one: a shared traceback would grow without end
