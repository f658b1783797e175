"""What a user would run instead, beside traitmill: the same model, samples, limits and judge
latency.

    python -m benchmarks.baselines                          # all methods, each round a process of its own per method
    python -m benchmarks.baselines --methods guide,ours

The methods are written here from their descriptions; DESCRIPTIONS, which the page shows, says what
each does.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import (
    PeakMemory,
    answer,
    gpu_name,
    in_process,
    machine,
    no_figures,
    paragraphs,
    parser,
    quietly,
    record,
    shown,
    spread,
    table,
    turned,
    why,
)
from benchmarks.methods import METHODS, STAGES, Times
from benchmarks.stand import whole, workload
from traitmill.engine.models import EMBEDDED, find_model
from traitmill.engine.run.watchdog import tie_children

NAME = "baselines"
DESCRIPTIONS = {
    "guide": "transformers' `generate` in fixed batches of 8, one trait's side after the other: "
    "generate, judge all at once, then capture (text tokenised again, all hidden states, batches "
    "of 8)",
    "peer": "vLLM's `LLM.generate` for each trait, then transformers in batches of 16 keeping the "
    "full stack of states until the end, then the judge in chunks of 20",
    "bare": "vLLM's `LLM.generate` on all prompts at once: generation alone",
    "bare-tuned": "the same with what traitmill changes of vLLM on a CPU (top-p by selection, no "
    "worker process, threads that sleep sooner); what `ours` lacks of it is the price of the "
    "pipeline, the self-check's requests included",
    "ours": "the pipeline, its three stages overlapping",
    "bare-default": "`bare` with vLLM's own choice of cores, which leaves one to its front end",
}
ONCE = ("bare-default",)
"""Beside the point of the comparison: measured in the first round only."""
_COLUMNS = ("load_s", *STAGES, "makespan_s", "process_s", "memory_gib")


def one(options: argparse.Namespace) -> Times:
    """Run one method in this process."""
    tie_children()  # a method that is stopped at its limit leaves no engine behind
    for name, value in options.one.items():
        setattr(options, name, value)
    ref = find_model(options.gen_model)
    samples = workload(ref, whole(options.n_examples), options.max_new_tokens)
    with PeakMemory(every_s=2.0) as memory:
        times = METHODS[options.method](ref, samples, options)
    times.setdefault("makespan_s", sum(times.get(stage, 0.0) for stage in STAGES))
    return times | memory.as_json()


def summary(method: str, runs: Sequence[Times], n: int) -> dict[str, Any]:
    """A method's row."""
    return {
        "method": method,
        "samples": n,
        "tokens": [int(run["tokens"]) for run in runs],
        "only_generation": "capture_s" not in runs[0],
        "tokens_per_s": spread(run["tokens"] / run["generation_s"] for run in runs),
        **{key: spread(run[key] for run in runs) for key in _COLUMNS if key in runs[0]},
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
    header = "method | tokens/s | generation, s | judging, s | capture, s | makespan, s | load, s"
    header += " | process, s | memory, GiB"
    columns = ("tokens_per_s", *STAGES, "makespan_s", "load_s", "process_s", "memory_gib")
    rows = []
    for row in result["methods"]:
        found = {**row, "makespan_s": None if row["only_generation"] else row["makespan_s"]}
        rows.append([row["method"], *(shown(found.get(column)) for column in columns)])
    note = (
        f"{result['model']}, {result['samples']} samples of up to {result['max_new_tokens']} "
        f"tokens, a judge that takes {result['judge_latency_s']:g} s; rounds, in turned order in "
        f"every other one: {result['rounds']} ({', '.join(ONCE)}: one); medians (least to most). "
        "All vLLM runs are eager, with the same prompts, seeds and engine limits, and all but "
        "bare-default use all cores; transformers has no seed a row, so lengths differ a little. "
        "guide, peer and ours capture every response. The makespan is without loads and a warm-up; "
        "`process` is the whole command."
    )
    listed = [f"- **{row['method']}**: {DESCRIPTIONS[row['method']]}." for row in result["methods"]]
    ratios = [f"{name} | {ratio:.2f}" for name, ratio in result["goals"].items()]
    return paragraphs(
        note,
        "\n".join(listed),
        table(header, rows),
        no_figures(result["failed"]),
        table("ours | ratio of medians", ratios) if ratios else "",
    )


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
    chosen = options.parse_args()
    if chosen.one:
        answer(chosen, one(chosen))
        return
    compare(chosen)


def compare(options: argparse.Namespace) -> None:
    """All rounds, storing what there is after each."""
    facts, model, samples = machine(), find_model(options.gen_model).name, whole(options.n_examples)
    runs: dict[str, list[Times]] = {method: [] for method in options.methods.split(",")}
    failed: dict[str, str] = {}
    how = ("gen_model", "n_examples", "max_new_tokens", "latency")
    given = {name: getattr(options, name) for name in how}
    with quietly(NAME) as say:
        for number in range(options.rounds):
            for method in turned(runs, number):
                if method in failed or (number and method in ONCE):
                    continue
                start = time.perf_counter()
                try:
                    times = in_process(NAME, {"method": method, **given}, options.limit)
                except subprocess.SubprocessError as error:
                    failed[method] = why(error)
                    say(f"round {number + 1}, {method}: {failed[method]}")
                else:
                    runs[method].append(times | {"process_s": time.perf_counter() - start})
                    say(f"round {number + 1}, {method}: makespan {times['makespan_s']:.1f} s")
                rows = [summary(name, done, samples) for name, done in runs.items() if done]
                figures = {
                    "model": model,
                    "samples": samples,
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


if __name__ == "__main__":
    main()
