"""The replicas as a run sees them: one generator with their room together, whichever of them die.

What is asked waits in one queue; the replica with most room gets the next. An actor that dies is
started again, and what was under way with it goes to the front of the queue: each caller gets one
answer, so nothing is lost and nothing stored twice. What replicas die with is found in `waiting`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ..errors import DeadlyError, EngineDiedError, TraitmillError, UsageError
from ..records import Response, Sample
from .actor import Answer, Hello, OpenModels, Replica, Seat, full
from .cluster import Cluster, Needs
from .member import Agreed, FaultError, Member, Request, Starts, closed, is_fault, placed, reason
from .waiting import Waiting, refuse

RESTARTS = 3
"""Starts of a replica that may fail or end without one answer, until it is given up."""
_CLOSE_S = 10.0


class ReplicaPool:
    """A generator made of several. Raises EngineDiedError when none of them is left."""

    def __init__(
        self,
        cluster: Cluster,
        open_models: OpenModels,
        *,
        replicas: int,
        needs: Needs,
        all_needed: bool,
        notice: Callable[[str], None],
    ) -> None:
        """`all_needed`: a replica that does not start ends the run, else the others go on."""
        self._cluster, self._open_models = cluster, open_models
        self._needs, self._all_needed, self._notice = needs, all_needed, notice
        self.members = [Member(index) for index in range(replicas)]
        self._generates, self._captures, self._closed = True, False, False
        self._waiting = Waiting()
        self._numbers = itertools.count()
        self._starts = Starts(self._waiting.refuse_all)
        self._said: set[str] = set()
        self._errors: list[TraitmillError] = []
        self.agreed = Agreed()
        self.changed = asyncio.Condition()
        """Notified when a member comes, goes, or has ended a capture call."""

    # --- start ---

    async def start(self) -> None:
        """Load the models of all replicas, or where not all are needed of one: the others join.

        Raise what keeps one that is needed from it, named.
        """
        pending = {self._starts.begin(self._start_member(member)) for member in self.members}
        while pending and not (self._errors if self._all_needed else self._has_one):
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a bug is raised
        if self._errors and (self._all_needed or not self._has_one):
            raise self._errors[0]

    @property
    def _has_one(self) -> bool:
        return any(member.hello is not None for member in self.members)

    async def _start_member(self, member: Member) -> None:
        try:
            await self._bring_up(member)
        except TraitmillError as error:
            named = type(error)(f"{member} did not start: {error.message}")
            self._errors.append(named)
            if not self._all_needed:
                self._notice(f"{named}; the others go on without it")
                await self._give_up(member)

    async def _bring_up(self, member: Member) -> None:
        """Start an actor for a member and load its models. Raise a TraitmillError."""
        from ray.exceptions import RayError

        seat = Seat(member.index, len(self.members), generates=self._generates)
        member.actor = await self._cluster.call(self._place, seat)
        try:
            hello = await self._loaded(member)
        except RayError as error:
            if not is_fault(error):
                raise EngineDiedError(f"its process died: {reason(error)}") from error
            await self._end(member)
            raise FaultError(f"{reason(error)}; mend this on its machine") from error
        if isinstance(hello, TraitmillError):
            await self._end(member)
            raise hello
        member.hello, member.up = hello, True
        for line in hello.notices:
            if line not in self._said:
                self._said.add(line)
                self._notice(line)
        member.captures = self._captures
        # One that comes when others capture beside generation may have room for one of the two.
        generates = self._generates and (hello.beside_generation or not member.captures)
        member.live = generates and hello.capacity > 0
        if member.live:
            steps = (self._send, self._receive)
            member.talks = [asyncio.create_task(self._talk(member, step)) for step in steps]
        await self.tell()
        self._waiting.deal(self.members)

    async def _loaded(self, member: Member) -> Hello | TraitmillError:
        """Have an actor load its models; return what keeps it from going on as the others do."""
        await placed(member, self._notice, self._cluster.is_over)
        hello: Hello | TraitmillError = await member.actor.load.remote()
        if isinstance(hello, TraitmillError):
            return hello
        try:
            self.agreed.refuse_versions(member, hello)
            if self._captures:
                facts = await member.actor.open_capture.remote()
                if isinstance(facts, TraitmillError):
                    return facts
                self.agreed.refuse_capture(facts)
        except UsageError as error:
            return error
        return hello

    def _place(self, seat: Seat) -> Any:
        """Have Ray place an actor. It holds its engine and its capture, so they share a node."""
        return self._cluster.place(self._needs, Replica, seat, self._open_models)

    # --- asking ---

    @property
    def max_in_flight(self) -> int:
        """The requests to keep with all engines together; those still to join are as the others."""
        known = [member.hello.capacity for member in self.members if member.hello is not None]
        joining = sum(member.hello is None and not member.given_up for member in self.members)
        return sum(known) + joining * max(known, default=0)

    async def generate(self, sample: Sample) -> Response:
        """Generate one response, on whichever replica has most room."""
        try:
            return full(await self._ask("generate", sample), sample)
        except DeadlyError as error:
            return Response(sample, "failed", error=error.message)

    async def next_logprobs(
        self, prompt_token_ids: Sequence[int], token_ids: Sequence[int]
    ) -> dict[int, float]:
        """Return the log-probabilities of named tokens right after a prompt. Raise DeadlyError."""
        found: dict[int, float] = await self._ask(
            "next_logprobs", list(prompt_token_ids), list(token_ids)
        )
        return found

    async def _ask(self, method: str, *arguments: Any) -> Any:
        self.need_one()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.add(Request(next(self._numbers), method, arguments, answer))
        self._waiting.deal(self.members)
        return await answer

    def need_one(self) -> None:
        """Raise EngineDiedError where no replica is left."""
        self._starts.check()
        # One that never came, for want of room on the cluster, is not waited for by the last.
        gone = [member.given_up for member in self.members if member.hello is not None]
        if (gone and all(gone)) or all(member.given_up for member in self.members):
            raise EngineDiedError(
                "all replicas died. What was stored is safe; run the same command again to go on"
            )

    async def _send(self, member: Member) -> None:
        await member.posted.wait()
        member.posted.clear()
        letters, member.outbox = member.outbox, []
        await member.actor.put.remote([(r.number, r.method, r.arguments) for r in letters])

    async def _receive(self, member: Member) -> None:
        answers: list[Answer] = await member.actor.take.remote()
        dead = None
        for number, value in answers:
            if isinstance(value, EngineDiedError):  # the actor lives, its engine does not
                dead = value
                continue
            request = member.under_way.pop(number, None)
            if request is None or request.answer.done():
                continue
            if isinstance(value, Exception):
                request.answer.set_exception(value)
            else:
                member.failures = 0
                request.answer.set_result(value)
        if dead is not None:
            raise dead
        self._waiting.deal(self.members)

    async def _talk(self, member: Member, step: Callable[[Member], Any]) -> None:
        from ray.exceptions import RayError

        try:
            while True:
                await step(member)
        except RayError as error:
            if is_fault(error):  # a bug: it ends the run, as it would in the run's own process
                refuse(member.under_way.values(), error)
            self.lost(member, reason(error))
        except EngineDiedError as error:
            self.lost(member, error.message)

    # --- faults ---

    def lost(self, member: Member, why: str) -> None:
        """Start a member that died again; what it was to do goes to the front of the queue."""
        if self._closed or member.actor is None:
            return
        actor, member.was_asked = member.ended(), bool(member.under_way)
        current = asyncio.current_task()
        for talk in member.talks:
            if talk is not current:
                talk.cancel()
        back = self._waiting.take_back(member, why)
        self._notice(f"{member} died: {why}; {back} samples of it are queued again")
        self._starts.begin(self._revive(member, actor))
        self._waiting.deal(self.members)

    async def _revive(self, member: Member, actor: Any) -> None:
        await self._kill(actor)
        while member.failures < RESTARTS:
            member.failures += 1
            try:
                await self._bring_up(member)
            except TraitmillError as error:
                self._notice(f"{member} did not start again: {error.message}")
                if isinstance(error, FaultError):
                    break
            else:
                return
        self._notice(f"{member} is given up: {member.failures} starts brought no answer")
        await self._give_up(member)

    async def _give_up(self, member: Member) -> None:
        member.given_up = True
        await self.tell()
        try:
            self.need_one()
        except EngineDiedError as error:
            self._waiting.refuse_all(error)

    # --- capture ---

    def begin_capture(self, *, beside: bool) -> list[Member]:
        """Note that replicas which come up are to capture; return those that are up now.

        Without `beside`, generation has ended: they load no engine any more.
        """
        self._captures = True
        if not beside:
            self._generates = False
            for member in self.members:
                member.live = False
        return [member for member in self.members if member.up]

    async def tell(self) -> None:
        """Wake who waits for a change."""
        async with self.changed:
            self.changed.notify_all()

    # --- the end ---

    async def _end(self, member: Member) -> None:
        actor, member.actor = member.actor, None
        await self._kill(actor)

    async def _kill(self, actor: Any) -> None:
        import ray

        await self._cluster.call(ray.kill, actor)

    async def close(self) -> None:
        """Take all models down, then the actors. What they are still doing is dropped."""
        self._closed = True
        tasks = [*self._starts.tasks, *(talk for member in self.members for talk in member.talks)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        actors = [member.actor for member in self.members if member.actor is not None]
        up = (closed(member.actor) for member in self.members if member.up)
        closing = asyncio.gather(*up, return_exceptions=True)
        with suppress(TimeoutError):
            await asyncio.wait_for(closing, _CLOSE_S)
        await asyncio.gather(*map(self._kill, actors))
