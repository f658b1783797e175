"""The line to an endpoint: rates, order, the gate, and what a 429 changes."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time

import pytest

from tests.support.clock import virtually
from traitmill.engine.errors import StoppedError
from traitmill.engine.judging.pace import parse_duration, show_seconds, wait_asked
from traitmill.engine.judging.rate_limit import Throttle
from traitmill.engine.settings import JudgeLimits


def throttle(events=None, **limits):
    return Throttle(
        JudgeLimits(**{"rpm": 1e9, **limits}), (lambda _: None) if events is None else events.append
    )


def busiest(times, window):
    """The most events in any half-open window of that length."""
    inside, most = [], 0
    for moment in times:
        heapq.heappush(inside, moment)
        while inside[0] <= moment - window:
            heapq.heappop(inside)
        most = max(most, len(inside))
    return most


# --- headers ---


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
        ("9" * 400, 366 * 86400),
        ("9" * 400 + "h", 366 * 86400),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "7", "retry-after-ms": "250"}, 7),
        ({"retry-after": "7", "retry-after-ms": "7250"}, 7.25),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "30, 30"}, 30),  # as headers given twice are joined
        ({"retry-after": "30 seconds"}, 30),
        ({"retry-after": "30 s"}, 30),
        ({"retry-after": "120ms"}, 0.12),
        ({"retry-after": "1m30s"}, 90),
        (
            {
                "retry-after": "Wed, 21 Oct 2026 07:28:30 GMT",
                "date": "Wed, 21 Oct 2026 07:28:00 GMT",
            },
            30,
        ),
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


def test_hostile_headers_are_no_numbers():
    assert wait_asked({"retry-after": "Wed, 21 Oct 0001 07:28:30 +9999"}) in {None, 0}
    line = throttle(rpm=600)
    line.learn(
        {"x-ratelimit-limit-requests": "1" * 5000, "x-ratelimit-limit-tokens": "\u0663" * 5000}
    )
    assert (line.pace, line._tokens) == (600, None)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (59, "59 s"), (95, "1 min 35 s"), (7260, "2 h 1 min")]
)
def test_show_seconds(seconds, shown):
    assert show_seconds(seconds) == shown


# --- rates ---


@pytest.mark.parametrize("rpm", [0.5, 1, 7, 60, 600, 6000])
def test_the_rate_is_held_and_never_exceeded_in_any_minute(rpm):
    async def main():
        line = throttle(rpm=rpm)
        sent = []
        for _ in range(int(3 * rpm) + 2):
            async with line.slot(lambda: 1):
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
            async with line.slot(lambda: 1):
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
            async with line.slot(lambda: 1):
                sent.append(asyncio.get_running_loop().time())
        return sent

    assert busiest(virtually(main()), 1.0) <= 11


@pytest.mark.parametrize("rpm", [1, 6, 20, 33, 60, 600])
@pytest.mark.parametrize("pause", [20, 61, 130])
def test_the_rate_is_not_exceeded_after_a_pause(rpm, pause):
    """The head of the line waits at the gate; what it had taken of the allowance must not fill up
    meanwhile."""

    async def main():
        line, sent, loop = throttle(rpm=rpm, patience=1e9), [], asyncio.get_running_loop()

        async def ask(index):
            async with line.slot(lambda: 1) as ticket:
                sent.append(loop.time())
                if index == 2:
                    await asyncio.sleep(0.01)
                    line.limited(ticket, pause)

        await asyncio.gather(*(ask(index) for index in range(3 * rpm + 5)))
        return sent

    sent = virtually(main())
    assert busiest(sent, 60) <= rpm


def test_a_gate_shut_while_the_head_of_the_line_waits_its_turn_holds_it():
    async def main():
        line, sent, loop = throttle(rpm=6), [], asyncio.get_running_loop()

        async def ask():
            async with line.slot(lambda: 1):
                sent.append(loop.time())

        async with line.slot(lambda: 1) as ticket:
            pass
        waiting = [asyncio.create_task(ask()) for _ in range(3)]
        await asyncio.sleep(5)  # the first of them is waiting for its turn, in another 5 s
        line.limited(ticket, 60)
        opens = loop.time() + 60
        await asyncio.gather(*waiting)
        return sent, opens

    sent, opens = virtually(main())
    assert sent[0] >= opens
    assert min(later - earlier for earlier, later in itertools.pairwise(sent)) >= 10


def test_a_limit_learnt_from_headers_allows_no_burst():
    async def main():
        line, sent = throttle(rpm=60_000), []
        for _ in range(30):
            async with line.slot(lambda: 1):
                sent.append(asyncio.get_running_loop().time())
            if len(sent) == 10:
                line.learn({"x-ratelimit-limit-requests": "60"})
        return sent[10:]

    sent = virtually(main())
    assert min(later - earlier for earlier, later in itertools.pairwise(sent)) >= 1


def test_tokens_a_minute_are_held_with_their_true_sizes():
    """Each request is expected to use 100 tokens and uses 1 to 999: what counts is what was used."""

    async def main():
        line = throttle(tpm=60_000)
        loop, used = asyncio.get_running_loop(), []
        for index in range(600):
            async with line.slot(lambda: 100) as ticket:
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
        async with line.slot(lambda: 900):
            return asyncio.get_running_loop().time()

    assert 1040 < virtually(main()) < 1065  # most of a minute's tokens take most of a minute


def test_large_requests_are_not_overtaken():
    async def main():
        line, order = throttle(tpm=6000), []

        async def ask(name, tokens):
            async with line.slot(lambda: tokens):
                order.append(name)

        await asyncio.gather(
            ask("first", 300), ask("large", 3000), *(ask(f"small {i}", 1) for i in range(5))
        )
        return order

    assert virtually(main()) == ["first", "large", *(f"small {i}" for i in range(5))]


def test_a_token_limit_learnt_late_does_not_charge_for_the_time_before():
    async def main():
        line = throttle()
        for _ in range(100):
            async with line.slot(lambda: 10) as ticket:
                line.answered(ticket, 5000)
        line.learn({"x-ratelimit-limit-tokens": "60000"})
        async with line.slot(lambda: 10):
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


# --- 429 ---


def test_f03_the_gate_holds_back_everyone_and_then_keeps_the_pace():
    async def main():
        line, sent = throttle(rpm=600), []
        loop = asyncio.get_running_loop()

        async def ask():
            async with line.slot(lambda: 1):
                sent.append(loop.time())

        async with line.slot(lambda: 1) as ticket:
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
        async with line.slot(lambda: 1) as ticket:
            line.limited(ticket, 35)
        async with line.slot(lambda: 1):
            pass

    virtually(main())
    assert [event.rpartition(" in ")[2] for event in events] == ["35 s", "25 s", "15 s"]


def test_f04_waits_without_an_answer_between_them_add_up_to_the_patience():
    async def main():
        line = throttle(patience=100)
        for _ in range(3):
            async with line.slot(lambda: 1) as ticket:
                line.limited(ticket, 40)
        async with line.slot(lambda: 1):
            pass

    with pytest.raises(StoppedError, match="pause of 2 min 0 s, longer than `judge_patience` 100"):
        virtually(main())


def test_f04_an_answer_renews_the_patience():
    async def main():
        line = throttle(patience=100)
        for _ in range(10):
            async with line.slot(lambda: 1) as ticket:
                line.limited(ticket, 90)
            async with line.slot(lambda: 1) as ticket:
                line.answered(ticket, 1)
        return asyncio.get_running_loop().time()

    assert virtually(main()) >= 1900


def test_concurrency_grows_only_while_it_is_the_limit():
    async def main():
        line = throttle()
        first = line.window
        for _ in range(100):
            async with line.slot(lambda: 1) as ticket:
                line.answered(ticket, 1)
        alone = line.window

        async def ask():
            async with line.slot(lambda: 1) as ticket:
                await asyncio.sleep(1)
                line.answered(ticket, 1)

        await asyncio.gather(*(ask() for _ in range(300)))
        return first, alone, line.window

    first, alone, crowded = virtually(main())
    assert alone == first
    assert 4 * first <= crowded <= 512


def after_refusals(outcomes, per_second=10):
    """Window and pace before and after requests sent one after the other; `outcomes` says which
    were refused."""

    async def main():
        line = throttle(rpm=600, patience=1e9)
        before = line.window, line.pace
        for refused in outcomes:
            async with line.slot(lambda: 1) as ticket:
                await asyncio.sleep(1 / per_second)
                if refused:
                    line.limited(ticket, 0)
                else:
                    line.answered(ticket, 1)
        return before, (line.window, line.pace)

    return virtually(main())


def grown(latency, deadline=60.0, late=False):
    """The window after 600 requests that are answered after `latency` seconds."""

    async def main():
        line = Throttle(JudgeLimits(rpm=1e9), lambda _: None, deadline)
        if late:
            line.late()

        async def ask():
            async with line.slot(lambda: 1) as ticket:
                await asyncio.sleep(latency)
                line.answered(ticket, 1)

        await asyncio.gather(*(ask() for _ in range(600)))
        return line.window

    return virtually(main())


def test_concurrency_does_not_grow_where_answers_come_late():
    assert grown(10) > 100
    assert grown(31) == 16
    assert grown(0.01, late=True) == 16
    assert 16 < grown(10, late=True) < grown(10)


def test_a_pace_is_cut_to_what_was_answered():
    """Half of 600 requests a minute are answered, and 0.9 of that is the pace from then on."""
    (window, _), (cut_window, cut_pace) = after_refusals([False, True] * 10)
    assert cut_window == window // 2
    assert cut_pace == pytest.approx(0.9 * 300, rel=0.1)


def test_one_bout_of_429_cuts_once():
    async def main():
        line = throttle(rpm=600)
        async with (
            line.slot(lambda: 1) as one,
            line.slot(lambda: 1) as two,
            line.slot(lambda: 1) as three,
        ):
            for _ in range(40):
                line.answered(one, 1)
            line.limited(one, 1)
            once = line.window, line.pace
            for ticket in (two, three):
                line.limited(ticket, 1)
            return once, (line.window, line.pace)

    once, after = virtually(main())
    assert after == once


def test_few_refusals_are_met_by_their_pauses_alone():
    before, after = after_refusals(([False] * 149 + [True]) * 3)
    assert after == before


@pytest.mark.parametrize("latency", [0.05, 1.0])
def test_refusals_that_come_whatever_the_pace_do_not_bring_it_to_nothing(latency):
    """One request in five is refused, with a pause of half a second: 200 answers in minutes, 2,000
    in an hour."""

    async def main(answers):
        line, rng, loop = (
            throttle(rpm=500, patience=1e9),
            random.Random(1),
            asyncio.get_running_loop(),
        )

        async def ask():
            while True:
                async with line.slot(lambda: 1) as ticket:
                    await asyncio.sleep(latency)
                    if rng.random() >= 0.2:
                        line.answered(ticket, 1)
                        return
                    line.limited(ticket, 0.5)

        began = loop.time()
        await asyncio.gather(*(ask() for _ in range(answers)))
        return loop.time() - began

    assert virtually(main(200)) < 300
    assert virtually(main(2000)) < 3600


def test_a_pace_that_was_cut_comes_back_within_minutes():
    async def main():
        line, loop = throttle(rpm=500, patience=1e9), asyncio.get_running_loop()
        for index in range(80):  # two of three are refused, at any pace
            async with line.slot(lambda: 1) as ticket:
                await asyncio.sleep(0.1)
                if index % 3:
                    line.limited(ticket, 0)
                else:
                    line.answered(ticket, 1)
        low, began = line.pace, loop.time()
        while line.pace < 500:
            async with line.slot(lambda: 1) as ticket:
                line.answered(ticket, 1)
        return low, loop.time() - began

    low, seconds = virtually(main())
    assert low < 250
    assert seconds < 600


def test_a_set_concurrency_stays_and_is_kept():
    async def main():
        line, most = throttle(concurrency=3), 0

        async def ask():
            nonlocal most
            async with line.slot(lambda: 1) as ticket:
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
                async with line.slot(lambda: 1) as ticket:
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
        return [at > warm for at in admitted].count(True), [at > warm for at in refusals].count(
            True
        )

    admitted, refused = virtually(main())
    assert admitted > 3000
    assert refused <= 0.02 * (admitted + refused)


@pytest.mark.parametrize("latency", [0.05, 0.5])
@pytest.mark.parametrize("rpm", [600, 1200, 6000])
def test_f03_a_server_that_enforces_its_limit_is_used_and_seldom_asked_too_much(rpm, latency):
    """600 in any minute, counted over 6 s and not told, against up to ten times as many allowed;
    100 s of warm-up."""

    async def main():
        line, loop, admitted, refused = (
            throttle(rpm=rpm, patience=1e9),
            asyncio.get_running_loop(),
            [],
            [],
        )
        began = loop.time()

        async def work():
            while loop.time() < began + 300:
                async with line.slot(lambda: 1) as ticket:
                    now = loop.time()
                    recent = [at for at in admitted[-60:] if at > now - 6]
                    if len(recent) < 60:
                        admitted.append(now)
                        await asyncio.sleep(latency)
                        line.answered(ticket, 1)
                    else:
                        refused.append(now)
                        line.limited(ticket, recent[0] + 6 - now)

        await asyncio.gather(*(work() for _ in range(64)))
        return [sum(at > began + 100 for at in times) for times in (admitted, refused)]

    admitted, refused = virtually(main())
    assert refused <= 0.02 * (admitted + refused)
    assert 0.8 * 600 <= admitted / 200 * 60 <= 1.05 * 600


# --- the end ---


def test_stop_reaches_everyone_who_waits():
    async def main():
        line = throttle(rpm=1, concurrency=2)
        loop = asyncio.get_running_loop()

        async def ask():
            async with line.slot(lambda: 1):
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
        async with line.slot(lambda: 1) as ticket:
            line.limited(ticket, 10_000)

        async def ask():
            async with line.slot(lambda: 1):
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
            async with line.slot(lambda: 1):
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
