"""What the remote judge holds: rates, pauses, throughput, the event loop's lag, memory.

The real client over loopback HTTP against `tests/support/misbehaving_server.py`, which runs as a
process of its own and notes when each request arrives. Each figure is stored when it is known.

    python -m benchmarks.judge                                            # everything, about 3 minutes
    python -m benchmarks.judge --only rates,pause                         # some of it
    python -m benchmarks.judge --memory                                   # instead: memory over 100,000 verdicts
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psutil

from benchmarks.common import machine, parser, record, served, serving, table
from traitmill.engine.judging import EndpointJudge, JudgeProfile
from traitmill.engine.records import Response, Sample, Verdict
from traitmill.engine.settings import JudgeLimits, JudgeSettings
from traitmill.engine.traits import Trait

TRAIT = Trait(
    "calm",
    (("Be calm.", "Be wild."),),
    ("How are you?",),
    "Rate from 0 to 100 how calm the answer is.\n\nQuestion: {question}\nAnswer: {answer}\n\nOnly "
    "the number.",
)
PROFILE = JudgeProfile(model="m", top_logprobs=0)
UNLIMITED = 1e7


@asynccontextmanager
async def judging(url: str, rpm: float) -> AsyncIterator[EndpointJudge]:
    limits = JudgeLimits(base_url=url, rpm=rpm, patience=600)
    judge = EndpointJudge(JudgeSettings(model="m"), limits, profile=PROFILE)
    await judge.open()
    try:
        yield judge
    finally:
        await judge.close()


def response(index: int) -> Response:
    """A response of 150 tokens' length."""
    sample = Sample(
        "calm", f"{index:032x}", "pos", 0, 0, index, "Be calm.", "How are you?", "", (1,), 0
    )
    return Response(
        sample, "ok", f"Answer {index}: " + "I am well and at ease, thank you. " * 18, (2,), "stop"
    )


async def keep_busy(judge: EndpointJudge, seconds: float, tasks: int = 64) -> None:
    """Always as many responses waiting as the line could want, until the time is over."""
    end = time.monotonic() + seconds

    async def work(first: int) -> None:
        index = first
        while time.monotonic() < end:
            check(await judge.judge(TRAIT, response(index)))
            index += tasks

    workers = [asyncio.create_task(work(first)) for first in range(tasks)]
    _, late = await asyncio.wait(workers, timeout=seconds + 1)
    for worker in late:  # they wait for a slot after the end
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    for worker in workers:
        if not worker.cancelled():
            worker.result()


async def judge_all(judge: EndpointJudge, indices: Iterator[int], tasks: int = 64) -> None:
    """Judge every index, with so many in hand."""

    async def work() -> None:
        for index in indices:
            check(await judge.judge(TRAIT, response(index)))

    await asyncio.gather(*(work() for _ in range(tasks)))


def check(verdict: Verdict) -> None:
    assert verdict.score == 80.0, verdict


def busiest(times: Sequence[float], window: float) -> int:
    """Most arrivals in any half-open window of that length."""
    inside: deque[float] = deque()
    most = 0
    for moment in sorted(times):
        inside.append(moment)
        while inside[0] <= moment - window:
            inside.popleft()
        most = max(most, len(inside))
    return most


Show = Callable[[str, str, str], None]
"""Takes a figure's name, its value and its goal."""


# --- the figures ---


async def rates(options: argparse.Namespace, show: Show) -> None:
    """60, 600 and 6,000 requests a minute against a counting server, beside each other."""

    async def hold(rpm: float) -> tuple[float, list[float]]:
        with serving(latency=0.02) as server:
            async with judging(server, rpm) as judge:
                await keep_busy(judge, options.seconds)
            return rpm, [at for at, _ in await asyncio.to_thread(served, server)]

    windows = [options.seconds / 2, options.seconds / 6]
    for rpm, times in await asyncio.gather(*(hold(rpm) for rpm in (60, 600, 6000))):
        share = (len(times) - 1) / (times[-1] - times[0]) * 60 / rpm
        most = ", ".join(f"{busiest(times, w)} of {rpm * w / 60:.0f} in {w:g} s" for w in windows)
        show(
            f"{rpm:,} requests/min, {options.seconds:g} s: share held; most in any window",
            f"{share:.1%}; {most}",
            "90 to 100 %; never more",
        )


async def pause(options: argparse.Namespace, show: Show) -> None:  # noqa: ARG001 - all figures are called alike
    """One Retry-After of 3 s in the middle of 100 requests a second."""
    with serving(pause_at=300, retry_after="3") as server:
        async with judging(server, 6000) as judge:
            await judge_all(judge, iter(range(600)))
        log = await asyncio.to_thread(served, server)
    limited = next(at for at, status in log if status == 429)
    # what left before the 429 came back; loopback takes far less than 50 ms
    flying = sum(limited < at < limited + 0.05 for at, _ in log)
    early = sum(limited + 0.05 <= at < limited + 3 for at, _ in log)
    show(
        "Retry-After 3 s at 6,000/min: sent before it ended",
        f"{early} ({flying} in flight as the 429 came)",
        "0",
    )


