"""How many replicas does one driver keep busy? `python -m benchmarks.cluster`.

The real pipeline, store and export, a judge that answers at once, and real actors on a real Ray,
whose engines take the time of an engine and compute nothing: `--slots` sequences at once, each
`--seconds` long, so that many replicas fit on few cores. Then the same with one row in fifty ten
times longer, at the same mean; and last, engines so fast that the driver is the limit, with a
profile of what it does. Each run is a process of its own.
"""

from __future__ import annotations

import asyncio
import cProfile
import heapq
import json
import os
import pstats
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.common import ROOT, answer, in_process, machine, parser, record, table
from traitmill.engine.replicas import Cluster, Hosted, Needs, ReplicaPool, Seat

REPLICAS = (1, 2, 4, 8, 16, 32, 64)
LIMIT_REPLICAS, LIMIT_SECONDS = 4, 0.02
LONGER, OF = 10, 50
"""A straggler takes so many times longer; one row in so many is one."""
TRAIT = "trait"


@dataclass(frozen=True)
class Case:
    """One run."""

    replicas: int
    slots: int
    seconds: float
    samples: int
    stragglers: bool = False
    profiled: bool = False


@dataclass(frozen=True)
class Timed:
    """Opens an engine of `slots` sequences that takes time and computes nothing."""

    case: Case
    root: str

    @asynccontextmanager
    async def __call__(self, _seat: Seat) -> AsyncIterator[Hosted]:
        yield Hosted(TimedEngine(self.case))


class TimedEngine:
    """Answers after the time of a response; what does not fit waits, as in an engine."""

    def __init__(self, case: Case) -> None:
        self.max_in_flight = 2 * case.slots
        self._slots = asyncio.Semaphore(case.slots)
        self._case = case

    async def generate(self, sample: Any) -> Any:
        from traitmill.engine.records import Response

        async with self._slots:
            await asyncio.sleep(seconds_of(self._case, sample.id))
        ids = tuple(range(150))
        return Response(sample, "ok", "word " * 100, ids, "length")


def seconds_of(case: Case, sample_id: str) -> float:
    """The time of a response: half to one and a half the mean, from its id."""
    share = int(sample_id[:8], 16) / 2**32 + 0.5
    if not case.stragglers:
        return case.seconds * share
    mean = (OF - 1 + LONGER) / OF  # so that both kinds of run have the same work to do
    longer = LONGER if int(sample_id[8:16], 16) % OF == 0 else 1
    return case.seconds * share * longer / mean


def one_queue(case: Case, ids: Sequence[str]) -> float:
    """Return the seconds that the rows take, in order, on whichever slot is free first."""
    free = [0.0] * (case.replicas * case.slots)
    for sample_id in ids:
        heapq.heapreplace(free, free[0] + seconds_of(case, sample_id))
    return max(free)


