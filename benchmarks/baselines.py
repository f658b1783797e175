"""What a user would run instead, beside traitmill: the same model, samples, limits and judge
latency.

    python -m benchmarks.baselines                          # all methods, each round a process of its own per method
    python -m benchmarks.baselines --methods guide,ours

The methods are written here from their descriptions; DESCRIPTIONS, which the page shows, says what
each does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import (
    ROOT,
    PeakMemory,
    gpu_name,
    machine,
    parser,
    quietly,
    record,
    shown,
    spread,
    table,
)
from benchmarks.methods import METHODS, STAGES, Times
from benchmarks.stand import whole, workload
from traitmill.engine.models.demo import EMBEDDED
from traitmill.engine.models.hub import find_model
from traitmill.engine.run.watchdog import tie_children

NAME = "baselines"
DESCRIPTIONS = {
    "guide": "transformers' `generate` in fixed batches of 8, one trait's side after the other: generate, judge all at "
    "once, then capture (text tokenised again, all hidden states, batches of 8)",
    "peer": "vLLM's `LLM.generate` for each trait, then transformers in batches of 16 keeping the full stack of states "
    "until the end, then the judge in chunks of 20",
    "bare": "vLLM's `LLM.generate` on all prompts at once: generation alone",
    "bare-tuned": "the same with what traitmill changes of vLLM on a CPU (top-p by selection, no worker process, "
    "threads that sleep sooner); what `ours` lacks of it is the price of the pipeline, the "
    "self-check's requests "
    "included",
    "ours": "the pipeline, its three stages overlapping",
    "bare-default": "`bare` with vLLM's own choice of cores, which leaves one to its front end",
    "hf-cb": "transformers' continuous batching: generation alone",
}
ONCE = ("bare-default", "hf-cb")
"""Beside the point of the comparison: measured in the first round only."""


def one(options: argparse.Namespace) -> None:
    """Run one method in this process and write its times to --times."""
    tie_children()  # a method that is stopped at its limit leaves no engine behind
    ref = find_model(options.gen_model)
    samples = workload(ref, whole(options.n_examples), options.max_new_tokens)
    with PeakMemory(every_s=2.0) as memory:
        times = METHODS[options.one](ref, samples, options)
    times.setdefault("makespan_s", sum(times.get(stage, 0.0) for stage in STAGES))
    Path(options.times).write_text(json.dumps(times | memory.as_json()))


def in_process(method: str, options: argparse.Namespace) -> Times:
    """One method in a process of its own. Raises CalledProcessError, TimeoutExpired."""
    with TemporaryDirectory() as temp:
        path = Path(temp) / "times.json"
        command = [
            sys.executable,
            "-m",
            "benchmarks.baselines",
            "--one",
            method,
            "--times",
            str(path),
        ]
        for name in ("gen_model", "n_examples", "max_new_tokens", "latency"):
            command += [f"--{name}", str(getattr(options, name))]
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, timeout=options.limit)
        whole_s = time.perf_counter() - start
        times: Times = json.loads(path.read_text())
    return times | {"process_s": whole_s}


def summary(method: str, runs: Sequence[Times], n: int) -> dict[str, Any]:
    """A method's row."""
    keys = [
        key
        for key in ("load_s", *STAGES, "makespan_s", "process_s", "memory_gib")
        if key in runs[0]
    ]
    only_generation = "capture_s" not in runs[0]
    return {
        "method": method,
        "samples": n,
        "tokens": [int(run["tokens"]) for run in runs],
        "only_generation": only_generation,
        "tokens_per_s": spread(run["tokens"] / run["generation_s"] for run in runs),
        **{key: spread(run[key] for run in runs) for key in keys},
    }


