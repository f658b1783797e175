"""The guide's batch-size table on this machine: generation and the whole job at `--batch_size` 1, 4, 8, ... and auto.

    python -m benchmarks.batch_size                        # the embedded model
    python -m benchmarks.batch_size --n_examples 200       # the guide's number of samples
    python -m benchmarks.batch_size --shape gemma-2-9b     # a GPU: random weights, forced lengths, generation only

Each row is an engine and a capture worker sized as `traitmill generate --batch_size N` sizes them, loaded and warmed up
apart. All rows run the same samples with the same seeds; rows alternate within a round, and speedups are taken within
it. Memory is the highest of all processes from the load to the last file, and on a GPU that of the device.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from benchmarks.common import (
    GUIDE,
    PeakMemory,
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
from benchmarks.stand import Run, SleepingJudge, Stand, whole
from engine.models import EMBEDDED, ModelRef, find_model

NAME = "batch_size"
ROWS = "1,4,8,16,32,64,auto"


async def measure(ref: ModelRef, options: argparse.Namespace, say: Say) -> None:
    """Run all rounds, storing what there is after each."""
    facts, n = machine(), whole(options.n_examples)
    rounds: list[dict[str, Measured]] = []
    for number in range(1, options.rounds + 1):
        measured = {}
        for batch in options.rows.split(","):
            measured[batch] = await _row(ref, batch, n, options)
            run = measured[batch].run
            say(f"round {number}, batch {batch}: {run.tokens_per_s:.1f} tokens/s, {run.makespan:.1f} s in all")
        rounds.append(measured)
        figures = {
            "model": ref.name,
            "dummy": options.shape is not None,
            "samples": n,
            "max_new_tokens": options.max_new_tokens,
            "judge_latency_s": options.latency,
            "rounds": number,
            "rows": [row(batch, rounds) for batch in measured],
        }
        record(options.out, NAME, facts, figures, options.shape)
    say(markdown({**figures, "command": "", "machine": facts}))


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of one round."""

    run: Run
    load_s: float
    sequences: int
    """The engine's limit."""
    memory_gib: float
    gpu_memory_gib: float


async def _row(ref: ModelRef, batch: str, n: int, options: argparse.Namespace) -> Measured:
    size = None if batch == "auto" else int(batch)
    stand = Stand(ref, options.max_new_tokens, batch_size=size, dummy=options.shape is not None)
    try:
        with PeakMemory(every_s=2.0) as peak:
            await stand.open()
            run = await stand.run(n, SleepingJudge(options.latency), close_engine=True)
    finally:
        await stand.close()
    return Measured(run, stand.load_s, stand.size.max_num_seqs, **peak.as_json())


def row(batch: str, rounds: Sequence[Mapping[str, Measured]]) -> dict[str, Any]:
    """A row's figures over the rounds so far; speedups are ratios within a round to its first row."""
    own = [measured[batch] for measured in rounds]
    runs = [measured.run for measured in own]
    firsts = [next(iter(measured.values())).run for measured in rounds]
    pairs = list(zip(runs, firsts, strict=True))
    return {
        "batch": batch,
        "sequences": own[-1].sequences,
        "tokens": runs[-1].tokens,
        "load_s": spread(measured.load_s for measured in own),
        "generation_s": spread(run.seconds["generation"] for run in runs),
        "tokens_per_s": spread(run.tokens_per_s for run in runs),
        "speedup": spread(run.tokens_per_s / first.tokens_per_s for run, first in pairs),
        "job_s": spread(run.makespan for run in runs),
        "job_speedup": spread(first.makespan / run.makespan for run, first in pairs),
        "running": spread(run.running for run in runs),
        "memory_gib": max(measured.memory_gib for measured in own),
        "gpu_memory_gib": max(measured.gpu_memory_gib for measured in own),
    }


def _memory(line: Mapping[str, Any]) -> str:
    return f"{line['gpu_memory_gib'] or line['memory_gib']:.1f}"


def markdown(result: Mapping[str, Any]) -> str:
    """The table, with the guide's claims beside it."""
    header = ["batch", "generation, s", "tokens/s", "running", "speedup", "the guide's", "whole job, s", "speedup"]
    header += ["the guide's, min", "memory, GiB", "the guide's, GB"]
    rows = []
    for line in result["rows"]:
        minutes, times, gigabytes = map(str, GUIDE.get(line["batch"], ("-", "-", "-")))
        rows.append([
            line["batch"],
            shown(line["generation_s"]),
            shown(line["tokens_per_s"]),
            f"{line['running'][0]:.1f}",
            shown(line["speedup"], 1, "x"),
            times if times == "-" else f"{times}x",
            shown(line["job_s"]),
            shown(line["job_speedup"], 1, "x"),
            minutes,
            _memory(line),
            gigabytes,
        ])  # fmt: skip
    weights = " Weights are random and every response is forced to its limit; nothing is captured." * result["dummy"]
    loads = [line["load_s"][0] for line in result["rows"]]
    note = (
        f"{result['model']}, the same {result['samples']} samples of up to {result['max_new_tokens']} tokens in every "
        f"row, {result['rounds']} rounds, medians (least to most). The whole job has a judge of "
        f"{result['judge_latency_s']:g} s, captures every response and writes all files; its speedup is by time, "
        "generation's by tokens a second, of the same round. `running` is the mean of vLLM's steps, the end included. "
        f"auto is {result['rows'][-1]['sequences']} sequences. Loads are apart ({min(loads):.0f} to {max(loads):.0f} "
        f"s).{weights} The guide's minutes are for 200 samples on a GPU it does not name."
    )
    return f"{note}\n\n{table(header, rows)}"


def readme_table(result: Mapping[str, Any]) -> str:
    """The README's short form: measured beside claimed."""
    rows = []
    for line in result["rows"]:
        claim = GUIDE.get(line["batch"])
        rows.append([
            line["batch"],
            f"{line['tokens_per_s'][0]:.0f}",
            f"{line['speedup'][0]:.1f}x",
            f"{claim[1]}x" if claim else "-",
            f"{line['job_speedup'][0]:.1f}x",
            f"{_memory(line)} GiB",
        ])  # fmt: skip
    header = ["`--batch_size`", "tokens/s", "speedup", "the guide's", "whole job", "memory"]
    where = result["machine"]
    note = (
        f"`{result['command']}`: {result['model']}, {where['cpu']}, {where['cores']} cores, {where['date']}; "
        f"{result['samples']} samples, medians of {result['rounds']} rounds. More, with ranges and baselines: "
        "[benchmarks](docs/benchmarks.md)."
    )
    return f"{table(header, rows)}\n\n{note}"


def main() -> None:
    options = parser(NAME, __doc__)
    options.add_argument("--gen_model", default=EMBEDDED)
    options.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead of a model")
    options.add_argument("--n_examples", type=int, default=80, help="samples of every row, all sides together")
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