async def measure(case: Case, root: Path) -> dict[str, Any]:
    """Run a case in this process."""
    import psutil
    import pyarrow.parquet as pq

    from tests.support import fakes, lab
    from traitmill.engine.run import Backends, generate
    from traitmill.engine.run.watchdog import tie_children

    os.environ["PYTHONPATH"] = str(ROOT)
    tie_children()
    fakes.make_trait(root, TRAIT, fakes.definition(5, 20))
    lab.make_model(root)
    lags: list[float] = []
    times: dict[str, float] = {}
    cluster = Cluster()
    await cluster.connect(1, case.replicas)
    pool = ReplicaPool(
        cluster,
        Timed(case, str(root)),
        replicas=case.replicas,
        needs=Needs(cpus=0.01),
        all_needed=True,
        notice=print,
    )
    await pool.start()
    profile = cProfile.Profile()

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.02)
            lags.append(time.perf_counter() - before - 0.02)

    @asynccontextmanager
    async def backends(wanted: Any) -> AsyncIterator[Backends]:
        watching = asyncio.create_task(watch())
        times.update(wall=time.perf_counter(), cpu=time.process_time())
        if case.profiled:
            profile.enable()
        yield Backends(generator=pool, judge=fakes.FakeJudge(wanted.settings.judge))
        profile.disable()
        times.update(
            wall=time.perf_counter() - times["wall"], cpu=time.process_time() - times["cpu"]
        )
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching

    try:
        with patch("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers):
            result = await generate(
                root / "exp",
                TRAIT,
                model=str(root / "toy"),
                backends=backends,
                judge_model="fake-judge",
                judge_base_url="http://127.0.0.1:9/v1",
                n_examples=case.samples // 2,
                capture="none",
            )
    finally:
        await pool.close()
        await cluster.close()
    assert not result.errors, result.errors
    plan = pq.read_table(root / "exp" / TRAIT / "parquet/plan.parquet", columns=["ids"])
    ids, clock = plan["ids"].to_pylist(), result.clocks["generation"]
    assert {row["sample_id"] for row in lab.rows(root / "exp" / TRAIT, "responses")} == set(ids)
    lags.sort()
    return {
        "responses": len(ids),
        "responses_per_s": len(ids) / clock.seconds,
        "busy": one_queue(case, ids) / clock.seconds,
        "driver_cpu": times["cpu"] / times["wall"],
        "lag_ms": {"median": 1e3 * lags[len(lags) // 2], "p99": 1e3 * lags[len(lags) * 99 // 100]},
        "driver_mib": psutil.Process().memory_info().rss / 2**20,
        "profile": hottest(profile) if case.profiled else [],
    }


def hottest(profile: cProfile.Profile, most: int = 12) -> list[dict[str, Any]]:
    """The functions a profile spends most of its own time in."""
    stats: Any = pstats.Stats(profile)
    total = sum(own for _, _, own, _, _ in stats.stats.values())
    found = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:most]
    return [
        {"where": f"{Path(file).name}:{name}", "share": own / total, "calls": calls}
        for (file, _, name), (calls, _, own, _, _) in found
    ]


def in_a_process(case: Case) -> dict[str, Any]:
    """Measure a case in a process of its own, on a Ray of its own."""
    found = in_process("cluster", asdict(case))
    load = os.getloadavg()[0]
    print(f"{case}: {found} (load {load:.1f})", flush=True)
    return {**asdict(case), **found, "load": load}


def markdown(result: Mapping[str, Any]) -> str:
    """The table, the stragglers, the driver's limit and its profile."""
    lines = [
        f"{run['replicas']} | {run['responses_per_s']:,.0f} | {run['busy']:.1%} | "
        f"{run['driver_cpu']:.0%} | {run['lag_ms']['median']:.1f} / {run['lag_ms']['p99']:.0f} | "
        f"{run['driver_mib']:,.0f} | {run['load']:.0f}"
        for run in result["runs"]
    ]
    header = "replicas | responses/s | of one queue | driver's CPU | loop lag, ms (median / p99)"
    header += " | driver, MiB | machine's load"
    even, uneven = result["even"], result["stragglers"]
    limit, most = result["limit"], result["most"]
    profile = ", ".join(f"`{one['where']}` {one['share']:.0%}" for one in limit["profile"][:8])
    return (
        f"Engines of {even['slots']} sequences of {result['runs'][0]['seconds']:g} s each; a core "
        f"is 100 %. "
        f"One queue: the time those rows take, in order, on whichever slot is free first, against "
        f"that of the run.\n\n{table(header, lines)}\n\nOne row in {OF} {LONGER} times longer, the same "
        f"mean, {even['replicas']} replicas: {uneven['busy']:.1%} of one queue, even rows "
        f"{even['busy']:.1%}. With engines that answer in "
        f"{limit['seconds'] * 1e3:.0f} ms the driver carries {most['responses_per_s']:,.0f} responses/s, "
        f"store and judge included, at {most['driver_cpu']:.0%} of a core: "
        f"{1e3 * most['driver_cpu'] / most['responses_per_s']:.2f} ms of its CPU a response, the "
        f"machine's load being {most['load']:.0f}. Its own time, by a profile: {profile}."
    )


def main() -> None:
    options = parser("cluster", __doc__)
    options.add_argument("--replicas", type=json.loads, default=list(REPLICAS))
    options.add_argument("--slots", type=int, default=32)
    options.add_argument("--seconds", type=float, default=2.0)
    options.add_argument("--rows", type=int, default=30, help="responses of each slot")
    chosen = options.parse_args()
    if chosen.one:
        with tempfile.TemporaryDirectory() as folder:
            answer(chosen, asyncio.run(measure(Case(**chosen.one), Path(folder))))
        return
    facts, slots, rows = machine(), chosen.slots, chosen.rows
    runs = [in_a_process(Case(n, slots, chosen.seconds, n * slots * rows)) for n in chosen.replicas]
    few = chosen.replicas[len(chosen.replicas) // 2]
    cases = [
        Case(few, slots, chosen.seconds, 4 * few * slots * rows, each) for each in (False, True)
    ]
    even, stragglers = map(in_a_process, cases)
    fast = Case(LIMIT_REPLICAS, 64, LIMIT_SECONDS, 20_000)
    free = in_a_process(fast)
    limit = in_a_process(Case(**{**asdict(fast), "profiled": True}))
    found = {"runs": runs, "even": even, "stragglers": stragglers, "limit": limit, "most": free}
    record(chosen.out, "cluster", facts, found)
    print(markdown(found))


if __name__ == "__main__":
    main()
