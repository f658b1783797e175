"""What judging costs: tokens counted as the endpoint reports them, dollars by the price table beside this file."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .errors import UsageError

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
        return (fresh * self.input + cached_tokens * self.cached_input + output_tokens * self.output) / 1e6


@dataclass(frozen=True, slots=True)
class Tokens:
    """One answer's tokens, as the endpoint reports them."""

    input: int = 0
    cached: int = 0
    output: int = 0
    hidden: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a judge has used so far in this run."""

    requests: int = 0
    """Responses judged, whatever the verdict."""
    attempts: int = 0
    """HTTP requests, probes and retries included."""
    input_tokens: int = 0
    cached_tokens: int = 0
    """The part of the input tokens that the endpoint took from its cache."""
    output_tokens: int = 0
    """Hidden tokens included."""
    hidden_tokens: int = 0
    dollars: float | None = None
    """None where the price table lacks the model."""

    def projected(self, remaining: int) -> float | None:
        """Dollars at the end, if `remaining` more responses cost what those so far did on average."""
        if self.dollars is None or not self.requests:
            return self.dollars
        return self.dollars * (1 + remaining / self.requests)

    def __str__(self) -> str:
        tokens = f"{self.input_tokens:,} tokens in, {self.output_tokens:,} out"
        if self.hidden_tokens:
            tokens += f" ({self.hidden_tokens:,} hidden)"
        money = "price unknown" if self.dollars is None else f"${self.dollars:.4f}"
        return f"{self.requests:,} judged, {self.attempts:,} calls, {tokens}, {money}"


@dataclass(slots=True)
class Meter:
    """Counts up, for a judge or for one verdict. `price` None: tokens are counted, dollars are not known."""

    price: Price | None
    requests: int = 0
    attempts: int = 0
    answered: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    hidden_tokens: int = 0

    def add(self, tokens: Tokens) -> None:
        """Count the tokens of one answer."""
        self.answered += 1
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
        """Output tokens an answer has had on average; 0 before the first."""
        return self.output_tokens / self.answered if self.answered else 0.0

    def would_reach(self, limit: float, in_flight: int) -> bool:
        """Whether the calls in flight, at the mean price so far, already take the cost to `limit` dollars."""
        if self.dollars is None or not self.answered:
            return False
        return self.dollars * (1 + in_flight / self.answered) >= limit

    @property
    def usage(self) -> Usage:
        return Usage(
            self.requests,
            self.attempts,
            self.input_tokens,
            self.cached_tokens,
            self.output_tokens,
            self.hidden_tokens,
            self.dollars,
        )


@cache
def load_prices(path: Path = PRICES_FILE) -> dict[str, Price]:
    """The price table by model. Raises UsageError where the edited file cannot be read."""
    try:
        models = json.loads(path.read_text(encoding="utf-8"))["models"]
        return {name: Price(**{key: float(value) for key, value in row.items()}) for name, row in models.items()}
    except OSError as error:
        raise UsageError(f"the price table {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(
            f'the price table {path} is damaged; it holds {{"models": {{NAME: {{"input", "cached_input", "output"}}}}}}'
        ) from None


def find_price(model: str, path: Path = PRICES_FILE) -> Price | None:
    """The price of a model, by its name, its name without a date (-2025-08-07), or without `openai/` before it."""
    prices = load_prices(path)
    name = model.removeprefix("openai/")
    return prices.get(model) or prices.get(name) or prices.get(_DATE.sub("", name))


def need_price(model: str, path: Path = PRICES_FILE) -> Price:
    """The price of a model. Raises UsageError saying where to add it."""
    price = find_price(model, path)
    if price is None:
        raise UsageError(
            f"--max_cost needs the price of {model}: add its dollars per million tokens to {path}, or leave --max_cost"
        )
    return price
