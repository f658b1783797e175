"""The guide's batch-size table on this machine: generation and the whole job at `--batch_size` 1,
4, 8, ... and auto.

    python -m benchmarks.batch_size                        # the embedded model
    python -m benchmarks.batch_size --n_examples 200       # the guide's number of samples
    python -m benchmarks.batch_size --shape gemma-2-9b     # a GPU: random weights, forced lengths, generation only
    python -m benchmarks.batch_size --shape gemma-2-9b --capture     # the same weights in a file, so capture runs too

Each row is an engine and a capture worker sized as `traitmill generate --batch_size N` sizes them,
loaded and warmed up apart. All rows run the same samples with the same seeds; rows take turns
within a round, in turned order in every other one, and speedups are taken within it. Memory is the
highest of all processes from the load to the last file, and on a GPU that of the device.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from benchmarks.common import (
    GUIDE,
    PeakMemory,
    Say,
    machine,
    paragraphs,
    parser,
    quietly,
    record,
    shown,
    spread,
    table,
    turned,
)
from benchmarks.shapes import (
    SHAPES,
    DummyEngine,
    ForcedEngine,
    check_fits,
    dummy_model,
    gpu_memory,
)
from benchmarks.stand import Run, SleepingJudge, Stand, whole, workload
from traitmill.engine.generation import VllmEngine
from traitmill.engine.models import EMBEDDED, ModelRef, find_model

NAME = "batch_size"
ROWS = "1,4,8,16,32,64,auto"


async def measure(ref: ModelRef, options: argparse.Namespace, say: Say) -> None:
    """Run all rounds, storing what there is after each."""
    facts, n, batches = machine(), whole(options.n_examples), options.rows.split(",")
    prompts = [len(sample.prompt_token_ids) for sample in workload(ref, n, options.max_new_tokens)]
    rounds: list[dict[str, Measured]] = []

    def figures(so_far: Sequence[Mapping[str, Measured]]) -> dict[str, Any]:
        """Return what is stored; a round cut off holds some of the rows."""
        return {
            "model": ref.name,
            "random_weights": options.shape is not None,
            "captured": captures(options),
            "prompt_tokens": statistics.fmean(prompts),
            "samples": n,
            "max_new_tokens": options.max_new_tokens,
            "judge_latency_s": options.latency,
            "rounds": len(so_far),
            "rows": [row(batch, so_far, batches[0]) for batch in batches if batch in so_far[0]],
        }

    for number in range(1, options.rounds + 1):
        measured: dict[str, Measured] = {}
        for batch in turned(batches, number - 1):
            measured[batch] = await _row(ref, batch, n, options)
            run = measured[batch].run
            say(
                f"round {number}, batch {batch}: {run.tokens_per_s:.1f} tokens/s, "
                f"{run.makespan:.1f} s in all"
            )
            if number == 1:  # row by row: what is stopped at its limit keeps what it has
                record(options.out, NAME, facts, figures([measured]), options.shape)
        rounds.append(measured)
        record(options.out, NAME, facts, figures(rounds), options.shape)
    say(markdown({**figures(rounds), "command": "", "machine": facts}))


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
    kind = VllmEngine if options.shape is None else ForcedEngine if options.capture else DummyEngine
    stand = Stand(
        ref, options.max_new_tokens, batch_size=size, engine=kind, captures=captures(options)
    )
    try:
        with PeakMemory(every_s=2.0) as peak:
            await stand.open()
            run = await stand.run(n, SleepingJudge(options.latency), close_engine=True)
    finally:
        await stand.close()
    return Measured(run, stand.load_s, stand.size.max_num_seqs, **peak.as_json())


def captures(options: argparse.Namespace) -> bool:
    """Whether the whole job includes capture: not where the weights are vLLM's own."""
    return options.shape is None or options.capture


def row(batch: str, rounds: Sequence[Mapping[str, Measured]], first: str) -> dict[str, Any]:
    """A row's figures over the rounds so far; speedups are ratios within a round to the row
    `first`."""
    own = [measured[batch] for measured in rounds]
    runs = [measured.run for measured in own]
    firsts = [measured[first].run for measured in rounds]
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
    rows = []
    for line in result["rows"]:
        minutes, times, gigabytes = map(str, GUIDE.get(line["batch"], ("-", "-", "-")))
        cells = [line["batch"], shown(line["generation_s"]), shown(line["tokens_per_s"])]
        cells += [f"{line['running'][0]:.1f}", shown(line["speedup"], 1, "x")]
        cells += [times if times == "-" else f"{times}x", shown(line["job_s"])]
        cells += [shown(line["job_speedup"], 1, "x"), minutes, _memory(line), gigabytes]
        rows.append(cells)
    header = "batch | generation, s | tokens/s | running | speedup | the guide's | whole job, s"
    header += " | speedup | the guide's, min | memory, GiB | the guide's, GB"
    return paragraphs(_note(result), table(header, rows))


