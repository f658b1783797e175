"""What a run works with: the interfaces of the three stages, and their clocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from ..errors import TraitmillError
from ..judging import Usage
from ..records import Response, Verdict
from ..replicas import Captures, Generates
from ..traits import Trait

Stage = Literal["generation", "judging", "capture"]
STAGES: tuple[Stage, ...] = ("generation", "judging", "capture")


class Judge(Protocol):
    """Makes verdicts, within its own limits.

    Raises TraitmillError when judging as a whole cannot go on.
    """

    async def judge(self, trait: Trait, response: Response) -> Verdict: ...


class Capturer(Captures, Protocol):
    """Makes activations, in the order of the responses."""

    @property
    def calls(self) -> int:
        """How many calls to keep under way."""


@dataclass(slots=True)
class Clock:
    """When a stage worked (seconds since the run began) and how much it did."""

    first: float | None = None
    last: float = 0.0
    records: int = 0
    tokens: int = 0

    def begin(self, now: float) -> None:
        """Note that a piece of work is taken up."""
        if self.first is None:
            self.first = now

    def count(self, now: float, tokens: int = 0) -> None:
        """Note that a record is done."""
        self.last = now
        self.records += 1
        self.tokens += tokens

    @property
    def seconds(self) -> float:
        if self.first is None:
            return 0.0
        return self.last - self.first


def _nothing(*_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """What a run works with; None where no record of that stage is to be made."""

    generator: Generates | None = None
    judge: Judge | None = None
    capturer: Capturer | None = None
    judge_error: TraitmillError | None = None
    """Why there is no judge, where the other stages go on without it (no quota, say)."""
    usage: Callable[[], Usage | None] = lambda: None
    """What a remote judge has used so far."""
    on_skipped: Callable[[Response], None] = _nothing
    """Called with each response that will not be judged."""
    on_starved: Callable[[], None] = _nothing
    """Called when generation or judging stopped: what a verdict waits for will not come."""
    on_interrupt: Callable[[], None] = _nothing
    """Called when the run is to end: nothing more may be asked of a judge."""
