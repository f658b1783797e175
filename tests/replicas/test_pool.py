"""What the pool does when replicas differ, fail or die: actors that live in this process."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from typing import Any, cast

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from tests.support import fakes
from tests.support.clock import VirtualPolicy, virtually
from traitmill.engine.errors import DeadlyError, EngineDiedError, ResourceError, UsageError
from traitmill.engine.records import Activation, Response, Sample
from traitmill.engine.replicas import (
    Cluster,
    Hosted,
    Needs,
    ReplicaPool,
    ReplicatedCapturer,
    Seat,
    member,
)
from traitmill.engine.replicas import actor as actor_module
from traitmill.engine.replicas.actor import Replica, _light, full
from traitmill.engine.replicas.capturer import merged
from traitmill.engine.settings import CaptureSettings

CAPACITY = 4


class Method:
    def __init__(self, handle: Handle, name: str) -> None:
        self.handle, self.name = handle, name

    def remote(self, *arguments: Any) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self.handle.run(self.name, arguments))


class Handle:
    """In the place of Ray's handle: an actor here, which `die` ends as a kill does."""

    def __init__(self, replica: Replica) -> None:
        self.replica, self.dead = replica, False
        self.tasks: set[asyncio.Task[Any]] = set()

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)

    async def run(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if self.dead:
            raise ActorDiedError
        task = asyncio.ensure_future(getattr(self.replica, name)(*arguments))
        self.tasks.add(task)
        await asyncio.wait((task,))
        if self.dead:
            raise ActorDiedError
        return task.result()

    def die(self) -> None:
        self.dead = True
        for task in self.tasks | self.replica._under_way:
            task.cancel()


class Pool(ReplicaPool):
    """The pool itself, with actors of this process."""

    def __init__(self, open_models: Any, replicas: int = 2, *, all_needed: bool = True) -> None:
        self.notices: list[str] = []
        super().__init__(
            cast("Cluster", Inline()),
            open_models,
            replicas=replicas,
            needs=Needs(),
            all_needed=all_needed,
            notice=self.notices.append,
        )
        self.placed: list[Handle] = []

    def _place(self, seat: Seat) -> Handle:
        handle = Handle(Replica(seat, self._open_models))
        self.placed.append(handle)
        return handle

    async def _kill(self, actor: Handle) -> None:
        actor.die()


class Inline:
    """In the place of a cluster: what may block is called at once."""

    async def call(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    async def is_over(self) -> bool:
        return False


class Models:
    """Opens fakes. `broken` seats do not start; each start is noted."""

    def __init__(self, *, delay: float = 0.0, beside: bool = True, broken: tuple[int, ...] = ()):
        self.delay, self.beside, self.broken = delay, beside, broken
        self.seats: list[Seat] = []
        self.generators: list[fakes.FakeGenerator] = []

    @asynccontextmanager
    async def __call__(self, seat: Seat) -> AsyncIterator[Hosted]:
        self.seats.append(seat)
        if seat.index in self.broken:
            raise ResourceError("no room for one sequence")
        generator = fakes.FakeGenerator(self.delay, CAPACITY)
        self.generators.append(generator)
        capturer = fakes.FakeCapture(CaptureSettings(), self.delay)
        capturer.beside_generation = self.beside
        yield Hosted(generator, capturer, [f"loaded with {CAPACITY} sequences"])


@pytest.fixture(scope="module")
def event_loop_policy() -> VirtualPolicy:
    """Nothing here waits for another thread or process, so no machine's speed need decide."""
    return VirtualPolicy()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_module, "LINGER_S", 0.0)
    random.seed(0)  # the fakes' delays


def samples(count: int) -> list[Sample]:
    return [
        Sample("t", f"{place * 7919 + 1:032x}", "pos", 0, 0, place, "i", "q", "p", (5, 6), place)
        for place in range(count)
    ]


async def expected(sample: Sample) -> Response:
    return await fakes.FakeGenerator().generate(sample)


async def test_answers_are_those_of_one_engine_and_all_replicas_work() -> None:
    models = Models(delay=0.001)
    pool = Pool(models, 3)
    await pool.start()
    assert pool.max_in_flight == 3 * CAPACITY
    wanted = samples(60)
    assert await asyncio.gather(*map(pool.generate, wanted)) == [
        await expected(sample) for sample in wanted
    ]
    assert all(len(generator.calls) >= 10 for generator in models.generators)
    assert pool.notices == [f"loaded with {CAPACITY} sequences"]  # once, not three times
    await pool.close()


async def test_no_replica_is_given_more_than_it_has_room_for() -> None:
    models = Models()
    most = [0, 0]

    class Counting(fakes.FakeGenerator):
        under_way = 0

        async def generate(self, sample: Sample) -> Response:
            self.under_way += 1
            place = self.place
            most[place] = max(most[place], self.under_way)
            await asyncio.sleep(0.002)
            self.under_way -= 1
            return await super().generate(sample)

    @asynccontextmanager
    async def opened(seat: Seat) -> AsyncIterator[Hosted]:
        async with models(seat):
            generator = Counting(0.0, CAPACITY + seat.index)
            generator.place = seat.index
            yield Hosted(generator)

    pool = Pool(opened)
    await pool.start()
    await asyncio.gather(*map(pool.generate, samples(50)))
    assert most == [CAPACITY, CAPACITY + 1]
    await pool.close()


async def test_what_was_under_way_with_a_replica_that_dies_is_answered_all_the_same() -> None:
    models = Models(delay=0.01)
    pool = Pool(models)
    await pool.start()
    wanted = samples(80)
    answers = [asyncio.ensure_future(pool.generate(sample)) for sample in wanted]
    for enough in (15, 35, 55):
        while sum(answer.done() for answer in answers) < enough:
            await asyncio.sleep(0.005)
        next(handle for handle in pool.placed if not handle.dead).die()
    assert await asyncio.gather(*answers) == [await expected(sample) for sample in wanted]
    assert len(pool.placed) == 5
    assert sum("queued again" in line for line in pool.notices) == 3
    await pool.close()


async def test_an_engine_that_dies_in_a_living_actor_is_started_again() -> None:
    class Dying(fakes.FakeGenerator):
        async def generate(self, sample: Sample) -> Response:
            if len(self.calls) == 3:
                raise EngineDiedError("the engine is gone")
            return await super().generate(sample)

    @asynccontextmanager
    async def opened(_seat: Seat) -> AsyncIterator[Hosted]:
        yield Hosted(Dying(0.0, CAPACITY))

    pool = Pool(opened)
    await pool.start()
    wanted = samples(12)
    assert await asyncio.gather(*map(pool.generate, wanted)) == [
        await expected(sample) for sample in wanted
    ]
    assert any("died: the engine is gone" in line for line in pool.notices)
    await pool.close()


async def test_f22_when_no_start_brings_an_answer_the_run_is_told_and_nothing_hangs() -> None:
    class Dead(fakes.FakeGenerator):
        async def generate(self, _: Sample) -> Response:
            raise EngineDiedError("no memory")

    @asynccontextmanager
    async def opened(_seat: Seat) -> AsyncIterator[Hosted]:
        yield Hosted(Dead(0.0, CAPACITY))

    pool = Pool(opened)
    await pool.start()
    found = await asyncio.gather(*map(pool.generate, samples(10)), return_exceptions=True)
    errors = [error for error in found if isinstance(error, Exception)]
    assert {str(error).partition(".")[0] for error in errors} == {"all replicas died"}
    assert len(errors) >= 6  # some were taken to be what engines die with
    with pytest.raises(EngineDiedError, match="run the same command again"):
        await pool.generate(samples(1)[0])
    assert sum("given up" in line for line in pool.notices) == 2
    await pool.close()


class Poisoned(fakes.FakeGenerator):
    """Dies of one sample, which others are beside."""

    def __init__(self, poison: str) -> None:
        super().__init__(0.0, 16)
        self.poison = poison

    async def generate(self, sample: Sample) -> Response:
        await asyncio.sleep(0.002)
        if sample.id == self.poison:
            raise EngineDiedError("device-side assert")
        return await super().generate(sample)

    async def next_logprobs(self, prompt: list[int], _: list[int]) -> dict[int, float]:
        if prompt == [7]:
            raise EngineDiedError("device-side assert")
        return {1: -0.5}


def poisoned(poison: str) -> Any:
    @asynccontextmanager
    async def opened(_seat: Seat) -> AsyncIterator[Hosted]:
        yield Hosted(Poisoned(poison), PoisonedCapture(poison))

    return opened


@pytest.mark.parametrize("replicas", [1, 2])
async def test_a_sample_that_ends_every_engine_is_failed_and_the_others_are_answered(
    replicas: int,
) -> None:
    wanted = samples(200)
    pool = Pool(poisoned(wanted[40].id), replicas)
    await pool.start()
    found = await asyncio.gather(*map(pool.generate, wanted))
    assert found[40].status == "failed"
    assert found[40].error == "3 replicas died with it, the last so: device-side assert"
    right = [await expected(sample) for sample in wanted]
    assert [found[:40], found[41:]] == [right[:40], right[41:]]
    assert len(pool.placed) == replicas + 3
    assert not any(member.given_up for member in pool.members)
    await pool.close()


async def test_a_prompt_of_the_judge_that_ends_every_engine_is_not_asked_for_ever() -> None:
    pool = Pool(poisoned(""))
    await pool.start()
    asked = [pool.next_logprobs([place], [1]) for place in range(30)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(found.pop(7), DeadlyError)
    assert found == [{1: -0.5}] * 29
    await pool.close()


async def test_a_replica_that_does_not_start_is_named_and_ends_a_run_that_asked_for_all() -> None:
    pool = Pool(Models(broken=(1,)), 3)
    with pytest.raises(ResourceError, match="^replica 2 did not start: no room for one sequence$"):
        await pool.start()
    await pool.close()


async def test_under_auto_the_others_go_on_without_a_replica_that_does_not_start() -> None:
    pool = Pool(Models(broken=(0, 2)), 3, all_needed=False)
    await pool.start()
    while sum("did not start" in line for line in pool.notices) < 2:
        await asyncio.sleep(0.01)
    assert pool.max_in_flight == CAPACITY
    named = [line.partition(" did not")[0] for line in pool.notices if "did not start" in line]
    assert named == ["replica 1", "replica 3"]
    assert (await pool.generate(samples(1)[0])).sample.seed == 0
    await pool.close()
    nobody = Pool(Models(broken=(0, 1)), 2, all_needed=False)
    with pytest.raises(ResourceError, match="no room"):
        await nobody.start()
    await nobody.close()


class Crowded(Pool):
    """A cluster without room for the second replica, until there is."""

    def __init__(self, models: Any, **how: Any) -> None:
        super().__init__(models, 2, **how)
        self.room = asyncio.Event()

    def _place(self, seat: Seat) -> Handle:
        handle = super()._place(seat)
        if seat.index == 1:

            async def here() -> None:
                await self.room.wait()

            handle.replica.here = here  # type: ignore[method-assign]
        return handle


@pytest.mark.parametrize("captures", [False, True])
async def test_under_auto_one_is_enough_to_begin_and_one_that_waits_for_room_joins(
    captures: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member, "PLACED_S", 0.01)
    models = Models(delay=0.002)
    pool = Crowded(models, all_needed=False)
    await asyncio.wait_for(pool.start(), 5)
    assert pool.max_in_flight == 2 * CAPACITY  # for it too, when it comes
    wanted = samples(80)
    answers = [asyncio.ensure_future(pool.generate(sample)) for sample in wanted]
    capturer = ReplicatedCapturer(pool, lambda _: None)
    assert capturer.calls == 4
    if captures:
        await capturer.open()
    while not any("waits for room" in line for line in pool.notices):
        await asyncio.sleep(0.002)
    assert "replica 2 waits for room on the cluster; `ray status` shows what holds it" in (
        pool.notices
    )
    pool.room.set()
    assert await asyncio.gather(*answers) == [await expected(sample) for sample in wanted]
    assert [bool(generator.calls) for generator in models.generators] == [True, True]
    assert [each.captures for each in pool.members] == [captures, captures]
    await pool.close()


async def test_a_run_that_asked_for_all_says_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(member, "PLACED_S", 0.01)
    pool = Crowded(Models())
    start = asyncio.ensure_future(pool.start())
    while not any("replica 2 waits for room" in line for line in pool.notices):
        await asyncio.sleep(0.002)
    assert not start.done()
    pool.room.set()
    await start
    await pool.close()


async def test_a_pool_with_a_replica_that_waits_for_room_is_closed_at_once() -> None:
    pool = Crowded(Models(), all_needed=False)
    await pool.start()
    await asyncio.wait_for(pool.close(), 5)


async def test_an_error_of_a_replicas_own_is_shown_and_not_tried_again() -> None:
    class Faulty(Models):
        @asynccontextmanager
        async def __call__(self, seat: Seat) -> AsyncIterator[Hosted]:
            if len(self.seats) >= 2:
                self.seats.append(seat)
                cause = ModuleNotFoundError("No module named 'vllm'")
                text = f"\x1b[36mray::Replica.load()\x1b[39m\n{cause}"
                raise RayTaskError("load", text, cause, pid=1, ip="here")
            async with super().__call__(seat) as hosted:
                yield hosted

    models = Faulty()
    pool = Pool(models)
    await pool.start()
    pool.placed[0].die()
    while not pool.members[0].given_up:
        await asyncio.sleep(0.01)
    assert len(models.seats) == 3  # one start, not three
    [said] = [line for line in pool.notices if "did not start again" in line]
    assert said.endswith(
        "did not start again: ModuleNotFoundError: No module named 'vllm'; mend this on its machine"
    )
    assert (await pool.generate(samples(1)[0])).status
    await pool.close()


@pytest.mark.parametrize("method", ["capture", "take"])
async def test_a_bug_in_a_replica_ends_the_run_rather_than_the_replica(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> Any:
        error = ValueError("a bug")
        raise RayTaskError(method, f"Traceback\n{error}", error, pid=1, ip="here")

    monkeypatch.setattr(Replica, method, broken)
    pool = Pool(Models())
    await pool.start()
    with pytest.raises(RayTaskError, match="a bug"):
        if method == "capture":
            capturer = ReplicatedCapturer(pool, lambda _: None)
            await capturer.open()
            await capturer.capture(responses(3))
        await pool.generate(samples(1)[0])
    await pool.close()


def test_what_ray_says_is_told_without_its_colours() -> None:
    assert (
        member.reason(ActorDiedError()) == "The actor died unexpectedly before finishing this task."
    )
    coloured = ValueError("\x1b[36mray::Replica\x1b[39m died\nmore")
    assert member.reason(coloured) == "ray::Replica died"


async def test_r21_nodes_with_other_versions_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = iter(["0.32.0", "0.29.0"])
    monkeypatch.setattr(actor_module, "installed_versions", lambda names: {"vllm": next(numbers)})
    pool = Pool(Models())
    with pytest.raises(UsageError, match=r"replica \d on \S+ has vllm 0\.(29|32)\.0, .* on all"):
        await pool.start()
    await pool.close()


async def test_r21_a_node_with_other_versions_is_refused_when_a_replica_comes_back_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = ["0.32.0"]
    monkeypatch.setattr(actor_module, "installed_versions", lambda names: {"vllm": version[0]})
    pool = Pool(Models())
    await pool.start()
    version[0] = "0.29.0"
    pool.placed[0].die()
    while not any("is given up" in notice for notice in pool.notices):
        await asyncio.sleep(0.01)
    refused = [notice for notice in pool.notices if "did not start again" in notice]
    assert "has vllm 0.29.0" in refused[0]
    [sample] = samples(1)
    assert await pool.generate(sample) == await expected(sample)
    await pool.close()


def test_all_that_an_answer_holds_comes_back_from_an_actor() -> None:
    sample = samples(1)[0]
    response = Response(
        sample,
        "unfinished",
        "said",
        (9, 10),
        "stop",
        (-0.5, -0.25),
        "why",
        thought="hm",
        thought_token_ids=(4, 5, 6),
        thought_span=(1, 2),
    )
    left_out = [
        each.name for each in fields(response) if getattr(response, each.name) == each.default
    ]
    assert not left_out
    assert full(_light(response), sample) == response


# --- stragglers ---

SLOTS, REPLICAS, ROWS = 8, 4, 4000


class Slow(fakes.FakeGenerator):
    """An engine of so many sequences at once, the rest waiting; one row in fifty takes longer."""

    def __init__(self, longer: float) -> None:
        super().__init__(max_in_flight=2 * SLOTS)
        self._slots, self._longer = asyncio.Semaphore(SLOTS), longer

    async def generate(self, sample: Sample) -> Response:
        async with self._slots:
            await asyncio.sleep(seconds(sample.rollout, self._longer))
        return Response(sample, "ok", "text")


def seconds(place: int, longer: float) -> float:
    """The time of a row, with the same mean however long the longer ones are."""
    return (longer if place % 50 == 7 else 1.0) * 50 / (49 + longer)


def one_queue(longer: float) -> float:
    """Return when all rows are done that go, in order, to whichever slot is free first."""
    free = [0.0] * (REPLICAS * SLOTS)
    for place in range(ROWS):
        heapq.heapreplace(free, free[0] + seconds(place, longer))
    return max(free)


def makespan(longer: float) -> float:
    """Seconds of the loop's clock that all rows take on all replicas."""

    async def main() -> float:
        @asynccontextmanager
        async def opened(_seat: Seat) -> AsyncIterator[Hosted]:
            yield Hosted(Slow(longer))

        pool = Pool(opened, REPLICAS)
        await pool.start()
        slots = asyncio.Semaphore(pool.max_in_flight)  # as the run's stage keeps them

        async def one(sample: Sample) -> None:
            async with slots:
                await pool.generate(sample)

        began = asyncio.get_running_loop().time()
        await asyncio.gather(*map(one, samples(ROWS)))
        took = asyncio.get_running_loop().time() - began
        await pool.close()
        return took

    return float(virtually(main()))


@pytest.mark.parametrize("longer", [1.0, 10.0])
def test_r20_rows_ten_times_longer_are_worked_off_as_from_one_queue(
    longer: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_module, "LINGER_S", 0.1)
    assert one_queue(longer) >= 0.97 * makespan(longer)


# --- capture ---


def responses(count: int) -> list[Response]:
    return [Response(sample, "ok", "text", (1, 2), "stop") for sample in samples(count)]


class PoisonedCapture(fakes.FakeCapture):
    def __init__(self, poison: str) -> None:
        super().__init__(CaptureSettings())
        self.poison = poison

    async def capture(self, responses: Any) -> list[Activation]:
        await asyncio.sleep(0.002)
        if any(response.sample.id == self.poison for response in responses):
            raise EngineDiedError("the capture process died")
        return await super().capture(responses)


@pytest.mark.parametrize("replicas", [1, 2])
async def test_a_row_that_every_capture_dies_with_gets_the_error_and_the_others_their_pools(
    replicas: int,
) -> None:
    rows = responses(96)
    pool = Pool(poisoned(rows[37].sample.id), replicas)
    await pool.start()
    capturer = ReplicatedCapturer(pool, lambda _: None)
    await capturer.open()
    calls = [rows[start : start + 32] for start in range(0, 96, 32)]
    found = await asyncio.gather(*map(capturer.capture, calls))
    activations = [activation for call in found for activation in call]
    assert [one.sample_id for one in activations] == [row.sample.id for row in rows]
    assert [place for place, one in enumerate(activations) if one.error] == [37]
    assert activations[37].error.endswith(
        "3 replicas died with it, the last so: the capture process died"
    )
    assert len(pool.placed) == replicas + 3
    await pool.close()


def values(activations: list[Activation]) -> list[np.ndarray]:
    return [activation.pools["response_mean"] for activation in activations]


async def test_every_replica_captures_and_calls_come_back_in_their_order() -> None:
    models = Models(delay=0.005)
    pool = Pool(models, 3)
    await pool.start()
    capturer = ReplicatedCapturer(pool, lambda _: None)
    assert capturer.calls == 6
    assert await capturer.open() == fakes.FACTS
    rows = responses(60)
    calls = [rows[start : start + 5] for start in range(0, 60, 5)]
    found = await asyncio.gather(*map(capturer.capture, calls))
    for call, activations in zip(calls, found, strict=True):
        right = [fakes.expected_values(row.sample.id, "response_mean") for row in call]
        np.testing.assert_array_equal(values(activations), right)
    worked = [len(handle.replica._capturer.rows) for handle in pool.placed]
    assert min(worked) >= 15
    await pool.close()


@pytest.mark.parametrize("beside", [True, False])
async def test_a_capture_call_goes_to_another_replica_when_its_own_dies(beside: bool) -> None:
    models = Models(delay=0.02, beside=beside)
    pool = Pool(models)
    await pool.start()
    capturer = ReplicatedCapturer(pool, lambda _: None)
    assert capturer.beside_generation == beside
    await capturer.open()
    rows = responses(40)
    calls = [rows[start : start + 4] for start in range(0, 40, 4)]
    under_way = [asyncio.ensure_future(capturer.capture(call)) for call in calls]
    await asyncio.sleep(0.03)
    pool.placed[0].die()
    found = await asyncio.gather(*under_way)
    for call, activations in zip(calls, found, strict=True):
        right = [fakes.expected_values(row.sample.id, "response_mean") for row in call]
        np.testing.assert_array_equal(values(activations), right)
    # One that comes back after generation has left has no engine to load.
    assert [seat.generates for seat in models.seats] == [True, True, beside]
    await pool.close()


async def test_when_all_die_as_capture_is_opened_those_that_come_back_open_it() -> None:
    pool = Pool(Models(beside=False))
    await pool.start()
    capturer = ReplicatedCapturer(pool, lambda _: None)
    for handle in pool.placed:
        handle.die()
    assert await capturer.open() == fakes.FACTS
    assert len(await capturer.capture(responses(3))) == 3
    await pool.close()


async def test_capture_is_opened_without_a_replica_that_waits_for_a_node_to_come_back() -> None:
    class Waiting(Models):
        @asynccontextmanager
        async def __call__(self, seat: Seat) -> AsyncIterator[Hosted]:
            if len(self.seats) == 2:
                await asyncio.Event().wait()
            async with super().__call__(seat) as hosted:
                yield hosted

    pool = Pool(Waiting(beside=False))
    await pool.start()
    pool.placed[0].die()
    while len(pool.placed) < 3:
        await asyncio.sleep(0.01)
    capturer = ReplicatedCapturer(pool, lambda _: None)
    assert await capturer.open() == fakes.FACTS
    assert len(await capturer.capture(responses(3))) == 3
    await pool.close()


async def test_replicas_that_would_fill_one_set_with_two_kinds_of_rows_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = iter(["float32", "bfloat16"])

    async def opened(_: object) -> Any:
        return replace(fakes.FACTS, dtype=next(kinds))

    monkeypatch.setattr(fakes.FakeCapture, "open", opened)
    pool = Pool(Models())
    await pool.start()
    with pytest.raises(UsageError, match=r"different dtype \(float32 and bfloat16\)"):
        await ReplicatedCapturer(pool, lambda _: None).open()
    await pool.close()


async def test_a_replica_that_comes_back_must_capture_as_the_others_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dtype = ["float32"]

    async def opened(_: object) -> Any:
        return replace(fakes.FACTS, dtype=dtype[0])

    monkeypatch.setattr(fakes.FakeCapture, "open", opened)
    pool = Pool(Models())
    await pool.start()
    capturer = ReplicatedCapturer(pool, lambda _: None)
    assert (await capturer.open()).dtype == "float32"
    dtype[0] = "bfloat16"
    pool.placed[0].die()
    pool.placed[0].dead = True
    with pytest.raises(ActorDiedError):
        await pool.placed[0].run("take", ())
    assert len(await capturer.capture(responses(3))) == 3
    while not any("is given up" in notice for notice in pool.notices):
        await asyncio.sleep(0.01)
    assert any("different dtype (float32 and bfloat16)" in notice for notice in pool.notices)
    assert len(await capturer.capture(responses(3))) == 3
    await pool.close()


def test_summaries_of_self_checks_add_up_and_the_worst_counts() -> None:
    one = {
        "mode": "sample",
        "rows": 8,
        "logprob_rows": 4,
        "skipped_for_memory": 0,
        "doubtful_rows": 0,
        "worst_state_deviation": {"response_mean": 0.5},
        "state_tolerance": {"response_mean": 1.0},
        "worst_logprob_deviation": 0.1,
        "mean_logprob_deviation": 0.02,
        "mean_logprob_tolerance": 0.3,
        "mean_logprob": -1.0,
    }
    other = one | {
        "rows": 2,
        "logprob_rows": 12,
        "doubtful_rows": 1,
        "worst_state_deviation": {"response_mean": 0.2},
        "worst_logprob_deviation": 0.4,
        "mean_logprob_deviation": 0.06,
        "mean_logprob": -3.0,
    }
    assert merged([one, other]) == {
        "mode": "sample",
        "rows": 10,
        "logprob_rows": 16,
        "skipped_for_memory": 0,
        "doubtful_rows": 1,
        "worst_state_deviation": {"response_mean": 0.5},
        "state_tolerance": {"response_mean": 1.0},
        "worst_logprob_deviation": 0.4,
        "mean_logprob_deviation": pytest.approx(0.05),
        "mean_logprob_tolerance": 0.3,
        "mean_logprob": pytest.approx(-2.5),
    }
    assert merged([]) == {}
    assert merged([one]) == one