async def self_enforcing(options: argparse.Namespace, show: Show) -> None:
    """A server that enforces its own limit, over any 6 s; warm-up is the first third."""

    async def meet(name: str, rpm: float, tell: bool) -> tuple[str, list[tuple[float, int]]]:
        extra = {"tell_limits": True} if tell else {}
        with serving(rpm=600, window=6, latency=0.05, **extra) as server:
            async with judging(server, rpm) as judge:
                await keep_busy(judge, options.seconds)
            return name, await asyncio.to_thread(served, server)

    cases = (
        ("allowed the same", 600.0, False),
        ("tells it", 1200.0, True),
        ("does not tell it", 1200.0, False),
    )
    for name, log in await asyncio.gather(*(meet(*case) for case in cases)):
        warm = log[0][0] + options.seconds / 3
        after = [(at, status) for at, status in log if at > warm]
        refused = sum(status == 429 for _, status in after)
        used = (len(after) - refused) / (after[-1][0] - after[0][0]) * 60 / 600
        value = f"{refused / len(after):.2%}; {used:.0%}"
        show(f"server enforces 600/min, {name}: 429s; share used", value, "2 % at most")


async def throughput(options: argparse.Namespace, show: Show) -> None:  # noqa: ARG001 - all figures are called alike
    """A server that answers at once, no limits."""
    figures = []
    with serving() as server:
        async with judging(server, UNLIMITED) as judge:
            await judge_all(judge, iter(range(500)))
            for _ in range(5):
                started = time.monotonic()
                await judge_all(judge, iter(range(1000)))
                figures.append(1000 / (time.monotonic() - started))
    value = f"{statistics.median(figures):.0f} ({min(figures):.0f} to {max(figures):.0f})"
    show("zero latency, no limits: verdicts/s, 5 x 1,000", value, "300 or more")


async def lag(options: argparse.Namespace, show: Show) -> None:
    """A fake engine delivers 200 responses a second; how late does the loop wake a 5 ms timer?

    Turns of 5 s alternate with turns of an idle loop, which shows what the machine's other work
    adds.
    """

    async def measure(late: list[float]) -> None:
        while True:
            due = time.monotonic() + 0.005
            await asyncio.sleep(0.005)
            late.append(max(0.0, time.monotonic() - due))

    async def deliver(judge: EndpointJudge, count: int) -> None:
        started = time.monotonic()
        tasks: set[asyncio.Task[Verdict]] = set()
        for index in range(count):
            await asyncio.sleep(started + index / 200 - time.monotonic())
            task = asyncio.create_task(judge.judge(TRAIT, response(index)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    idle: list[float] = []
    busy: list[float] = []
    with serving(latency=0.3) as server:
        async with judging(server, UNLIMITED) as judge:
            await deliver(judge, 400)  # warm-up: connections are opened, concurrency has grown
            for _ in range(max(1, int(options.seconds / 15))):
                for late, work in ((idle, asyncio.sleep(5)), (busy, deliver(judge, 1000))):
                    monitor = asyncio.create_task(measure(late))
                    await work
                    monitor.cancel()
    cases = (
        ("200 responses/s, 0.3 s latency", busy, "p99 under 20 ms"),
        ("an idle loop in between", idle, ""),
    )
    for name, late, goal in cases:
        p50, p99 = (statistics.quantiles(late, n=100)[index] * 1000 for index in (49, 98))
        show(
            f"{name}: loop lag p50 / p99 / max",
            f"{p50:.1f} / {p99:.1f} / {max(late) * 1000:.0f} ms",
            goal,
        )


async def memory(options: argparse.Namespace, show: Show) -> None:
    """Resident memory over many verdicts."""
    process, sizes, step = psutil.Process(), [], options.verdicts // 10
    with serving() as server:
        async with judging(server, UNLIMITED) as judge:
            await judge_all(judge, iter(range(min(2000, step))))
            for block in range(10):
                await judge_all(judge, iter(range(block * step, (block + 1) * step)))
                gc.collect()
                sizes.append(process.memory_info().rss / 2**20)
    figure = f"{sizes[0]:.0f} MiB, {sizes[-1]:.0f} MiB ({sizes[-1] - sizes[0]:+.1f})"
    show(f"memory after {step:,} and after {10 * step:,} verdicts", figure, "flat")


FIGURES: dict[str, Callable[[argparse.Namespace, Show], Awaitable[None]]] = {
    "rates": rates,
    "pause": pause,
    "self_enforcing": self_enforcing,
    "throughput": throughput,
    "lag": lag,
    "memory": memory,
}


def markdown(result: Mapping[str, Any]) -> str:
    """What was shown."""
    return table(["", "measured", "goal"], result["figures"])


def main() -> None:
    options = parser("judge", __doc__)
    options.add_argument(
        "--only", default=",".join(FIGURES), help="comma list of: " + ", ".join(FIGURES)
    )
    options.add_argument(
        "--seconds", type=float, default=30, help="length of the runs that take time"
    )
    options.add_argument(
        "--verdicts", type=int, default=None, help="for the memory figure [20000; --memory: 100000]"
    )
    options.add_argument(
        "--memory", action="store_true", help="the memory figure alone, over many verdicts"
    )
    chosen = options.parse_args()
    chosen.verdicts = chosen.verdicts or (100_000 if chosen.memory else 20_000)
    facts = machine()
    figures: list[tuple[str, str, str]] = []

    def show(name: str, value: str, goal: str) -> None:
        print(f"{name:<70} {value}", flush=True)
        figures.append((name, value, goal))
        record(
            chosen.out, "judge", facts, {"figures": figures}, "memory" if chosen.memory else None
        )

    for name in ["memory"] if chosen.memory else chosen.only.split(","):
        asyncio.run(FIGURES[name](chosen, show))  # type: ignore[arg-type]  # each is a coroutine


if __name__ == "__main__":
    main()
