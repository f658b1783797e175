"""What judging costs: tokens counted as the endpoint reports them, dollars by the price table
beside this file."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ..errors import StoppedError, UsageError

_ROOM_SECONDS = 0.05
PRICES_FILE = Path(__file__).with_name("prices.json")
_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens. Hidden reasoning is billed as output."""

    input: float
    output: float
    cached_input: float

    def dollars(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> float:
        """`cached_tokens` is the part of `input_tokens` billed at the lower rate."""
        fresh = input_tokens - cached_tokens
        return (
            fresh * self.input + cached_tokens * self.cached_input + output_tokens * self.output
        ) / 1e6


@dataclass(frozen=True, slots=True)
class Tokens:
    """One answer's tokens, as the endpoint reports them."""

    input: int = 0
    cached: int = 0
    output: int = 0
    hidden: int = 0


@dataclass(slots=True)
class Usage:
    """What a judge has used so far in this run, or one verdict has."""

    price: Price | None
    """None: tokens are counted, dollars are not known."""
    requests: int = 0
    """Responses judged, whatever the verdict."""
    attempts: int = 0
    """HTTP requests, probes and retries included."""
    answered: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    """The part of the input tokens that the endpoint took from its cache."""
    output_tokens: int = 0
    """Hidden tokens included."""
    hidden_tokens: int = 0
    estimated: int = 0
    """Answers that came without counts: theirs are estimates, four characters to a token."""
    in_flight: list[float] = field(default_factory=list)
    """Dollars that each call in flight may cost."""
    opening: tuple[int, int] = (0, 0)
    """Answers before the first verdict's, and their output tokens: these questions are short."""

    def add(self, tokens: Tokens, *, estimated: bool = False) -> None:
        """Count the tokens of one answer."""
        self.answered += 1
        self.estimated += estimated
        self.input_tokens += tokens.input
        self.cached_tokens += tokens.cached
        self.output_tokens += tokens.output
        self.hidden_tokens += tokens.hidden

    @property
    def dollars(self) -> float | None:
        if self.price is None:
            return None
        return self.price.dollars(self.input_tokens, self.cached_tokens, self.output_tokens)

    @property
    def mean_output(self) -> float:
        """Output tokens a verdict's answer has had on average; 0 before the first."""
        answers, tokens = self.opening
        return (self.output_tokens - tokens) / max(1, self.answered - answers)

    def expected_tokens(self, prompt_tokens: float, cap: int) -> float:
        """Tokens a verdict's call will use; before the first is answered all that it may."""
        return prompt_tokens + (self.mean_output or cap)

    def opened(self) -> None:
        """Count what was answered so far as no verdict's."""
        self.opening = (self.answered, self.output_tokens)

    def most(self, prompt_tokens: float, cap: int) -> float:
        """Dollars a call may cost: its prompt, and all the output allowed. Not the mean so far: the
        first answers to come are the shortest."""
        return self.price.dollars(round(prompt_tokens), 0, cap) if self.price else 0.0

    @contextmanager
    def expecting(self, dollars: float) -> Iterator[None]:
        """A call of up to so many dollars is in flight while the block runs."""
        self.in_flight.append(dollars)
        try:
            yield
        finally:
            self.in_flight.remove(dollars)

    def would_exceed(self, limit: float, dollars: float) -> bool:
        """Whether a call of so many dollars, beside those in flight, may take the cost beyond
        `limit`."""
        return self.dollars is not None and self.dollars + sum(self.in_flight) + dollars > limit

    async def has_room(
        self, limit: float, dollars: float, wait: Callable[[float], Awaitable[None]]
    ) -> bool:
        """Return whether a call of so many dollars stays within `limit` (0: any), once those in
        flight that leave no room have come cheaper than they might."""
        while limit and self.would_exceed(limit, dollars):
            if not self.in_flight:
                return False
            await wait(_ROOM_SECONDS)
        return True

    def reached(self, limit: float, dollars: float) -> StoppedError:
        """Return what stops a judge at its limit, before a call of so many dollars."""
        if self.answered == self.opening[0]:
            return StoppedError(
                f"`max_cost` ${limit:g} is less than one call may cost (${dollars:.4f}, if its "
                "answer is as long as it may be): raise `max_cost`"
            )
        return StoppedError(
            f"`max_cost` ${limit:g} is reached (${self.dollars or 0.0:.4f} for the answers so far, "
            "and one more may go beyond it): run the same command to go on with as much again, or "
            "raise `max_cost`"
        )

    def projected(self, remaining: int) -> float | None:
        """Dollars at the end, if `remaining` more responses cost what those so far did."""
        if self.dollars is None or not self.requests:
            return self.dollars
        return self.dollars * (1 + remaining / self.requests)

    def __str__(self) -> str:
        tokens = f"{self.input_tokens:,} tokens in, {self.output_tokens:,} out"
        if self.hidden_tokens:
            tokens += f" ({self.hidden_tokens:,} hidden)"
        money = "price unknown" if self.dollars is None else f"${self.dollars:.4f}"
        guessed = (
            f" (estimated for {self.estimated:,} answers without counts)" if self.estimated else ""
        )
        return f"{self.requests:,} judged, {self.attempts:,} calls, {tokens}, {money}{guessed}"


_DEAREST_TIER = 2.0
"""Times the price of the table, at most, that a `service_tier` of OpenAI's costs: `priority`."""


def at_tier(price: Price | None, tier: object) -> Price | None:
    """Return a price as a `service_tier` makes it: never below what is billed.

    A cheaper tier, such as `flex`, counts as the standard one.
    """
    if price is None or tier != "priority":
        return price
    dearer = (each * _DEAREST_TIER for each in (price.input, price.output, price.cached_input))
    return Price(*dearer)


@cache
def load_prices(path: Path = PRICES_FILE) -> dict[str, Price]:
    """The price table by model. Raises UsageError where the edited file cannot be read."""
    try:
        models = json.loads(path.read_text(encoding="utf-8"))["models"]
        return {
            name: Price(**{key: float(value) for key, value in row.items()})
            for name, row in models.items()
        }
    except OSError as error:
        raise UsageError(f"the price table {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(
            f'the price table {path} is damaged; it holds {{"models": {{NAME: {{"input", '
            '"cached_input", "output"}}}'
        ) from None


def find_price(model: str, path: Path = PRICES_FILE) -> Price | None:
    """The price of a model, by its name, its name without a date (-2025-08-07), or without
    `openai/` before it."""
    prices = load_prices(path)
    name = model.removeprefix("openai/")
    return prices.get(model) or prices.get(name) or prices.get(_DATE.sub("", name))


def need_price(model: str, path: Path = PRICES_FILE) -> Price:
    """The price of a model. Raises UsageError saying where to add it."""
    price = find_price(model, path)
    if price is None:
        raise UsageError(
            f"`max_cost` needs the price of {model}: add its dollars per million tokens to {path}, "
            f"or leave `max_cost`"
        )
    return price
