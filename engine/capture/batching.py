"""Length-sorted batches under a token budget, halved on out-of-memory. Pure arithmetic: no model,
no device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..errors import ResourceError

T = TypeVar("T")

_FIRST_PROBE_AFTER = 16
_LAST_PROBE_AFTER = 1024


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows run together, each padded to `width` tokens."""

    indices: tuple[int, ...]
    """Positions in the lengths that were given."""
    width: int
    """Tokens of the longest row."""

    @property
    def padded_tokens(self) -> int:
        return len(self.indices) * self.width


class Budget:
    """How much a batch may hold, in padded tokens; it remembers what did not fit.

    A batch of n rows padded to width w weighs n * w * (1 + growth * w). `growth` is the part of a
    token's memory that grows with the row: 0 for fused attention kernels, above 0 where the scores
    are materialised (eager attention).

    After an out-of-memory the budget is half of what was tried. Sixteen batches later it probes: it
    doubles, never beyond `limit`. Each probe that fails doubles the wait for the next, up to 1,024
    batches, so that a device that lost memory for good costs little, and one that got it back is
    used again.
    """

    def __init__(self, limit: int, *, max_rows: int | None = None, growth: float = 0.0) -> None:
        if limit < 1:
            raise ValueError(f"a token budget is at least 1, not {limit}")
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"a batch holds at least 1 row, not {max_rows}")
        self.limit = limit
        self.max_rows = max_rows
        self.growth = growth
        self.now = float(limit)
        self.halvings = 0
        self._clean = 0
        self._probe_after = _FIRST_PROBE_AFTER
        self._probing = False

    def weight(self, rows: int, width: int) -> float:
        return rows * width * (1.0 + self.growth * width)

    def rows_at(self, width: int) -> int:
        """Rows of `width` tokens that fit: at least one, since a row cannot be split."""
        rows = max(1, int(self.now / self.weight(1, width)))
        return rows if self.max_rows is None else min(rows, self.max_rows)

    def failed(self, batch: Batch) -> None:
        """Note that `batch` ran out of memory: half of it may be tried next."""
        if self._probing:
            self._probe_after = min(2 * self._probe_after, _LAST_PROBE_AFTER)
        self.now = min(self.now, self.weight(len(batch.indices), batch.width)) / 2
        self.halvings += 1
        self._probing = False
        self._clean = 0

    def passed(self, batch: Batch) -> None:
        """Note that `batch` went through. One that was not even half full says nothing about
        memory."""
        if self.now >= self.limit or self.weight(len(batch.indices), batch.width) <= self.now / 2:
            return
        if self._probing:
            self._probing = False
            self._probe_after = _FIRST_PROBE_AFTER
        self._clean += 1
        if self._clean >= self._probe_after:
            self.now = min(2 * self.now, float(self.limit))
            self._probing = True
            self._clean = 0


def run_batches(
    lengths: Sequence[int],
    budget: Budget,
    work: Callable[[Batch], T],
    out_of_memory: Callable[[BaseException], bool],
    *,
    together: Callable[[int, int], bool] = lambda _longest, _other: True,
) -> Iterator[tuple[Batch, T]]:
    """Yield (batch, work(batch)) until each row of `lengths` (tokens) has been in exactly one batch
    that went through.

    Longest rows come first: neighbours are alike, so little is padding, and memory that does not
    suffice shows at the start. `together(longest, other)` says whether a row of `other` tokens may
    join a batch of one of `longest`. An error for which `out_of_memory` is true halves the batch;
    its rows are tried again. Raises ResourceError when one row alone does not fit; other errors of
    `work` pass.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    done = 0
    while done < len(order):
        width = max(1, lengths[order[done]])
        rows = order[done : done + budget.rows_at(width)]
        apart = (
            place for place, row in enumerate(rows) if place and not together(width, lengths[row])
        )
        batch = Batch(tuple(rows[: next(apart, len(rows))]), width)
        try:
            result = work(batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(batch.indices) == 1:
                raise ResourceError(
                    f"memory does not suffice for one row of {width} tokens: free memory on the "
                    f"capture device, lower "
                    "`max_new_tokens`, or take another with `capture_device`"
                ) from error
        else:
            budget.passed(batch)
            done += len(batch.indices)
            yield batch, result
            continue
        # Outside the except block, so that the failed batch's frames, and the tensors they hold,
        # are gone by now.
        budget.failed(batch)


def padding_share(lengths: Sequence[int], batches: Sequence[Batch]) -> float:
    """Share of the computed tokens that were padding, 0 to 1."""
    padded = sum(batch.padded_tokens for batch in batches)
    return 1.0 - sum(lengths) / padded if padded else 0.0
