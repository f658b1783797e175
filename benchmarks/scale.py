"""Does a sample cost the same in a run of 100,000 as in one of 10,000? `python -m
benchmarks.scale`.

Deterministic backends that answer at once, behind the real pipeline, store and export: what is
measured is what the program itself costs a sample. Each run is a process of its own, the sizes in
turn. Anonymous memory (RssAnon) is sampled every 20 ms; file pages, which the kernel may drop, do
not count. Then the finished large run is started again through the command line. Results are stored
after each round.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from benchmarks.common import (
    answer,
    in_process,
    machine,
    paragraphs,
    parser,
    record,
    shown,
    spread,
    table,
    turned,
)
from tests.support import fakes, lab

SIZES = (10_000, 100_000)
TRAITMILL = str(Path(sys.executable).with_name("traitmill"))


@dataclass(frozen=True)
class Cost:
    """One run's."""

    samples: int
    wall_s: float
    cpu_s: float
    start_mib: float
    """RssAnon in MiB before the run, everything imported."""
    peak_mib: float


class Forgetful(list[object]):
    """A log that is not kept."""

    def append(self, _: object) -> None:
        """Nothing."""

    def __iadd__(self, _: object) -> Self:  # type: ignore[misc]
        return self


def _forget(kind: Any, name: str) -> None:
    """Have a fake remember nothing of what it did."""
    made = kind.__init__

    def init(self: object, *args: object, **more: object) -> None:
        made(self, *args, **more)
        setattr(self, name, Forgetful())

    kind.__init__ = init


def rss_anon() -> float:
    """MiB of anonymous memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def measure(root: Path, samples: int) -> Cost:
    """Run `samples` samples of one trait in this process."""
    for kind, name in (
        (fakes.FakeGenerator, "calls"),
        (fakes.FakeJudge, "calls"),
        (fakes.FakeCapture, "rows"),
    ):
        _forget(kind, name)
    fakes.make_trait(root, "trait", fakes.definition(5, 20))
    warm = fakes.make_trait(root / "warm", "trait")
    lab.run(lab.Work(root / "warm", n=200, in_flight=64))
    assert (warm / "activations/metadata.json").exists()
    peak = start = rss_anon()
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.02):
            peak = max(peak, rss_anon())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    wall, cpu = time.perf_counter(), time.process_time()
    code = lab.run(lab.Work(root, n=samples // 2, flush_seconds=5.0, in_flight=64, judging=64))
    cost = Cost(samples, time.perf_counter() - wall, time.process_time() - cpu, start, peak)
    ended.set()
    watcher.join()
    assert code == 0, code
    return replace(cost, peak_mib=peak)


def start_again(root: Path, samples: int) -> float:
    """Seconds the finished run takes when its command is given again."""
    command = [TRAITMILL, "generate", "--experiment", "exp", "--trait", "trait"]
    command += ["--experiments_dir", str(root), "--gen_model", str(root / "toy")]
    command += ["--n_examples", str(samples // 2), "--judge_model", "fake-judge"]
    command += ["--judge_base_url", "http://127.0.0.1:9/v1"]
    began = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "no model is loaded" in result.stdout, result.stdout
    return time.perf_counter() - began


def round_of(sizes: Sequence[int], costs: Mapping[int, list[Cost]]) -> float:
    """Run each size once, in a process of its own; returns the seconds of starting the largest
    again."""
    again = 0.0
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "warm").mkdir()
            costs[size].append(Cost(**in_process("scale", {"size": size, "root": folder})))
            print(costs[size][-1], flush=True)
            if size == max(sizes):
                again = start_again(Path(folder), size)
                print(f"started again: {again:.1f} s", flush=True)
    return again


def figures(costs: Mapping[int, Sequence[Cost]], again: Sequence[float]) -> dict[str, Any]:
    """What is stored: spreads by size, and ratios taken within a round."""
    small, large = min(costs), max(costs)
    pairs = list(zip(costs[small], costs[large], strict=True))
    return {
        "backends": "deterministic, answering at once; pipeline, store and export as they are",
        "rounds": len(pairs),
        "per_size": {
            str(size): {
                "wall_ms_per_sample": spread(1e3 * c.wall_s / size for c in of_size),
                "cpu_ms_per_sample": spread(1e3 * c.cpu_s / size for c in of_size),
                "peak_anonymous_mib": spread(c.peak_mib for c in of_size),
                "runs": [asdict(c) for c in of_size],
            }
            for size, of_size in costs.items()
        },
        "cpu_per_sample_ratio": spread((b.cpu_s / large) / (a.cpu_s / small) for a, b in pairs),
        "wall_per_sample_ratio": spread((b.wall_s / large) / (a.wall_s / small) for a, b in pairs),
        "anonymous_growth_mib": spread(b.peak_mib - a.peak_mib for a, b in pairs),
        "started_again_s": spread(again),
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The table, and what changes from the smaller size to the larger."""
    lines = [
        f"{int(size):,} | {shown(cost['wall_ms_per_sample'], 3)} | "
        f"{shown(cost['cpu_ms_per_sample'], 3)} | {shown(cost['peak_anonymous_mib'], 0)}"
        for size, cost in result["per_size"].items()
    ]
    header = "samples | wall, ms a sample | CPU, ms a sample | peak anonymous memory, MiB"
    note = (
        f"Backends: {result['backends']}. Rounds of one run of each size: {result['rounds']}, the "
        "order turned in every other one; medians (least to most), ratios within a round. From the "
        f"smaller size to the larger: CPU time a sample {shown(result['cpu_per_sample_ratio'], 2)} "
        f"times, wall time {shown(result['wall_per_sample_ratio'], 2)} times, anonymous memory "
        f"{shown(result['anonymous_growth_mib'], 0)} MiB more. The finished large run started "
        f"again ends in {shown(result['started_again_s'], 1)} s."
    )
    return paragraphs(note, table(header, lines))


def main() -> None:
    options = parser("scale", __doc__)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--sizes", default=",".join(map(str, SIZES)))
    chosen = options.parse_args()
    if chosen.one:
        answer(chosen, asdict(measure(Path(chosen.one["root"]), chosen.one["size"])))
        return
    facts, sizes = machine(), [int(part) for part in chosen.sizes.split(",")]
    costs: dict[int, list[Cost]] = {size: [] for size in sizes}
    again: list[float] = []
    for number in range(chosen.rounds):
        print(f"round {number + 1}", flush=True)
        again.append(round_of(turned(sizes, number), costs))
        found = figures(costs, again)
        record(chosen.out, "scale", facts, found)
    print(markdown(found))


if __name__ == "__main__":
    main()
