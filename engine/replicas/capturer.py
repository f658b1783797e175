"""Capture on all replicas: each call goes to the one with fewest under way, whichever die."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..capture import CaptureFacts
from ..errors import EngineDiedError, TraitmillError
from ..records import Activation, Response
from .member import Member, is_fault, reason
from .pool import ReplicaPool
from .waiting import MOST_DEATHS, company, deadly

_MOST_UNCLEAR = 2 * MOST_DEATHS
"""Deaths with some rows that requests beside them may have caused, until the rows are suspect."""
CALLS = 2
"""Under way on a replica: while the results of one travel, the next is computed."""


class ReplicatedCapturer:
    """A capturer made of several. The arrays come by reference, through Ray's shared memory: they
    are mapped where the writer's thread stores them, and never copied on the event loop."""

    def __init__(self, pool: ReplicaPool, on_checked: Callable[[dict[str, Any]], None]) -> None:
        """`on_checked` is called with what the self-checks have seen, after each call."""
        self._pool, self._on_checked = pool, on_checked
        self._checked: dict[Any, dict[str, Any]] = {}

    @property
    def calls(self) -> int:
        """Calls to keep under way, so that every replica has work."""
        return CALLS * sum(not member.given_up for member in self._pool.members)

    @property
    def beside_generation(self) -> bool:
        return all(m.hello.beside_generation for m in self._pool.members if m.hello is not None)

    @property
    def placement(self) -> str:
        hellos = [member.hello for member in self._pool.members if member.hello is not None]
        return " and ".join(sorted({hello.placement for hello in hellos}))

    @property
    def self_check(self) -> dict[str, Any]:
        """What the self-checks of all replicas have seen so far, those that died included."""
        return merged(list(self._checked.values()))

    async def open(self) -> CaptureFacts:
        """Have the capture models of all replicas loaded. Raise a TraitmillError."""
        pool = self._pool
        living = pool.begin_capture(beside=self.beside_generation)
        while True:
            found = await asyncio.gather(*map(self._open_one, living))
            facts = [one for one in found if one is not None]
            if facts:
                break
            # All died just now, or earlier: those that come back load it themselves.
            async with pool.changed:
                while not any(member.captures for member in pool.members):
                    pool.need_one()
                    await pool.changed.wait()
            living = [member for member in pool.members if member.captures]
        for each in facts:
            pool.agreed.refuse_capture(each)
        return facts[0]

    async def _open_one(self, member: Member) -> CaptureFacts | None:
        """Return the facts of one replica's capture; None where it died meanwhile."""
        from ray.exceptions import RayError

        actor = member.actor
        if actor is None:
            return None
        try:
            facts: CaptureFacts | TraitmillError = await actor.open_capture.remote()
        except RayError as error:
            if is_fault(error):
                raise
            if member.actor is actor:
                self._pool.lost(member, reason(error))
            return None
        if isinstance(facts, TraitmillError):
            raise facts
        member.captures = member.actor is actor
        await self._pool.tell()
        return facts

    async def capture(self, responses: Sequence[Response]) -> list[Activation]:
        """Capture some responses, in their order, on one replica; if it dies, on another in ever
        smaller calls, till the row that replicas die with is alone and gets the error."""
        return await self._capture(list(responses), 0)

    async def _capture(self, rows: list[Response], deaths: int) -> list[Activation]:
        """Capture rows that so many replicas died with."""
        calls = 1 if deaths < MOST_DEATHS - 1 else CALLS
        found, unclear = await self._once(rows, calls), 0
        while found is None:
            unclear += 1
            found = await self._once(rows, calls, unclear >= _MOST_UNCLEAR)
        if not isinstance(found, str):
            return found
        deaths += 1
        if deaths >= MOST_DEATHS:  # which leaves one row to a call
            samples = [row.sample for row in rows]
            error = deadly(found).message
            return [Activation(s.trait, s.id, error=f"sample {s.id}: {error}") for s in samples]
        size = company(deaths, len(rows))
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        return [one for part in parts for one in await self._capture(part, deaths)]

    async def _once(
        self, rows: list[Response], calls: int, blamed: bool = False
    ) -> list[Activation] | str | None:
        """Return what one replica made of some rows, in the room of so many calls, or why it died:
        None where its engine had requests too, one of which may be to blame, unless `blamed`.

        Raise a TraitmillError.
        """
        from ray.exceptions import RayError

        member = await self._take(calls)
        actor = member.actor
        try:
            found = await actor.capture.remote(rows)
        except RayError as error:
            if is_fault(error):  # a bug: it ends the run, as it would in the run's own process
                raise
            found = EngineDiedError(reason(error))
        finally:
            await self._give_back(member, calls)
        if isinstance(found, EngineDiedError):
            if member.actor is actor:
                self._pool.lost(member, found.message)
            return None if member.was_asked and not blamed else found.message
        if isinstance(found, TraitmillError):
            raise found
        activations: list[Activation]
        activations, self._checked[actor] = found
        self._on_checked(self.self_check)
        member.failures = 0
        return activations

    async def _take(self, calls: int) -> Member:
        """Return a replica with room for so many calls; wait until there is one."""
        async with self._pool.changed:
            while True:
                able = [
                    m for m in self._pool.members if m.captures and m.capturing + calls <= CALLS
                ]
                if able:
                    member = min(able, key=lambda m: m.capturing)
                    member.capturing += calls
                    return member
                self._pool.need_one()
                await self._pool.changed.wait()

    async def _give_back(self, member: Member, calls: int) -> None:
        async with self._pool.changed:
            member.capturing -= calls
            self._pool.changed.notify_all()


def merged(checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the summary of several self-checks: counts add up, the worst of all counts.

    Means are weighted by the rows whose log-probabilities were compared.
    """
    if not checks:
        return {}
    first = dict(checks[0])
    for check in checks[1:]:
        rows = (first.get("logprob_rows", 0), check.get("logprob_rows", 0))
        first = {
            name: _merged(name, first.get(name), check.get(name), rows)
            for name in {**first, **check}
        }
    return first


def _merged(name: str, one: Any, other: Any, rows: tuple[int, int]) -> Any:
    if one is None or other is None or isinstance(one, str):
        return other if one is None else one
    if isinstance(one, dict):
        return {key: max(one.get(key, 0.0), other.get(key, 0.0)) for key in {**one, **other}}
    if name.endswith("rows") or name.startswith("skipped"):
        return one + other
    if name.startswith("mean") and not name.endswith("tolerance"):
        return (one * rows[0] + other * rows[1]) / max(1, sum(rows))
    return max(one, other)
