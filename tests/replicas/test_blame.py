"""What replicas die with is found, and nothing else is blamed; what nobody waits for is not lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from tests.replicas.test_pool import Crowded, Models, Pool, responses, samples
from tests.support import fakes
from tests.support.clock import VirtualPolicy
from traitmill.engine.errors import DeadlyError, EngineDiedError
from traitmill.engine.records import Activation, Sample
from traitmill.engine.replicas.actor import Hosted, Seat
from traitmill.engine.replicas.capturer import ReplicatedCapturer
from traitmill.engine.replicas.member import Member, Request
from traitmill.engine.replicas.waiting import Waiting
from traitmill.engine.settings import CaptureSettings

CAPACITY = 64


@pytest.fixture(scope="module")
def event_loop_policy() -> VirtualPolicy:
    return VirtualPolicy()


@pytest.mark.parametrize("n_replicas", [1, 4])
@pytest.mark.parametrize("killers", [{5}, {5, 30}, {5, 20, 40}, {5, 6}, {2, 17, 33, 63}])
async def test_of_several_deadly_requests_none_takes_an_innocent_with_it(
    killers: set[int], n_replicas: int
) -> None:
    """An engine answers what it has, in order, until it comes to a deadly one."""
    waiting = Waiting()
    loop = asyncio.get_running_loop()
    requests = [Request(number, "generate", (), loop.create_future()) for number in range(256)]
    for request in requests:
        waiting.add(request)
    hello: Any = SimpleNamespace(capacity=CAPACITY, node="n")
    members = [Member(index, hello=hello, live=True) for index in range(n_replicas)]
    deaths = 0
    waiting.deal(members)
    while any(member.under_way for member in members):
        member = next(each for each in members if each.under_way)
        deadly = killers & set(member.under_way)
        if deadly:
            deaths += 1
            waiting.take_back(member, "it died")
        else:
            number = min(member.under_way)
            member.under_way.pop(number).answer.set_result(number)
        waiting.deal(members)
    failed = {each.number for each in requests if each.answer.exception() is not None}
    assert failed == killers
    assert all(isinstance(requests[number].answer.exception(), DeadlyError) for number in failed)
    assert deaths <= 3 * len(killers)


class Late(Models):
    """The second replica ends in a bug, once the first works."""

    @asynccontextmanager
    async def __call__(self, seat: Seat) -> AsyncIterator[Hosted]:
        if seat.index == 1:
            await asyncio.sleep(0.05)
            raise KeyError("a bug")
        async with super().__call__(seat) as hosted:
            yield hosted


async def test_a_bug_in_a_replica_that_joins_late_ends_the_run() -> None:
    pool = Pool(Late(delay=10.0), all_needed=False)
    await pool.start()
    asked = [asyncio.ensure_future(pool.generate(sample)) for sample in samples(40)]
    with pytest.raises(Exception, match="a bug"):
        while True:
            await asyncio.sleep(0.01)
            pool.need_one()
    for each in asked:
        each.cancel()
    await pool.close()


async def test_the_last_replica_does_not_wait_for_one_that_has_no_room() -> None:
    pool = Crowded(Models(), all_needed=False)
    await pool.start()
    await pool._give_up(pool.members[0])
    with pytest.raises(EngineDiedError, match="all replicas died"):
        await asyncio.wait_for(pool.generate(samples(1)[0]), 5)
    await pool.close()


class DiesOfPrompts(fakes.FakeGenerator):
    """Three engines die of one sample, however often it is dealt."""

    left = 3

    async def generate(self, sample: Sample) -> Any:
        if sample.rollout == 0 and DiesOfPrompts.left:
            DiesOfPrompts.left -= 1
            await asyncio.sleep(0.01)
            raise EngineDiedError("the engine died")
        await asyncio.sleep(0.01)
        return await super().generate(sample)


class SlowCapture(fakes.FakeCapture):
    async def capture(self, responses: Any) -> list[Activation]:
        await asyncio.sleep(0.05)
        return await super().capture(responses)


async def test_rows_are_not_blamed_for_the_death_of_an_engine_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DiesOfPrompts, "left", 3)

    @asynccontextmanager
    async def opened(_: Seat) -> AsyncIterator[Hosted]:
        capturer = SlowCapture(CaptureSettings())
        capturer.beside_generation = True
        yield Hosted(DiesOfPrompts(0.0, 8), capturer, [])

    pool = Pool(opened, 1)
    await pool.start()
    capturer = ReplicatedCapturer(pool, lambda _: None)
    await capturer.open()
    asked = [asyncio.ensure_future(pool.generate(sample)) for sample in samples(4)]
    found = await asyncio.wait_for(capturer.capture(responses(16)), 30)
    assert [one.error for one in found if one.error] == []
    answers = await asyncio.gather(*asked)
    assert "failed" not in [answer.status for answer in answers if answer.sample.rollout]
    await pool.close()
