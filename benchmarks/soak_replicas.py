"""Kill actors, nodes and drivers of runs on Ray at seeded moments, and count what is lost.

`python -m benchmarks.soak_replicas`

Deterministic models in real actors. Actors and drivers run on a Ray of their own run, nodes are the
second of two raylets of a cluster on this machine, replaced after each kill. Against an undisturbed
run in one process: rows lost, rows twice, final files that differ, judge calls repeated (a driver's
kill may repeat those in flight), and processes that live on 10 seconds after a driver was killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import machine, parser, record, table
from tests.support import fakes, lab
from traitmill.engine.errors import ExitCode

TRAITS = ("one", "two")
N = 60
GRACE_S = 10.0
_END_S = 600


@dataclass
class Kills:
    """What kills of one kind left behind."""

    kills: int = 0
    runs: int = 0
    lost: int = 0
    duplicated: int = 0
    differing: int = 0
    repeated: int = 0
    """Judge calls beyond one a text."""
    survivors: int = 0
    given_up: int = 0
    """Runs that stopped since all replicas died before they answered, and were started again."""


def prepared(root: Path, **how: Any) -> lab.Work:
    """Two traits in a folder of their own."""
    for name in TRAITS:
        definition = fakes.definition(2, 7)
        definition["questions"] = [f"Question {place} on {name}?" for place in range(7)]
        fakes.make_trait(root, name, definition)
    return replace(lab.Work(root, TRAITS, n=N, judge_log=root / "calls", in_flight=4), **how)


def slow(rng: random.Random, root: Path, **how: Any) -> lab.Work:
    """A run on two replicas that takes tens of seconds."""
    delays = {"generation_delay": rng.choice((0.2, 0.5)), "capture_delay": 0.3}
    return prepared(root, replicas=2, **delays, **how)


def pids_of(work: lab.Work) -> list[int]:
    """The actors that were started last, one a replica."""
    return [int(path.read_text()) for path in sorted(work.root.glob("replica?"))]


def settle(out: Kills, work: lab.Work, calm: lab.Work) -> None:
    """Compare a finished run with the undisturbed one."""
    assert work.judge_log is not None
    out.runs += 1
    calls = work.judge_log.read_text().split()
    out.repeated += len(calls) - len(set(calls))
    for own, other in zip(work.folders, calm.folders, strict=True):
        digests, right = lab.row_digests(own), lab.row_digests(other)
        out.lost += len(right.keys() - digests.keys())
        out.duplicated += lab.duplicates(own) + len(digests.keys() - right.keys())
        files = lab.final_files(other)
        out.differing += sum(lab.final_files(own)[name] != data for name, data in files.items())


def kill_actors(root: Path, calm: lab.Work, rng: random.Random, kills: int) -> Kills:
    """SIGKILL a random actor every few seconds."""
    out = Kills()
    while out.kills < kills:
        work, killed = slow(rng, root / f"actors{out.runs}"), set[int]()
        while True:
            running = lab.Running(work)
            while out.kills < kills and running.wait(rng.uniform(1, 6)) is None:
                pids = [
                    pid for pid in pids_of(work) if pid not in killed and psutil.pid_exists(pid)
                ]
                if pids:
                    pid = rng.choice(pids)
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
                    out.kills += 1
            if (code := running.wait(_END_S)) == ExitCode.OK:
                break
            # Killed three times each before it answered: the run stops, and goes on when asked to.
            assert code == ExitCode.ENGINE_DIED, running.said
            out.given_up += 1
        settle(out, work, calm)
        print(f"actors: {out}", flush=True)
    return out


def kill_drivers(root: Path, calm: lab.Work, rng: random.Random, kills: int) -> Kills:
    """SIGKILL the run itself at a random moment, look for what lives on, and run it again."""
    out = Kills()
    while out.kills < kills:
        work = slow(rng, root / f"drivers{out.runs}")
        while True:
            running = lab.Running(work)
            running.wait_ready()
            if out.kills == kills or running.wait(rng.uniform(4, 25)) is not None:
                break
            family = psutil.Process(running.process.pid).children(recursive=True)
            running.process.kill()
            running.process.join()
            alive = psutil.wait_procs(family, timeout=GRACE_S)[1]
            out.survivors += len(alive)
            out.kills += 1
        assert running.wait(_END_S) == 0, running.said
        settle(out, work, calm)
        print(f"drivers: {out}", flush=True)
    return out


def kill_nodes(root: Path, calm: lab.Work, rng: random.Random, kills: int) -> Kills:
    """SIGKILL the raylet of one of two nodes; another node joins some seconds later."""
    from ray.cluster_utils import Cluster

    out = Kills()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        while out.kills < kills:
            work = slow(rng, root / f"nodes{out.runs}", ray_address=cluster.address)
            running = lab.Running(work)
            running.wait_ready()
            while out.kills < kills and running.wait(rng.uniform(3, 12)) is None:
                if len(pids_of(work)) < 2:
                    continue
                node.all_processes["raylet"][0].process.kill()
                out.kills += 1
                time.sleep(rng.uniform(0, 4))
                cluster.remove_node(node, allow_graceful=False)
                node = cluster.add_node(num_cpus=1)
            assert running.wait(_END_S) == 0, running.said
            settle(out, work, calm)
            print(f"nodes: {out}", flush=True)
    finally:
        cluster.shutdown()
    return out


def markdown(result: dict[str, Any]) -> str:
    """A line for each kind of kill."""
    names = [
        "kills",
        "runs",
        "given_up",
        "lost",
        "duplicated",
        "differing",
        "repeated",
        "survivors",
    ]
    lines = [[kind, *(str(result[kind][name]) for name in names)] for kind in result["kinds"]]
    header = [
        "killed",
        "kills",
        "runs",
        "stopped, and begun again",
        "rows lost",
        "rows twice",
        "files that differ",
    ]
    header += ["judge calls repeated", "processes left"]
    return (
        f"Deterministic models in real actors, {2 * N * len(TRAITS)} samples a run, SIGKILL at "
        f"moments of seed {result['seed']}; a driver's kill may repeat the judge calls in flight, "
        f"{result['bound']} at most.\n\n{table(header, lines)}"
    )


def main() -> None:
    options = parser("soak_replicas", __doc__)
    options.add_argument("--actors", type=int, default=20)
    options.add_argument("--nodes", type=int, default=10)
    options.add_argument("--drivers", type=int, default=10)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    facts, rng, found = machine(), random.Random(chosen.seed), dict[str, Kills]()
    kinds = {"actors": kill_actors, "nodes": kill_nodes, "drivers": kill_drivers}
    with tempfile.TemporaryDirectory() as folder:
        calm = prepared(Path(folder) / "calm")
        assert lab.run_to_end(calm) == 0, calm.out.read_text()
        for kind, kill in kinds.items():
            if kills := getattr(chosen, kind):
                found[kind] = kill(Path(folder), calm, rng, kills)
    result: dict[str, Any] = {kind: asdict(kills) for kind, kills in found.items()}
    result |= {"kinds": list(found), "seed": chosen.seed, "bound": calm.judging}
    record(chosen.out, "soak_replicas", facts, result)
    print(markdown(result))
    bad = [
        kills.lost + kills.duplicated + kills.differing + kills.survivors
        for kills in found.values()
    ]
    paid = sum(found[kind].repeated for kind in found if kind != "drivers")
    sys.exit(bool(sum(bad) + paid))


if __name__ == "__main__":
    main()
