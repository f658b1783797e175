"""What the remote judge holds: rates, pauses, throughput, the event loop's lag, memory.

The real client over loopback HTTP against `tests/misbehaving_server.py`, which runs as a process of its own and notes
when each request arrives. Prints one line per figure.

    python -m benchmarks.judge                      # everything, about 6 minutes
    python -m benchmarks.judge --only rates,pause   # some of it
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from engine.endpoint import EndpointJudge, JudgeProfile
from engine.records import Response, Sample, Verdict
from engine.settings import Judging, Limits
from engine.traits import Trait

SERVER = Path(__file__).resolve().parents[1] / "tests" / "misbehaving_server.py"
TRAIT = Trait(
    "calm",
    (("Be calm.", "Be wild."),),
    ("How are you?",),
    "Rate from 0 to 100 how calm the answer is.\n\nQuestion: {question}\nAnswer: {answer}\n\nOnly the number.",
)
PROFILE = JudgeProfile(model="m", top_logprobs=0)
UNLIMITED = 1e7


@dataclass
class Server:
    """The server process."""

    url: str

    def log(self) -> list[tuple[float, int]]:
        """(arrival, status) of every request so far; times as `time.monotonic`."""
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/log") as answer:
            return [(float(at), int(status)) for at, status in json.load(answer)]


@contextmanager
def serving(**options: object) -> Iterator[Server]:
    arguments = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, str(SERVER), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield Server(process.stdout.readline().strip())
        process.stdin.close()


@asynccontextmanager
async def judging(server: Server, rpm: float, concurrency: int = 0) -> AsyncIterator[EndpointJudge]:
    limits = Limits(base_url=server.url, rpm=rpm, concurrency=concurrency, patience=600)
    judge = EndpointJudge(Judging(model="m"), limits, profile=PROFILE)
    await judge.open()
    try:
        yield judge
    finally:
        await judge.close()


def response(index: int) -> Response:
    """A response of 150 tokens' length."""
    sample = Sample("calm", f"{index:032x}", "pos", 0, 0, index, "Be calm.", "How are you?", "", (1,), 0)
    return Response(sample, "ok", f"Answer {index}: " + "I am well and at ease, thank you. " * 18, (2,), "stop")


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


def show(name: str, value: str) -> None:
    print(f"{name:<58} {value}", flush=True)


# --- the figures ---------------------------------------------------------------------------------------------


async def rates(options: argparse.Namespace) -> None:
    """60, 600 and 6,000 requests a minute against a counting server, beside each other."""

    async def hold(rpm: float) -> tuple[float, list[float]]:
        with serving(latency=0.02) as server:
            async with judging(server, rpm) as judge:
                await keep_busy(judge, options.seconds)
            return rpm, [at for at, _ in await asyncio.to_thread(server.log)]

    for rpm, times in await asyncio.gather(*(hold(rpm) for rpm in (60, 600, 6000))):
        share = (len(times) - 1) / (times[-1] - times[0]) * 60 / rpm
        windows = [60.0, 10.0] if rpm > 60 else [60.0]
        most = ", ".join(f"{busiest(times, w)} of {rpm * w / 60:.0f} in {w:g} s" for w in windows)
        show(f"{rpm:,} requests/min: share held; most in any window", f"{share:.1%}; {most}")


async def pause(options: argparse.Namespace) -> None:  # noqa: ARG001 - all figures are called alike
    """One Retry-After of 3 s in the middle of 100 requests a second."""
    with serving(pause_at=300, retry_after="3") as server:
        async with judging(server, 6000) as judge:
            await judge_all(judge, iter(range(600)))
        log = await asyncio.to_thread(server.log)
    limited = next(at for at, status in log if status == 429)
    # what left before the 429 came back; loopback takes far less than 50 ms
    flying = sum(limited < at < limited + 0.05 for at, _ in log)
    early = sum(limited + 0.05 <= at < limited + 3 for at, _ in log)
    show("Retry-After 3 s at 6,000/min: sent before it ended", f"{early} (and {flying} in flight as the 429 came)")


