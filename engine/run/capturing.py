"""A capture process as a run wants it: loaded at once, or when generation has made room."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ..capture import CaptureFacts, CaptureProcess
from ..records import Activation, Response

CALLS = 2
"""Under way: while the results of one travel and are stored, the next is computed."""
_ROWS = {"cpu": 64, "cuda": 256}
"""Of a call: several batches, so that rows of like length meet, and seconds of work."""
_BYTES = 64 << 20


class RunCapture:
    """A capture process as a run wants it: loaded at once, or when generation has made room."""

    def __init__(
        self,
        process: CaptureProcess,
        *,
        placement: str,
        beside_generation: bool,
        loads_now: bool,
        make_room: Callable[[], Awaitable[None]],
        notice: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        """`notice` takes lines for the user, `note` those for the log alone."""
        self.placement = placement
        self.beside_generation, self.loads_now = beside_generation, loads_now
        self._process, self._make_room, self._notice = process, make_room, notice
        self._note = note
        self._facts: CaptureFacts | None = None
        self._doubted = False

    @property
    def calls(self) -> int:
        return CALLS

    @property
    def self_check(self) -> dict[str, Any]:
        return self._process.self_check

    async def load(self) -> None:
        """Load the model into its process."""
        self._facts = await self._process.start()
        facts = self._facts
        self._notice(f"capture on {facts.device}, {facts.dtype}, {facts.attention} attention")
        self._note(facts.arithmetic)

    async def open(self) -> CaptureFacts:
        if not self.beside_generation:
            await self._make_room()
        if self._facts is None:
            await self.load()
        assert self._facts is not None  # noqa: S101 - load has set it
        return self._facts

    async def capture(self, responses: Sequence[Response]) -> list[Activation]:
        found = await self._process.capture(responses)
        self._say_doubts()
        return found

    def _say_doubts(self) -> None:
        doubts = doubt_of(self._process.self_check)
        if doubts and not self._doubted:
            self._doubted = True
            self._notice(doubts)

    async def close(self) -> None:
        """End the process at once: it holds nothing that is not stored or to be done again."""
        await self._process.close()


def rows_of_a_call(facts: CaptureFacts, pools: int) -> int:
    """Return the most rows of a call whose results are so many pools."""
    row_bytes = 4 * len(facts.layers) * facts.hidden_dim * pools
    return max(1, min(_ROWS.get(facts.device.partition(":")[0], 64), _BYTES // row_bytes))


def doubt_of(seen: Mapping[str, Any]) -> str:
    """Return in a line that rows are further off than rounding is on a CPU; empty if none is."""
    if not seen.get("doubtful_rows"):
        return ""
    states = max(seen["worst_state_deviation"].values())
    return (
        "self-check: further off than a CPU's rounding, though not by three times: up to "
        f"{states:.2g} in the pools, {seen['worst_logprob_deviation']:.2g} nats a token; the "
        "tolerances are not yet measured on GPUs, so look at metadata.json's self_check"
    )