def goals(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Ratios of medians to ours: generation by tokens a second, whole job by makespan."""
    by_name = {row["method"]: row for row in rows}
    if "ours" not in by_name:
        return {}
    mine = by_name["ours"]
    found = {
        f"generation over {name}": mine["tokens_per_s"][0] / row["tokens_per_s"][0]
        for name, row in by_name.items()
        if name != "ours"
    }
    for name in ("guide", "peer"):
        if name in by_name:
            found[f"whole job over {name}"] = by_name[name]["makespan_s"][0] / mine["makespan_s"][0]
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """Stage times, makespans and ratios."""
    header = [
        "method",
        "tokens/s",
        "generation, s",
        "judging, s",
        "capture, s",
        "makespan, s",
        "load, s",
    ]
    header += ["process, s", "memory, GiB"]
    keys = (
        "tokens_per_s",
        "generation_s",
        "judging_s",
        "capture_s",
        "makespan_s",
        "load_s",
        "process_s",
        "memory_gib",
    )
    rows = [
        [
            row["method"],
            *(
                shown(row.get(k)) if k != "makespan_s" or not row["only_generation"] else "-"
                for k in keys
            ),
        ]
        for row in result["methods"]
    ]
    failed = "".join(f"\n- {name} gave no figures: {why}" for name, why in result["failed"].items())
    note = (
        f"{result['model']}, {result['samples']} samples of up to {result['max_new_tokens']} "
        f"tokens, a judge that "
        f"takes {result['judge_latency_s']:g} s; rounds, in turned order in every other one: "
        f"{result['rounds']} "
        f"({', '.join(ONCE)}: one); medians (least to most). All vLLM runs are eager, with the "
        f"same prompts, seeds and "
        "engine limits, and all but bare-default use all cores; transformers has no seed a row, so "
        "lengths differ a "
        "little. guide, peer and ours capture every response. The makespan is without loads and a "
        "warm-up; `process` "
        "is the whole command."
    )
    listed = "\n".join(
        f"- **{row['method']}**: {DESCRIPTIONS[row['method']]}." for row in result["methods"]
    )
    ratios = table(
        ["ours", "ratio of medians"],
        ([name, f"{ratio:.2f}"] for name, ratio in result["goals"].items()),
    )
    parts = [note, listed, table(header, rows), failed.strip(), ratios if result["goals"] else ""]
    return "\n\n".join(part for part in parts if part)


def main() -> None:
    options = parser(NAME, __doc__)
    options.add_argument("--gen_model", default=EMBEDDED)
    options.add_argument("--n_examples", type=int, default=96, help="all sides together")
    options.add_argument("--max_new_tokens", type=int, default=48)
    options.add_argument("--latency", type=float, default=1.0, help="seconds the judge takes")
    # What is tuned is a CPU's.
    suited = [name for name in METHODS if name != "bare-tuned" or not gpu_name()]
    options.add_argument("--methods", default=",".join(suited))
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--limit", type=float, default=120, help="seconds one method may take")
    options.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    options.add_argument("--times", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.one:
        one(chosen)
        return
    compare(chosen)


def compare(options: argparse.Namespace) -> None:
    """All rounds, storing what there is after each."""
    facts, model = machine(), find_model(options.gen_model).name
    runs: dict[str, list[Times]] = {method: [] for method in options.methods.split(",")}
    failed: dict[str, str] = {}
    with quietly(NAME) as say:
        for number in range(options.rounds):
            for method in list(runs)[:: -1 if number % 2 else 1]:
                done = runs[method]
                if method in failed or (number and method in ONCE):
                    continue
                try:
                    times = in_process(method, options)
                except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                    failed[method] = _why(error)
                    say(f"round {number + 1}, {method}: {failed[method]}")
                else:
                    done.append(times)
                    say(f"round {number + 1}, {method}: makespan {times['makespan_s']:.1f} s")
                rows = [
                    summary(name, so_far, whole(options.n_examples))
                    for name, so_far in runs.items()
                    if so_far
                ]
                figures = {
                    "model": model,
                    "samples": whole(options.n_examples),
                    "max_new_tokens": options.max_new_tokens,
                    "judge_latency_s": options.latency,
                    "rounds": number + 1,
                    "methods": rows,
                    "goals": goals(rows),
                    "failed": failed,
                }
                # Method by method: what is stopped at its limit keeps what it has.
                record(options.out, NAME, facts, figures)
        say(markdown(figures))


def _why(error: subprocess.CalledProcessError | subprocess.TimeoutExpired) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"not finished after {error.timeout:.0f} s"
    return f"ended with code {error.returncode}"


if __name__ == "__main__":
    main()
