"""Does a sample cost the same in a run of 100,000 as in one of 10,000? `python -m benchmarks.scale`.

Deterministic backends that answer at once, behind the real pipeline, store and export: what is measured is what the
program itself costs a sample. Each run is a process of its own, the sizes in turn. Anonymous memory (RssAnon) is
sampled every 20 ms; file pages, which the kernel may drop, do not count. Then the finished large run is started again
through the command line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from benchmarks.common import machine
from tests import fakes, lab

SIZES = (10_000, 100_000)
RESULT = Path(__file__).parent / "results" / "scale.json"
TRAITMILL = str(Path(sys.executable).with_name("traitmill"))


@dataclass(frozen=True)
class Cost:
    """One run's."""

    samples: int
    wall_s: float
    cpu_s: float
    start_mb: float
    """RssAnon before the run, everything imported."""
    peak_mb: float


class Quiet(lab.LabLaunch):
    """Backends that remember nothing."""

    async def _load(self) -> None:
        await super()._load()
        for backend, name in (
            (self.backends.generator, "calls"),
            (self.backends.judge, "calls"),
            (self.backends.capturer, "rows"),
        ):
            setattr(backend, name, Forgetful())


class Forgetful(list[object]):
    """A log that is not kept."""

    def append(self, _: object) -> None:
        """Nothing."""

    def __iadd__(self, _: object) -> Self:  # type: ignore[misc, override]
        return self


def rss_anon() -> float:
    """MB of anonymous memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def measure(root: Path, samples: int) -> Cost:
    """Run `samples` samples of one trait in this process."""
    lab.LabLaunch = Quiet  # type: ignore[misc]
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
    return Cost(**{**asdict(cost), "peak_mb": peak})


def start_again(root: Path, samples: int) -> tuple[float, str]:
    """Seconds the finished run takes when its command is given again, and what that said."""
    command = [TRAITMILL, "generate", "--experiment", "exp", "--trait", "trait", "--experiments_dir", str(root)]
    command += ["--gen_model", str(root / "toy"), "--n_examples", str(samples // 2)]
    command += ["--judge_model", "fake-judge", "--judge_base_url", "http://127.0.0.1:9/v1"]
    began = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - began, result.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=lambda text: tuple(map(int, text.split(","))), default=SIZES)
    parser.add_argument("--one", type=int, help="measure one size in this process, in --root")
    parser.add_argument("--root", type=Path)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(asdict(measure(arguments.root, arguments.one))))
        return
    costs: dict[int, list[Cost]] = {size: [] for size in arguments.sizes}
    again: list[float] = []
    for number in range(arguments.rounds):
        for size in arguments.sizes:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "warm").mkdir()
                command = [sys.executable, "-m", "benchmarks.scale", "--one", str(size), "--root", folder]
                out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                costs[size].append(Cost(**json.loads(out.splitlines()[-1])))
                print(number, costs[size][-1], flush=True)
                if size == max(arguments.sizes):
                    seconds, said = start_again(Path(folder), size)
                    assert "no model is loaded" in said, said
                    again.append(seconds)
                    print(f"{number} started again: {seconds:.1f} s", flush=True)
    small, large = min(costs), max(costs)
    out = {
        "machine": machine(),
        "backends": "deterministic, answering at once; pipeline, store and export as they are",
        "per_size": {
            size: {
                "wall_ms_per_sample": statistics.median(1e3 * c.wall_s / size for c in of_size),
                "cpu_ms_per_sample": statistics.median(1e3 * c.cpu_s / size for c in of_size),
                "peak_anonymous_mb": statistics.median(c.peak_mb for c in of_size),
                "runs": [asdict(c) for c in of_size],
            }
            for size, of_size in costs.items()
        },
        "cpu_per_sample_ratio": statistics.median(
            (b.cpu_s / large) / (a.cpu_s / small) for a, b in zip(costs[small], costs[large], strict=True)
        ),
        "wall_per_sample_ratio": statistics.median(
            (b.wall_s / large) / (a.wall_s / small) for a, b in zip(costs[small], costs[large], strict=True)
        ),
        "anonymous_growth_mb": statistics.median(
            b.peak_mb - a.peak_mb for a, b in zip(costs[small], costs[large], strict=True)
        ),
        "started_again_s": statistics.median(again),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(out, indent=1) + "\n")
    for name in ("cpu_per_sample_ratio", "wall_per_sample_ratio", "anonymous_growth_mb", "started_again_s"):
        print(f"{name}: {out[name]:.2f}")


if __name__ == "__main__":
    main()
