"""Every benchmark, one after the other, within 40 minutes on two cores; then the pages.

    python -m benchmarks.all                    # make bench
    python -m benchmarks.all --only overlap     # some of it; the other results stay as stored
    python -m benchmarks.all --render-only      # only the pages, from stored results

A part may take all the time that the parts after it do not need. One that takes longer is stopped;
what it had stored by then is kept, the others go on, and the command ends with code 1. On a machine
with a GPU:

    python -m benchmarks.all --gpu              # make bench-gpu: every GPU table, up to 10 minutes each
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import pages
from benchmarks.common import ROOT, gpu_name, parser
from benchmarks.pages import Bench

LIMIT_MINUTES = 40
GPU_LIMIT_MINUTES = 10
"""Of each command."""
PARTS = tuple(bench for bench in pages.BENCHES if bench.minutes)


def run(part: Bench, out: Path | None, limit_s: float) -> str:
    """Run a part; returns why it gave no full result, or nothing."""
    extra = ["--out", str(out)] if out else []
    print(f"\n$ {part.command}    (may take {limit_s / 60:.1f} min)", flush=True)
    # A session of its own, so that all it started can be stopped with it.
    command = [sys.executable, *shlex.split(part.command)[1:], *extra]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        process.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"stopped after {limit_s / 60:.1f} minutes"
    return f"ended with code {process.returncode}" if process.returncode else ""


def allowed(parts: Sequence[Bench], minutes_left: float) -> float:
    """Minutes the first of `parts` may take."""
    return max(parts[0].minutes, minutes_left - sum(part.minutes for part in parts[1:]))


def main() -> None:
    options = parser("all", __doc__)
    names = [part.name for part in PARTS]
    options.add_argument("--only", default=",".join(names), help="comma list of benchmarks")
    options.add_argument(
        "--render-only", action="store_true", help="write the pages from stored results"
    )
    options.add_argument(
        "--gpu", action="store_true", help="what fills the GPU's tables, on a machine that has one"
    )
    chosen = options.parse_args()
    failed = {}
    if chosen.gpu:
        failed = run_on_gpu(chosen.out)
    elif not chosen.render_only:
        failed = run_all(chosen.only.split(","), chosen.out)
    if chosen.out is None:  # results put elsewhere are not the repository's
        pages.write()
    for command, why in failed.items():
        print(f"{command}: {why}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def run_all(wanted: Sequence[str], out: Path | None) -> dict[str, str]:
    """Run the chosen parts in order; returns those that gave no full result, and why."""
    unknown = set(wanted) - {part.name for part in PARTS}
    if unknown:
        known = ", ".join(part.name for part in PARTS)
        raise SystemExit(f"--only: unknown {', '.join(sorted(unknown))}; choose from {known}")
    start, left = time.monotonic(), [part for part in PARTS if part.name in wanted]
    failed = {}
    while left:
        minutes = allowed(left, LIMIT_MINUTES - (time.monotonic() - start) / 60)
        part = left.pop(0)
        if why := run(part, out, 60 * minutes):
            failed[part.command] = why
    print(f"\nall of it took {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    return failed


def run_on_gpu(out: Path | None) -> dict[str, str]:
    """Run every command of the GPU's tables; returns those that gave no full result, and why."""
    if not gpu_name():
        raise SystemExit(
            "no NVIDIA GPU is visible here: these numbers need one; nothing was measured"
        )
    failed = {}
    for part in pages.GPU_BENCHES:
        if why := run(part, out, 60 * GPU_LIMIT_MINUTES):
            failed[part.command] = why
    return failed


if __name__ == "__main__":
    main()
