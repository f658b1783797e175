"""What capture on a CPU loses to other programs: alone, and beside one busy program per core.

    python -m benchmarks.waiting

Two capture processes stay loaded, one whose threads wait as the product's do and one with OpenMP's
own patience. They take turns over the same rows, alone and beside the busy programs, in every
round; ratios are taken within a round. At an even share, capture beside them takes twice as long.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from benchmarks.common import (
    Say,
    machine,
    paragraphs,
    parser,
    quietly,
    record,
    shown,
    spread,
    table,
    turned,
)
from benchmarks.stand import whole, workload
from tests.support.rows import response_row
from traitmill.engine.capture import CaptureProcess
from traitmill.engine.models import EMBEDDED, ModelRef, find_model
from traitmill.engine.settings import CaptureSettings, Execution

NAME = "waiting"
OURS, LIBRARYS = "traitmill", "OpenMP's own"
GOAL = 2.5
_OWN_SPINS = "300000"
"""GNU's default, with no more threads than cores."""


@contextmanager
def busy_cores() -> Iterator[None]:
    """One program per core that computes without end."""
    command = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(command) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


async def load(ref: ModelRef, environment: Mapping[str, str]) -> CaptureProcess:
    """Return a capture process that was started under an environment."""
    worker = CaptureProcess(
        ref.source, ref.hub_revision, CaptureSettings(), Execution(self_check="off")
    )
    with patch.dict(os.environ, environment):
        await worker.start()
    return worker


async def timed(workers: Mapping[str, CaptureProcess], rows: Sequence[Any]) -> dict[str, float]:
    """Return the seconds each worker takes for all rows, one after the other."""
    seconds = {}
    for name, worker in workers.items():
        start = time.perf_counter()
        await worker.capture(rows)
        seconds[name] = time.perf_counter() - start
    return seconds


def figures(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Return a row for each way to wait: seconds alone and beside, and how many times as long."""
    return [
        {
            "who": name,
            "alone_s": spread(each["alone"][name] for each in rounds),
            "beside_s": spread(each["beside"][name] for each in rounds),
            "ratio": spread(each["beside"][name] / each["alone"][name] for each in rounds),
        }
        for name in (OURS, LIBRARYS)
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """The table, and whether the goal is met."""
    rows = [
        [row["who"], shown(row["alone_s"]), shown(row["beside_s"]), shown(row["ratio"], 2, "x")]
        for row in result["rows"]
    ]
    cores = result["machine"]["cores"]
    note = (
        f"{result['tokens']:,} tokens of {result['model']}; {cores} cores, as many busy programs; "
        f"{result['rounds']} rounds, medians (least to most). Goal: at most {GOAL} times as long "
        "beside them; an even share of the cores is 2 times."
    )
    header = "threads wait as | alone, s | beside busy programs, s | times as long"
    return paragraphs(note, table(header, rows))


async def measure(options: argparse.Namespace, say: Say) -> None:
    facts, ref = machine(), find_model(EMBEDDED)
    samples = workload(ref, whole(options.rows), 64)
    response = range(100, 164)
    made = [response_row(s.id, s.prompt_token_ids, response, len(response)) for s in samples]
    rounds: list[dict[str, dict[str, float]]] = []
    workers: dict[str, CaptureProcess] = {}
    try:
        workers[OURS] = await load(ref, {})
        workers[LIBRARYS] = await load(ref, {"GOMP_SPINCOUNT": _OWN_SPINS})
        await timed(workers, made[:8])
        for number in range(options.rounds):
            order = {name: workers[name] for name in turned(workers, number)}
            alone = await timed(order, made)
            with busy_cores():
                rounds.append({"alone": alone, "beside": await timed(order, made)})
            result = {
                "model": ref.name,
                "tokens": sum(len(r.sample.prompt_token_ids) + r.n_pooled for r in made),
                "rounds": len(rounds),
                "rows": figures(rounds),
            }
            record(options.out, NAME, facts, result)
            say(f"round {len(rounds)}: {rounds[-1]}")
        say(markdown({"machine": facts, **result}))
    finally:
        for worker in workers.values():
            await worker.close()


def main() -> None:
    options = parser(NAME, __doc__)
    options.add_argument("--rows", type=int, default=16)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    with quietly(NAME) as say:
        asyncio.run(measure(chosen, say))


if __name__ == "__main__":
    main()
