"""What waits for an engine, and what engines died with: in ever smaller company, till one is told.

A request that ends every engine it comes to would else end them all, again and again. What was
under way with an engine that died is suspect. At first some suspects share an engine, then each has
it without another, among requests that no engine died with; so a third death has one cause.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from math import isqrt

from ..errors import DeadlyError
from .member import Member, Request

MOST_DEATHS = 3
"""Of engines with a request, until it is not asked again."""


def company(deaths: int, together: int) -> int:
    """Return how many of what was together when so many engines died may be so again."""
    return max(1, isqrt(together)) if deaths == 1 else 1


def deadly(why: str) -> DeadlyError:
    """Return the error of what is not asked again."""
    return DeadlyError(f"{MOST_DEATHS} replicas died with it, the last so: {why}")


def refuse(requests: Iterable[Request], error: BaseException) -> None:
    """Answer those of some requests that have no answer yet with an error."""
    for request in requests:
        if not request.answer.done():
            request.answer.set_exception(error)


class Waiting:
    """Requests that no engine has. What engines died with goes first."""

    def __init__(self) -> None:
        self._by_deaths: tuple[deque[Request], ...] = tuple(deque() for _ in range(MOST_DEATHS))

    def add(self, request: Request) -> None:
        """Put a request at the end."""
        self._by_deaths[request.deaths].append(request)

    def deal(self, members: Sequence[Member]) -> None:
        """Give what waits to those with most room, while there is any."""
        while any(self._by_deaths):
            for member in sorted(members, key=lambda member: -member.room):
                request = self._next(member)
                if request is not None:
                    break
            else:
                return
            member.under_way[request.number] = request
            member.outbox.append(request)
            member.posted.set()

    def _next(self, member: Member) -> Request | None:
        if member.room <= 0:
            return None
        for deaths in reversed(range(MOST_DEATHS)):
            queue = self._by_deaths[deaths]
            while queue and queue[0].answer.done():  # given up meanwhile
                queue.popleft()
            if queue and (not deaths or self._takes_suspect(member, deaths)):
                return queue.popleft()
        return None

    def _takes_suspect(self, member: Member, deaths: int) -> bool:
        """Return whether one more suspect of so many deaths may join: none of another number may be
        there, for which of them is to blame could not be told."""
        others = (each for each in range(1, MOST_DEATHS) if each != deaths)
        if any(member.suspects(each) for each in others):
            return False
        return member.suspects(deaths) < company(deaths, member.capacity)

    def take_back(self, member: Member, why: str) -> int:
        """Put what was under way with a member that died at the front; return how many.

        Of those with it, they are to blame that engines have died with before; one that is told to
        be deadly is answered with a DeadlyError.
        """
        back = sorted(member.under_way.values(), key=lambda request: request.number, reverse=True)
        member.under_way.clear()
        worst = max((request.deaths for request in back), default=0)
        again = 0
        for request in back:
            request.deaths += request.deaths == worst
            if request.deaths < MOST_DEATHS:
                self._by_deaths[request.deaths].appendleft(request)
                again += 1
            else:
                refuse([request], deadly(why))
        return again

    def refuse_all(self, error: BaseException) -> None:
        """Answer all with an error."""
        for queue in self._by_deaths:
            refuse(queue, error)
            queue.clear()
