"""The first ten minutes on a card, as one command: `make gpu-check`.

    python -m benchmarks.gpu_check            # needs an NVIDIA GPU; at most ten minutes
    python -m benchmarks.gpu_check --list     # what would run

Each step is a command with a limit of its own: it is cut off there, with all that it started. Its
result stands in results/gpu/gpu_check.json before the next begins; a step that fails costs no
other. The driver is asked for memory and load twice a second. The end is a table.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, Self

from benchmarks.common import ROOT, gpu_name, machine, parser, record, table

NAME = "gpu_check"
LIMIT_S = 600
_EVERY_S = 0.5
_TAIL = 2000
"""Characters of what a step printed that are kept."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command, what it settles (rows of docs/gpu.md), and its seconds."""

    name: str
    command: tuple[str, ...]
    settles: str
    limit_s: int


def _python(words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *words.split())


def _traitmill(words: str) -> tuple[str, ...]:
    program = "import sys; from traitmill.cli.main import main; sys.argv[0] = 'traitmill'; main()"
    return (sys.executable, "-c", program, *words.split())


_DEMO = "--experiments_dir {folder}"
_POEM = f"{_DEMO} --experiment demo --trait poem"
_PYTEST = "pytest -q -n0"
_GEMMA = "--shape gemma-2-2b --rounds 1"
STEPS = (
    Step("packages", _python("pip check"), "6", 15),
    Step(
        "surroundings",
        _traitmill("doctor --judge_model local --gen_model {model}"),
        "2, 3, 19",
        45,
    ),
    Step("capture, hooks, contexts", _python(f"{_PYTEST} -m gpu tests/gpu"), "3, 17", 60),
    Step("demo", _traitmill(f"demo {_DEMO}"), "9, engine, teardown", 130),
    Step("demo, a second start", _traitmill(f"demo {_DEMO} --new_run"), "9, compile cache", 60),
    Step("capture alone", _traitmill(f"activations {_POEM} --pool prompt_last"), "12", 30),
    Step(
        "an engine that is killed",
        _python(f"{_PYTEST} tests/real/test_faults.py -k f22"),
        "watchdog",
        80,
    ),
    Step(
        "generation of Gemma-2-2B's shape",
        _python(f"benchmarks.batch_size {_GEMMA} --n_examples 1000 --rows auto"),
        "7, 15",
        100,
    ),
    Step(
        "capture of Gemma-2-2B's shape",
        _python(f"benchmarks.capture {_GEMMA} --rows 512"),
        "11",
        80,
    ),
)
"""In the order of what they would spoil: the first that fails is what to mend first."""


def filled(command: Iterable[str], folder: Path) -> list[str]:
    """Return a step's command for a folder of experiments, on the model that comes along."""
    from traitmill.engine.models import EMBEDDED

    return [word.replace("{folder}", str(folder)).replace("{model}", EMBEDDED) for word in command]


class Watch:
    """The most memory and load that the driver reported, over all cards, while it is open."""

    def __init__(self, ask: Callable[[], str]) -> None:
        self._ask, self._end = ask, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.peak_mib = self.peak_percent = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(_EVERY_S):
            for line in self._ask().splitlines():
                used, busy = (int(part) for part in line.split(","))
                self.peak_mib = max(self.peak_mib, used)
                self.peak_percent = max(self.peak_percent, busy)


def ask_driver() -> str:
    """Return a line a card: MiB used, percent busy; nothing where no driver answers."""
    command = ["nvidia-smi", "--query-gpu=memory.used,utilization.gpu"]
    command.append("--format=csv,noheader,nounits")
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def run_step(command: Sequence[str], limit_s: float, ask: Callable[[], str]) -> dict[str, Any]:
    """Run a command, cut off after `limit_s`; return its code (None: cut off), time and words."""
    start = time.monotonic()
    with TemporaryFile() as said, Watch(ask) as watch:
        # A session of its own, so that all it started can be stopped with it.
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        code: int | None
        try:
            code = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        words = said.read().decode("utf-8", "replace")
    return {
        "code": code,
        "seconds": round(time.monotonic() - start, 1),
        "peak_mib": watch.peak_mib,
        "peak_percent": watch.peak_percent,
        "said": words[-_TAIL:],
    }


def check(
    steps: Sequence[Step],
    store: Callable[[list[dict[str, Any]]], object],
    *,
    ask: Callable[[], str] = ask_driver,
    limit_s: float = LIMIT_S,
) -> list[dict[str, Any]]:
    """Run the steps, none beyond `limit_s` in all; `store` is called with all results after each."""
    start, done = time.monotonic(), []
    with TemporaryDirectory() as folder:
        experiments = Path(folder) / "experiments"
        _copy_demo(experiments)
        for step in steps:
            left = limit_s - (time.monotonic() - start)
            row: dict[str, Any] = {"step": step.name, "settles": step.settles}
            row["command"] = shlex.join(step.command)
            if left <= 0:
                row |= {"code": None, "seconds": 0.0, "said": "no time was left"}
            else:
                print(f"{step.name} (at most {min(step.limit_s, left):.0f} s)", flush=True)
                row |= run_step(filled(step.command, experiments), min(step.limit_s, left), ask)
            done.append(row)
            store(done)
    return done


def _copy_demo(experiments: Path) -> None:
    for source in (ROOT / "experiments/demo").glob("*/trait_definition.json"):
        target = experiments / "demo" / source.parent.name
        target.mkdir(parents=True)
        (target / source.name).write_bytes(source.read_bytes())


def outcome(row: dict[str, Any]) -> str:
    """Return a word for how a step went."""
    if row["code"] is None:
        return "cut off"
    return "held" if row["code"] == 0 else f"failed with code {row['code']}"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of the end."""
    lines = [
        f"{row['step']} | {outcome(row)} | {row['seconds']:.1f} | {row.get('peak_mib', 0):,} | "
        f"{row.get('peak_percent', 0)} | {row['settles']}"
        for row in rows
    ]
    return table("step | outcome | s | peak MiB | busy % | settles row", lines)


def main() -> None:
    options = parser(NAME, __doc__)
    options.add_argument("--list", action="store_true", help="print the steps and their limits")
    chosen = options.parse_args()
    if chosen.list:
        for step in STEPS:
            print(f"{step.limit_s:4d} s  {step.name}: {shlex.join(step.command)}")
        return
    if not gpu_name():
        print("no NVIDIA GPU is visible here: nothing was checked", file=sys.stderr)
        raise SystemExit(2)
    facts = machine()
    rows = check(STEPS, lambda done: record(chosen.out, NAME, facts, {"steps": done}))
    print(markdown(rows))
    for row in rows:
        if row["code"] != 0:
            print(f"\n{row['step']}: {outcome(row)}\n{row['said']}", file=sys.stderr)
    raise SystemExit(any(row["code"] != 0 for row in rows))


if __name__ == "__main__":
    main()
