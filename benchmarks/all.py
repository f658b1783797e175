"""Every benchmark, one after the other, within 40 minutes on two cores; then the pages.

    python -m benchmarks.all                    # make bench
    python -m benchmarks.all --only overlap     # some of it; the other results stay as stored
    python -m benchmarks.all --render-only      # only the pages, from stored results

Each part has a budget. One that takes longer is stopped; what it had stored by then is kept, the others go on, and the
command ends with code 1.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import pages
from benchmarks.common import ROOT, parser

LIMIT_MINUTES = 40


@dataclass(frozen=True, slots=True)
class Part:
    """One benchmark: its arguments, and its budget in seconds."""

    name: str
    arguments: tuple[str, ...]
    budget_s: float


PARTS = (
    Part("batch_size", (), 9.0 * 60),
    Part("baselines", (), 8.8 * 60),
    Part("overlap", (), 4.5 * 60),
    Part("memory", (), 2.0 * 60),
    Part("tuning", (), 5.0 * 60),
    Part("roofline", (), 0.4 * 60),
    Part("capture", ("--rounds", "3"), 3.5 * 60),
    Part("judge", ("--seconds", "24", "--verdicts", "10000"), 2.4 * 60),
    Part("vectors", ("--rounds", "2"), 1.5 * 60),
    Part("scale", (), 2.8 * 60),
)


def run(part: Part, out: Path | None) -> str:
    """Run a part; returns why it gave no full result, or nothing."""
    command = ["python", "-m", f"benchmarks.{part.name}", *part.arguments]
    extra = ["--out", str(out)] if out else []
    print(f"\n$ {' '.join(command)}    (budget {part.budget_s / 60:g} min)", flush=True)
    # A session of its own, so that all it started can be stopped with it.
    process = subprocess.Popen([sys.executable, *command[1:], *extra], cwd=ROOT, start_new_session=True)
    try:
        process.wait(timeout=part.budget_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"stopped after its budget of {part.budget_s / 60:g} minutes"
    return f"ended with code {process.returncode}" if process.returncode else ""


def main() -> None:
    options = parser("all", __doc__)
    options.add_argument("--only", default=",".join(part.name for part in PARTS), help="comma list of benchmarks")
    options.add_argument("--render-only", action="store_true", help="write the pages from stored results")
    chosen = options.parse_args()
    failed = {} if chosen.render_only else run_all(chosen)
    if chosen.out is None:  # results put elsewhere are not the repository's
        pages.write()
    for name, why in failed.items():
        print(f"{name}: {why}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def run_all(options: argparse.Namespace) -> dict[str, str]:
    """Run the chosen parts in order; returns those that gave no full result, and why."""
    wanted, start = options.only.split(","), time.monotonic()
    unknown = set(wanted) - {part.name for part in PARTS}
    if unknown:
        raise SystemExit(
            f"--only: unknown {', '.join(sorted(unknown))}; choose from {', '.join(p.name for p in PARTS)}"
        )
    outcome = {part.name: run(part, options.out) for part in PARTS if part.name in wanted}
    print(f"\nall of it took {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    return {name: why for name, why in outcome.items() if why}


if __name__ == "__main__":
    main()
