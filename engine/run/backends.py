"""What a run works with: the three stages' interfaces, and the clock of each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..capture.process import CaptureFacts
from ..records import Response, Sample, Verdict
from ..traits.definition import Trait

if TYPE_CHECKING:
    from ..capture.model import CaptureResult, CaptureRow

Stage = Literal["generation", "judging", "capture"]
STAGES: tuple[Stage, ...] = ("generation", "judging", "capture")


class Generator(Protocol):
    """Makes responses; `max_in_flight` is how many calls to keep going."""

    @property
    def max_in_flight(self) -> int: ...
    async def generate(self, sample: Sample) -> Response: ...


class Judge(Protocol):
    """Makes verdicts; owns its own limits. Raises TraitmillError when judging as a whole cannot go on."""

    async def judge(self, trait: Trait, response: Response) -> Verdict: ...


class Capturer(Protocol):
    """Makes activations; calls are answered one after the other. `self_check` sums up what was checked so far."""

    @property
    def self_check(self) -> dict[str, Any]: ...
    async def capture(self, rows: Sequence[CaptureRow]) -> list[CaptureResult]: ...


@dataclass(slots=True)
class Clock:
    """When a stage worked (seconds since the run began) and how much it did."""

    first: float | None = None
    last: float = 0.0
    records: int = 0
    tokens: int = 0

    def begin(self, now: float) -> None:
        """The first piece of work is taken up."""
        self.first = now if self.first is None else self.first

    def count(self, now: float, tokens: int = 0) -> None:
        """A record is done."""
        self.last = now
        self.records += 1
        self.tokens += tokens

    @property
    def seconds(self) -> float:
        return 0.0 if self.first is None else self.last - self.first


@dataclass(slots=True)
class Backends:
    """What a run works with; None where no record of that stage is to be made."""

    generator: Generator | None = None
    judge: Judge | None = None
    capturer: Capturer | None = None
    capture_facts: CaptureFacts | None = None
    before_capture: Callable[[], Awaitable[CaptureFacts | None]] | None = None
    """When set, capture starts only after generation has ended, with this call first (it makes room)."""
    on_skipped: Callable[[Response], None] = lambda _: None
    """Hears of responses that will not be judged."""
    on_starved: Callable[[], None] = lambda: None
    """Hears that generation or judging stopped: what a verdict still waits for will not come."""
    on_interrupt: Callable[[], None] = lambda: None
    """Hears that the run is to end: nothing more is to be asked of a judge."""