async def self_enforcing(options: argparse.Namespace) -> None:
    """A server that enforces its own limit, over any 6 s; warm-up is the first third."""

    async def meet(name: str, rpm: float, tell: bool) -> tuple[str, list[tuple[float, int]]]:
        extra = {"tell_limits": True} if tell else {}
        with serving(rpm=600, window=6, latency=0.05, **extra) as server:
            async with judging(server, rpm) as judge:
                await keep_busy(judge, options.seconds)
            return name, await asyncio.to_thread(server.log)

    cases = (("allowed the same", 600.0, False), ("tells it", 1200.0, True), ("does not tell it", 1200.0, False))
    for name, log in await asyncio.gather(*(meet(*case) for case in cases)):
        warm = log[0][0] + options.seconds / 3
        after = [(at, status) for at, status in log if at > warm]
        refused = sum(status == 429 for _, status in after)
        used = (len(after) - refused) / (after[-1][0] - after[0][0]) * 60 / 600
        show(f"server enforces 600/min, {name}: 429s; share used", f"{refused / len(after):.2%}; {used:.0%}")


async def throughput(options: argparse.Namespace) -> None:  # noqa: ARG001 - all figures are called alike
    """A server that answers at once, no limits."""
    figures = []
    with serving() as server:
        async with judging(server, UNLIMITED) as judge:
            await judge_all(judge, iter(range(500)))
            for _ in range(5):
                started = time.monotonic()
                await judge_all(judge, iter(range(1000)))
                figures.append(1000 / (time.monotonic() - started))
    show("zero latency, no limits: verdicts/s (median of 5 x 1,000)", f"{statistics.median(figures):.0f}")


async def lag(options: argparse.Namespace) -> None:
    """A fake engine delivers 200 responses a second; how late does the loop wake a 5 ms timer?

    Turns of 5 s alternate with turns of an idle loop, which shows what the machine's other work adds.
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
            for _ in range(max(1, int(options.seconds / 10))):
                for late, work in ((idle, asyncio.sleep(5)), (busy, deliver(judge, 1000))):
                    monitor = asyncio.create_task(measure(late))
                    await work
                    monitor.cancel()
    for name, late in (("200 responses/s, 0.3 s latency", busy), ("an idle loop in between", idle)):
        p50, p99 = (statistics.quantiles(late, n=100)[index] * 1000 for index in (49, 98))
        show(f"{name}: loop lag p50 / p99 / max", f"{p50:.1f} / {p99:.1f} / {max(late) * 1000:.0f} ms")


async def memory(options: argparse.Namespace) -> None:
    """Resident memory over many verdicts."""
    process, sizes, step = psutil.Process(), [], options.verdicts // 10
    with serving() as server:
        async with judging(server, UNLIMITED) as judge:
            await judge_all(judge, iter(range(min(2000, step))))
            for block in range(10):
                await judge_all(judge, iter(range(block * step, (block + 1) * step)))
                gc.collect()
                sizes.append(process.memory_info().rss / 2**20)
    growth = sizes[-1] - sizes[0]
    figure = f"{sizes[0]:.0f} MiB after {step:,}, {sizes[-1]:.0f} MiB after {10 * step:,} ({growth:+.1f})"
    show("memory of the process", figure)


FIGURES: dict[str, Callable[[argparse.Namespace], Awaitable[None]]] = {
    "rates": rates,
    "pause": pause,
    "self_enforcing": self_enforcing,
    "throughput": throughput,
    "lag": lag,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(FIGURES), help="comma list of: " + ", ".join(FIGURES))
    parser.add_argument("--seconds", type=float, default=90, help="length of the runs that take time")
    parser.add_argument("--verdicts", type=int, default=100_000, help="for the memory figure")
    options = parser.parse_args()
    for name in options.only.split(","):
        asyncio.run(FIGURES[name](options))  # type: ignore[arg-type]  # each is a coroutine


if __name__ == "__main__":
    main()
