"""The guide's batch-size table on this machine: generation and the whole job at 1, 4, 8, ... sequences in flight.

    python -m benchmarks.batch_size                        # the embedded model
    python -m benchmarks.batch_size --n_examples 200       # every row with at least the guide's 200 samples
    python -m benchmarks.batch_size --shape gemma-2-9b     # a GPU: random weights, forced lengths, generation only

One engine, started for as many sequences as `auto` takes, serves all rows; a row limits the requests in flight. Each
row runs the first max(--n_examples, 2 x batch) samples of one list, so that a large batch is not all start and end, and
is compared by tokens per second (generation) and seconds per sample (whole job: judge and capture too). Rows alternate
within a round. Model loads and a warm-up are apart.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from benchmarks.common import (
    GUIDE,
    Say,
    machine,
    parser,
    quietly,
    record,
    shown,
    spread,
    table,
)
from benchmarks.shapes import SHAPES, check_fits, dummy_model
from benchmarks.stand import Run, Stand, whole
from engine.models import EMBEDDED, ModelRef, find_model

NAME = "batch_size"
ROWS = "1,4,8,16,32,64,auto"


def samples_of(batch: str, n_examples: int, auto: int) -> int:
    """How many samples a row runs."""
    return whole(max(n_examples, 2 * (auto if batch == "auto" else int(batch))))


async def measure(ref: ModelRef, options: argparse.Namespace, say: Say) -> None:
    """Run all rounds, storing what there is after each."""
    facts = machine()
    stand = Stand(ref, options.max_new_tokens, dummy=options.shape is not None)
    auto = stand.size.max_num_seqs
    rows = {batch: samples_of(batch, options.n_examples, auto) for batch in options.rows.split(",")}
    rounds: list[dict[str, Run]] = []
    try:
        await stand.open()
        say(f"loaded and warmed up in {stand.load_s:.0f} s")
        for number in range(1, options.rounds + 1):
            runs = {}
            for batch, n in rows.items():
                cap = None if batch == "auto" else int(batch)
                runs[batch] = await stand.run(n, cap=cap, latency=options.latency)
                say(f"round {number}, batch {batch}: {n} samples, {runs[batch].tokens_per_s:.1f} tokens/s")
            rounds.append(runs)
            figures = {
                "model": ref.name,
                "dummy": options.shape is not None,
                "max_new_tokens": options.max_new_tokens,
                "judge_latency_s": options.latency,
                "rounds": number,
                "sequences_of_auto": auto,
                "load_s": stand.load_s,
                "rows": [row(batch, n, rounds) for batch, n in rows.items()],
            }
            record(options.out, NAME, facts, figures, options.shape)
        say(markdown({**figures, "command": "", "machine": facts}, None))
    finally:
        await stand.close()


def row(batch: str, samples: int, rounds: Sequence[Mapping[str, Run]]) -> dict[str, Any]:
    """A row's figures over the rounds so far; speedups are ratios within a round to its first row."""
    runs = [runs[batch] for runs in rounds]
    firsts = [next(iter(runs.values())) for runs in rounds]
    pairs = list(zip(runs, firsts, strict=True))
    return {
        "batch": batch,
        "samples": samples,
        "tokens": runs[-1].tokens,
        "generation_s": spread(run.seconds["generation"] for run in runs),
        "tokens_per_s": spread(run.tokens_per_s for run in runs),
        "speedup": spread(run.tokens_per_s / first.tokens_per_s for run, first in pairs),
        "job_s": spread(run.makespan for run in runs),
        "job_speedup": spread(_rate(run) / _rate(first) for run, first in pairs),
        "running": spread(run.running for run in runs),
    }


def _rate(run: Run) -> float:
    """Samples a second through the whole job."""
    return len(run.times["generation"]) / run.makespan


def markdown(result: Mapping[str, Any], memory: Mapping[str, Any] | None) -> str:
    """The table, with the memory of engines sized for each row (from the memory benchmark) where it was measured."""
    own = {line["batch"]: line["peak_gib"] for line in memory["engines"]} if memory else {}
    header = ["batch", "samples", "generation, s", "tokens/s", "running", "speedup", "the guide's"]
    header += ["whole job, s", "speedup", "memory, GiB", "the guide's, GB"]
    rows = []
    for line in result["rows"]:
        claim = GUIDE.get(line["batch"])
        rows.append([
            line["batch"],
            str(line["samples"]),
            shown(line["generation_s"]),
            shown(line["tokens_per_s"]),
            shown(line["running"][:1] * 3),
            shown(line["speedup"], 1, "x"),
            f"{claim[1]}x" if claim else "-",
            shown(line["job_s"]),
            shown(line["job_speedup"], 1, "x"),
            f"{own[line['batch']]:.1f}" if line["batch"] in own else "-",
            str(claim[2]) if claim else "-",
        ])  # fmt: skip
    weights = " Weights are random and every response is forced to its limit; nothing is captured." * result["dummy"]
    note = (
        f"{result['model']}, responses of up to {result['max_new_tokens']} tokens, {result['rounds']} rounds, "
        f"medians (least to most). auto is {result['sequences_of_auto']} sequences. The whole job has a judge of "
        f"{result['judge_latency_s']:g} s and writes all files; its speedup is by samples a second, generation's by "
        f"tokens a second, of the same round. One engine for all rows, loaded in {result['load_s']:.0f} s (apart); a "
        f"row limits the requests in flight. Memory is of an engine sized for that row alone, all processes.{weights}"
    )
    return f"{note}\n\n{table(header, rows)}"


def readme_table(result: Mapping[str, Any], memory: Mapping[str, Any] | None) -> str:
    """The README's short form: measured beside claimed."""
    own = {line["batch"]: line["peak_gib"] for line in memory["engines"]} if memory else {}
    rows = []
    for line in result["rows"]:
        claim = GUIDE.get(line["batch"])
        rows.append([
            line["batch"],
            f"{line['tokens_per_s'][0]:.0f}",
            f"{line['speedup'][0]:.1f}x",
            f"{claim[1]}x" if claim else "-",
            f"{line['job_speedup'][0]:.1f}x",
            f"{own[line['batch']]:.1f} GiB" if line["batch"] in own else "-",
        ])  # fmt: skip
    header = ["`--batch_size`", "tokens/s", "speedup", "the guide's", "whole job", "memory"]
    where = result["machine"]
    note = (
        f"`{result['command']}`: {result['model']}, {where['cpu']}, {where['cores']} cores, {where['date']}; "
        f"medians of {result['rounds']} rounds. More, with ranges and baselines: [benchmarks](docs/benchmarks.md)."
    )
    return f"{table(header, rows)}\n\n{note}"


def main() -> None:
    options = parser(NAME, __doc__)
    options.add_argument("--gen_model", default=EMBEDDED)
    options.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead of a model")
    options.add_argument("--n_examples", type=int, default=16, help="least samples of a row, all sides together")
    options.add_argument("--max_new_tokens", type=int, default=48)
    options.add_argument("--latency", type=float, default=1.0, help="seconds the judge takes")
    options.add_argument("--rows", default=ROWS)
    options.add_argument("--rounds", type=int, default=2)
    chosen = options.parse_args()
    if chosen.shape:
        check_fits(chosen.shape, gpu_memory())
    model = dummy_model(chosen.shape) if chosen.shape else nullcontext(find_model(chosen.gen_model))
    with model as ref, quietly(NAME) as say:
        asyncio.run(measure(ref, chosen, say))


def gpu_memory() -> int:
    """Bytes of the first GPU, 0 where there is none."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else 0


if __name__ == "__main__":
    main()