def _note(result: Mapping[str, Any]) -> str:
    weights = ""
    if result["random_weights"]:
        weights = " Weights are random and every response is forced to its limit."
    job = f"The whole job has a judge of {result['judge_latency_s']:g} s, "
    captured = "captures every response and writes all files"
    job += captured if result["captured"] else "and captures nothing"
    auto = next((line for line in result["rows"] if line["batch"] == "auto"), None)
    loads = [line["load_s"][0] for line in result["rows"]]
    return (
        f"{result['model']}, the same {result['samples']} samples of up to "
        f"{result['max_new_tokens']} tokens in every row; rounds: {result['rounds']}, medians "
        f"(least to most), of memory the most. {job}; its speedup is by time, generation's by "
        "tokens a second, both over the first row in the same round. `running` is the mean number "
        "of sequences in a step of vLLM's, the last steps with few of them included. "
        f"{_auto(auto, result['samples'])}Loading the models took {min(loads):.0f} to "
        f"{max(loads):.0f} s more, in no column.{weights} The guide's minutes are for 200 samples "
        "of up to 150 tokens on a GPU it does not name."
    )


def _auto(row: Mapping[str, Any] | None, samples: int) -> str:
    if row is None:
        return ""
    all_at_once = f", so all {samples} samples at once" if samples <= row["sequences"] else ""
    return f"`auto` allows {row['sequences']} sequences{all_at_once}. "


def readme_table(result: Mapping[str, Any]) -> str:
    """The README's short form: measured beside claimed."""
    rows = []
    for line in result["rows"]:
        claim = GUIDE.get(line["batch"])
        rows.append(
            f"{line['batch']} | {line['tokens_per_s'][0]:.0f} | {line['speedup'][0]:.1f}x | "
            f"{f'{claim[1]}x' if claim else '-'} | {line['job_speedup'][0]:.1f}x | "
            f"{_memory(line)} GiB"
        )
    header = "`--batch_size` | tokens/s | speedup | the guide's | whole job | memory"
    where = result["machine"]
    note = (
        f"`{result['command']}`: {result['model']}, {where['cpu']}, {where['cores']} cores, "
        f"{where['date']}; {result['samples']} samples of up to {result['max_new_tokens']} tokens, "
        f"rounds: {result['rounds']}, medians. The whole job is generation, a judge that takes "
        f"{result['judge_latency_s']:g} s, capture of all layers, and files; its speedup is by "
        "time. The guide's column is its claim for a 2B model on a GPU. More, with ranges and "
        "baselines: [benchmarks](docs/benchmarks.md)."
    )
    return paragraphs(table(header, rows), note)


def main() -> None:
    options = parser(NAME, __doc__)
    options.add_argument("--gen_model", default=EMBEDDED)
    options.add_argument(
        "--shape", choices=SHAPES, help="random weights of this shape instead of a model"
    )
    options.add_argument(
        "--capture", action="store_true", help="write the shape's weights, so that capture runs too"
    )
    options.add_argument(
        "--n_examples", type=int, default=80, help="samples of every row, all sides together"
    )
    options.add_argument("--max_new_tokens", type=int, default=48)
    options.add_argument("--latency", type=float, default=1.0, help="seconds the judge takes")
    options.add_argument("--rows", default=ROWS)
    options.add_argument("--rounds", type=int, default=2)
    chosen = options.parse_args()
    if chosen.shape:
        check_fits(chosen.shape, gpu_memory())
    if chosen.capture and not chosen.shape:
        options.error("--capture is for --shape; a model is always captured")
    model: Any = nullcontext(find_model(chosen.gen_model))
    if chosen.shape:
        model = dummy_model(chosen.shape, weights=chosen.capture)
    with model as ref, quietly(NAME) as say:
        asyncio.run(measure(ref, chosen, say))


if __name__ == "__main__":
    main()
