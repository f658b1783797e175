"""The line to an endpoint: rates, order, the gate, and what a 429 changes."""

from __future__ import annotations

import asyncio
import heapq
import selectors
import time

import pytest

from engine.errors import StoppedError
from engine.ratelimit import Throttle, parse_duration, show_seconds, wait_asked
from engine.settings import Limits


class VirtualClock(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer, so that minutes pass in milliseconds."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_NoWait(self))

    def time(self) -> float:
        return self.now


class _NoWait(selectors.SelectSelector):
    """Instead of waiting for a timer, sets the clock to it."""

    def __init__(self, loop: VirtualClock) -> None:
        super().__init__()
        self.loop = loop

    def select(self, timeout=None):
        self.loop.now += (timeout or 0) + 1e-7  # a turn of the loop takes time, else a rounded timer never comes
        return super().select(0)


def virtually(main):
    """Run a coroutine on a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(main)


def throttle(events=None, **limits):
    return Throttle(Limits(**{"rpm": 1e9, **limits}), (lambda _: None) if events is None else events.append)


def busiest(times, window):
    """The most events in any half-open window of that length."""
    inside, most = [], 0
    for moment in times:
        heapq.heappush(inside, moment)
        while inside[0] <= moment - window:
            heapq.heappop(inside)
        most = max(most, len(inside))
    return most


# --- headers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360),
        ("120ms", 0.12),
        ("1h2m3.5s", 3723.5),
        ("1d", 86400),
        ("17", 17),
        ("1.5", 1.5),
        ("0s", 0),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("3 s", None),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, 0),
        ({"retry-after": "later"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360),
        ({"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "6m0s"}, None),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "2s",
            },
            2,
        ),
    ],
)
def test_f03_the_wait_an_endpoint_asks_for(headers, wait):
    assert wait_asked(headers) == wait


def test_a_retry_date_without_a_date_is_taken_against_this_clock():
    until = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 90 < wait_asked({"retry-after": until}) <= 100


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0 s"), (59, "59 s"), (95, "1 min 35 s"), (7260, "2 h 1 min")])
def test_show_seconds(seconds, shown):
    assert show_seconds(seconds) == shown


# --- rates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rpm", [0.5, 1, 7, 60, 600, 6000])
def test_the_rate_is_held_and_never_exceeded_in_any_minute(rpm):
    async def main():
        line = throttle(rpm=rpm)
        sent = []
        for _ in range(int(3 * rpm) + 2):
            async with line.slot(1):
                sent.append(asyncio.get_running_loop().time())
        return sent

    sent = virtually(main())
    assert busiest(sent, 60) <= max(1, rpm)
    held = (len(sent) - 1) / (sent[-1] - sent[0]) * 60
    assert 0.9 * rpm <= held <= rpm


def test_late_timers_cost_no_rate():
    """Every wake-up is 5 ms late, as on a busy loop: half a slot of 10 ms."""

    async def main():
        line = throttle(rpm=6000)
        loop = asyncio.get_running_loop()
        sent = []
        for _ in range(1000):
            async with line.slot(1):
                sent.append(loop.time())
                loop.now += 0.005
        return sent

    sent = virtually(main())
    assert 0.9 * 100 <= (len(sent) - 1) / (sent[-1] - sent[0]) <= 100
    assert busiest(sent, 1.0) <= 100


def test_a_pause_is_not_made_up_by_a_burst():
    async def main():
        line = throttle(rpm=600)
        sent = []
        for index in range(100):
            if index == 50:
                await asyncio.sleep(300)
            async with line.slot(1):
                sent.append(asyncio.get_running_loop().time())
        return sent

    assert busiest(virtually(main()), 1.0) <= 11


def test_tokens_a_minute_are_held_with_their_true_sizes():
    """Each request is expected to use 100 tokens and uses 1 to 999: what counts is what was used."""

    async def main():
        line = throttle(tpm=60_000)
        loop, used = asyncio.get_running_loop(), []
        for index in range(600):
            async with line.slot(100) as ticket:
                tokens = index * 37 % 999 + 1
                used.append((loop.time(), tokens))
                line.answered(ticket, tokens)
        return used

    used = virtually(main())
    start, end = used[0][0], used[-1][0]
    assert 0.85 * 60_000 <= sum(tokens for _, tokens in used) / (end - start) * 60 <= 60_000
    for moment, _ in used:
        assert sum(tokens for at, tokens in used if moment <= at < moment + 60) <= 60_000


def test_a_request_larger_than_the_token_burst_passes():
    async def main():
        line = throttle(tpm=1000)
        async with line.slot(900):
            return asyncio.get_running_loop().time()

    assert 1040 < virtually(main()) < 1065  # most of a minute's tokens take most of a minute


def test_large_requests_are_not_overtaken():
    async def main():
        line, order = throttle(tpm=6000), []

        async def ask(name, tokens):
            async with line.slot(tokens):
                order.append(name)

        await asyncio.gather(ask("first", 300), ask("large", 3000), *(ask(f"small {i}", 1) for i in range(5)))
        return order

    assert virtually(main()) == ["first", "large", *(f"small {i}" for i in range(5))]


def test_a_token_limit_learnt_late_does_not_charge_for_the_time_before():
    async def main():
        line = throttle()
        for _ in range(100):
            async with line.slot(10) as ticket:
                line.answered(ticket, 5000)
        line.learn({"x-ratelimit-limit-tokens": "60000"})
        async with line.slot(10):
            return asyncio.get_running_loop().time()

    assert virtually(main()) < 1001


def test_limits_in_headers_only_ever_slow_down():
    line = throttle(rpm=600)
    line.learn({"x-ratelimit-limit-requests": "10000"})
    assert line.pace == 600
    line.learn({"x-ratelimit-limit-requests": "120", "x-ratelimit-limit-tokens": "50000"})
    assert line.pace == 120
    assert line._tpm == 50000
    line.learn({"x-ratelimit-limit-requests": "no number", "x-ratelimit-limit-tokens": "60000"})
    assert (line.pace, line._tpm) == (120, 50000)


# --- 429 -----------------------------------------------------------------------------------------------------


def test_f03_the_gate_holds_back_everyone_and_then_keeps_the_pace():
    async def main():
        line, sent = throttle(rpm=600), []
        loop = asyncio.get_running_loop()

        async def ask():
            async with line.slot(1):
                sent.append(loop.time())

        async with line.slot(1) as ticket:
            waiting = [asyncio.create_task(ask()) for _ in range(50)]
            line.limited(ticket, 30)
        shut_until = loop.time() + 30
        await asyncio.gather(*waiting)
        return sent, shut_until

    sent, shut_until = virtually(main())
    assert min(sent) >= shut_until
    assert busiest(sent, 1.0) <= 11


def test_f04_a_long_wait_is_counted_down():
    events = []

    async def main():
        line = throttle(events)
        async with line.slot(1) as ticket:
            line.limited(ticket, 35)
        async with line.slot(1):
            pass

    virtually(main())
    assert [event.rpartition(" in ")[2] for event in events] == ["35 s", "25 s", "15 s"]


def test_f04_waits_without_an_answer_between_them_add_up_to_the_patience():
    async def main():
        line = throttle(patience=100)
        for _ in range(3):
            async with line.slot(1) as ticket:
                line.limited(ticket, 40)
        async with line.slot(1):
            pass

    with pytest.raises(StoppedError, match="pause of 2 min 0 s, longer than --judge_patience 100"):
        virtually(main())


def test_f04_an_answer_renews_the_patience():
    async def main():
        line = throttle(patience=100)
        for _ in range(10):
            async with line.slot(1) as ticket:
                line.limited(ticket, 90)
            async with line.slot(1) as ticket:
                line.answered(ticket, 1)
        return asyncio.get_running_loop().time()

    assert virtually(main()) >= 1900


def test_concurrency_grows_only_while_it_is_the_limit():
    async def main():
        line = throttle()
        first = line.window
        for _ in range(100):
            async with line.slot(1) as ticket:
                line.answered(ticket, 1)
        alone = line.window

        async def ask():
            async with line.slot(1) as ticket:
                await asyncio.sleep(1)
                line.answered(ticket, 1)

        await asyncio.gather(*(ask() for _ in range(300)))
        return first, alone, line.window

    first, alone, crowded = virtually(main())
    assert alone == first
    assert 4 * first <= crowded <= 512


def test_one_bout_of_429_cuts_once():
    async def main():
        line = throttle(rpm=600)
        async with line.slot(1) as one, line.slot(1) as two, line.slot(1) as three:
            before = line.window, line.pace
            for ticket in (one, two, three):
                line.limited(ticket, 1)
            return before, (line.window, line.pace)

    before, after = virtually(main())
    assert after == (before[0] // 2, before[1] * 0.8)


def test_a_set_concurrency_stays_and_is_kept():
    async def main():
        line, most = throttle(concurrency=3), 0

        async def ask():
            nonlocal most
            async with line.slot(1) as ticket:
                most = max(most, line.in_flight)
                await asyncio.sleep(1)
                line.limited(ticket, 0.1)

        await asyncio.gather(*(ask() for _ in range(12)))
        return most, line.window

    assert virtually(main()) == (3, 3)


def test_a_server_with_a_lower_limit_is_found_and_seldom_asked_too_much():
    """600 requests a minute allowed, 240 served in any minute, and no header says so."""

    async def main():
        line, loop = throttle(rpm=600), asyncio.get_running_loop()
        admitted, refusals = [], []

        async def ask():
            while True:
                async with line.slot(1) as ticket:
                    await asyncio.sleep(0.05)
                    recent = [at for at in admitted if at > loop.time() - 60]
                    if len(recent) < 240:
                        admitted.append(loop.time())
                        line.answered(ticket, 1)
                        return
                    refusals.append(loop.time())
                    line.limited(ticket, recent[0] + 60 - loop.time())

        await asyncio.gather(*(ask() for _ in range(5000)))
        warm = admitted[0] + 300
        return [at > warm for at in admitted].count(True), [at > warm for at in refusals].count(True)

    admitted, refused = virtually(main())
    assert admitted > 3000
    assert refused <= 0.02 * (admitted + refused)


# --- the end -------------------------------------------------------------------------------------------------


def test_stop_reaches_everyone_who_waits():
    async def main():
        line = throttle(rpm=1, concurrency=2)
        loop = asyncio.get_running_loop()

        async def ask():
            async with line.slot(1):
                await asyncio.sleep(1000)

        tasks = [asyncio.create_task(ask()) for _ in range(10)]
        pausing = asyncio.create_task(line.pause(500))
        await asyncio.sleep(5)
        stopped_at = loop.time()
        line.stop(StoppedError("enough"))
        line.stop(StoppedError("a later one"))
        done, _ = await asyncio.wait([*tasks[1:], pausing])
        assert loop.time() - stopped_at <= 2
        tasks[0].cancel()
        return {(type(task.exception()), str(task.exception())) for task in done}

    assert virtually(main()) == {(StoppedError, "enough")}


def test_stop_opens_a_shut_gate_for_the_error_only():
    async def main():
        line = throttle(patience=1e6)
        async with line.slot(1) as ticket:
            line.limited(ticket, 10_000)

        async def ask():
            async with line.slot(1):
                pytest.fail("nothing may pass")

        task = asyncio.create_task(ask())
        await asyncio.sleep(1)
        line.stop(StoppedError("enough"))
        with pytest.raises(StoppedError, match="enough"):
            await task
        return asyncio.get_running_loop().time()

    assert virtually(main()) < 1010


def test_a_cancelled_waiter_leaves_the_line_whole():
    async def main():
        line = throttle(concurrency=1)

        async def ask():
            async with line.slot(1):
                await asyncio.sleep(1)
                return True

        tasks = [asyncio.create_task(ask()) for _ in range(5)]
        await asyncio.sleep(0.5)
        tasks[0].cancel()
        tasks[1].cancel()
        tasks[3].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return [each is True for each in results], line.in_flight

    assert virtually(main()) == ([False, False, True, False, True], 0)
