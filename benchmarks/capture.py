"""The capture pass against the guide's method and a kept `[layers, rows, tokens, dim]` stack: speed, memory, shares.

    python -m benchmarks.capture                 # SmolLM2-135M, about 5 minutes on 2 cores
    python -m benchmarks.capture --flat 100000   # 100,000 rows of a tiny model instead: flat memory, linear time
    python -m benchmarks.capture --busy          # on a machine with other work: one thread, CPU seconds

Rows are ragged as real ones are: prompts of 40 to 90 tokens, responses log-normal around 50, cut to 8..150, the
guide's max_new_tokens (lengths and ids are drawn from a fixed seed). All methods run in one process, on the same
rows, one after the other in each round, so that a noisy machine disturbs them alike; medians over rounds and ratios of
medians are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from engine.batching import Batch, Budget, padding_share, run_batches
from engine.capture import CaptureModel, CaptureRow
from engine.models import embedded_folder
from engine.pools import Pooler, pool_weights
from engine.settings import Capture

RESULTS = Path(__file__).parent / "results" / "capture.json"


def ragged_rows(n: int, vocab: int, seed: int = 0, *, longest: int = 150) -> list[CaptureRow]:
    """Rows of ragged lengths and random ids."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(n):
        prompt = rng.integers(3, vocab, rng.integers(40, 91))
        response = rng.integers(3, vocab, int(np.clip(rng.lognormal(np.log(50), 0.6), 8, longest)))
        tokens = (tuple(map(int, prompt)), tuple(map(int, response)))
        rows.append(CaptureRow("bench", f"{index:032x}", *tokens, len(response)))
    return rows


def length(row: CaptureRow) -> int:
    return len(row.prompt_token_ids) + row.n_pooled


@dataclass
class Held:
    """Bytes of activations alive when a batch's forward has ended, at their highest."""

    bytes: int = 0

    def note(self, *tensors: torch.Tensor) -> None:
        self.bytes = max(self.bytes, sum(tensor.nbytes for tensor in tensors))


def padded(rows: Sequence[CaptureRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask `[rows, width]`, padded on the right with zeros."""
    width = max(map(length, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : length(row)] = torch.tensor([*row.prompt_token_ids, *row.response_token_ids])
        mask[place, : length(row)] = 1
    return ids, mask


def in_arrival_order(rows: Sequence[CaptureRow], size: int) -> Iterator[Sequence[CaptureRow]]:
    yield from (rows[start : start + size] for start in range(0, len(rows), size))


def means_of(states: Sequence[torch.Tensor], rows: Sequence[CaptureRow]) -> torch.Tensor:
    """`[rows, layers, dim]`: response means of kept states, a row at a time."""
    found = []
    for place, row in enumerate(rows):
        start = len(row.prompt_token_ids)
        span = slice(start, start + row.n_pooled)
        found.append(torch.stack([state[place, span].float().mean(0) for state in states]))
    return torch.stack(found)


@torch.inference_mode()
def guide_method(model: Any, rows: Sequence[CaptureRow], size: int, held: Held) -> None:
    """Full model with LM head, every state kept, padded batches with a mask in arrival order, means after."""
    for chosen in in_arrival_order(rows, size):
        ids, mask = padded(chosen)
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        means_of(out.hidden_states[1:], chosen)
        held.note(*out.hidden_states, out.logits)


@torch.inference_mode()
def without_head(model: Any, rows: Sequence[CaptureRow], size: int, held: Held) -> None:
    """The guide's method on the base model."""
    for chosen in in_arrival_order(rows, size):
        ids, mask = padded(chosen)
        out = model.base_model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        means_of(out.hidden_states[1:], chosen)
        held.note(*out.hidden_states)


@torch.inference_mode()
def kept_stack(model: Any, rows: Sequence[CaptureRow], size: int, held: Held) -> None:
    """Hooks whose outputs are stacked to `[layers, rows, tokens, dim]` and averaged afterwards."""
    blocks: Sequence[nn.Module] = model.model.layers
    for chosen in in_arrival_order(rows, size):
        ids, mask = padded(chosen)
        states: list[torch.Tensor] = []
        handles = [block.register_forward_hook(lambda _m, _a, out, keep=states: keep.append(out)) for block in blocks]
        model(input_ids=ids, attention_mask=mask, use_cache=False)
        for handle in handles:
            handle.remove()
        stack = torch.stack(states)
        spans = torch.zeros(len(chosen), ids.shape[1])
        for place, row in enumerate(chosen):
            start = len(row.prompt_token_ids)
            spans[place, start : start + row.n_pooled] = 1 / row.n_pooled
        torch.einsum("lbsd,bs->bld", stack, spans.to(stack.dtype)).float()
        held.note(*states, stack)


@torch.inference_mode()
def pooled_in_hooks(model: Any, batches: Sequence[Sequence[CaptureRow]], held: Held, *, masked: bool) -> None:
    """Base model with pooling hooks; nothing of a token's states is kept."""
    blocks = list(model.model.layers)
    for chosen in batches:
        ids, mask = padded(chosen)
        weights = pool_weights(
            ("response_mean",), [(len(row.prompt_token_ids), row.n_pooled) for row in chosen], ids.shape[1]
        )
        pooler = Pooler(weights, len(blocks), model.config.hidden_size, torch.device("cpu"))
        handles = [
            block.register_forward_hook(lambda _m, _a, out, slot=slot, pooler=pooler: pooler.take(slot, out))
            for slot, block in enumerate(blocks)
        ]
        model.base_model(input_ids=ids, attention_mask=mask if masked else None, use_cache=False)
        for handle in handles:
            handle.remove()
        held.note(pooler.pooled, weights)


def sorted_batches(rows: Sequence[CaptureRow], tokens: int) -> list[list[CaptureRow]]:
    found = run_batches([length(row) for row in rows], Budget(tokens), lambda batch: batch, lambda _error: False)
    return [[rows[index] for index in batch.indices] for batch, _ in found]


Methods = dict[str, Callable[[Held], Any]]
Clock = Callable[[], float]


def measure(methods: Methods, tokens: int, rounds: int, clock: Clock) -> dict[str, dict[str, float]]:
    """Median tokens/s (real tokens, no padding) and activation bytes of each method, run in turn `rounds` times."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    held = {name: Held() for name in methods}
    for turn in range(rounds + 1):  # the first is a warm-up
        for name, method in methods.items():
            start = clock()
            method(held[name])
            if turn:
                seconds[name].append(clock() - start)
                print(f"  round {turn}: {name}: {tokens / seconds[name][-1]:,.0f} tokens/s", file=sys.stderr)
    return {
        name: {
            "tokens_per_s": tokens / statistics.median(times),
            "spread": max(times) / min(times),
            "held_bytes": float(held[name].bytes),
        }
        for name, times in seconds.items()
    }


def matrix_limit(model: Any, tokens: int) -> Callable[[Held], Any]:
    """The blocks' matrix products alone, on as many tokens as the rows have, in batches of 1,024."""
    linears = [module for block in model.model.layers for module in block.modules() if isinstance(module, nn.Linear)]
    inputs = {linear.in_features: torch.randn(1024, linear.in_features, dtype=model.dtype) for linear in linears}

    @torch.inference_mode()
    def run(_held: Held) -> None:
        for start in range(0, tokens, 1024):
            for linear in linears:
                linear(inputs[linear.in_features][: min(1024, tokens - start)])

    return run


def outside_the_forward(ours: CaptureModel, rows: Sequence[CaptureRow], clock: Clock) -> float:
    """Share of `capture`'s time that is not the model's forward."""
    forward, inside = ours.forward, 0.0

    def timed(*arguments: Any) -> None:
        nonlocal inside
        start = clock()
        forward(*arguments)
        inside += clock() - start

    ours.forward = timed  # type: ignore[method-assign]
    start = clock()
    ours.capture(rows)
    total = clock() - start
    del ours.forward  # type: ignore[method-assign]
    return 1 - inside / total


def compare(n_rows: int, rounds: int, threads: int, clock: Clock) -> dict[str, Any]:
    """Every number of the tables but the flat-memory run."""
    torch.set_num_threads(threads)
    folder = str(embedded_folder())

    def load(**options: Any) -> CaptureModel:
        return CaptureModel(folder, options.pop("capture", Capture()), **{"self_check": "off", **options})

    ours, checked = load(), load(self_check="sample")
    in_float32 = load(capture=Capture(dtype="float32"))
    model = ours._model  # noqa: SLF001  the baselines run the very same weights
    rows = ragged_rows(n_rows, model.config.vocab_size)
    tokens = sum(map(length, rows))
    spans = sorted_batches(rows, ours.budget.limit)
    arrival = list(in_arrival_order(rows, 8))
    pooled_bytes = ours.capture(rows[:1])[0].pools["response_mean"].nbytes

    def run_ours(held: Held) -> None:
        ours.capture(rows)
        held.bytes = max(pooled_bytes * len(batch) for batch in spans)

    def one_thread(_held: Held) -> None:
        torch.set_num_threads(1)
        ours.capture(rows)
        torch.set_num_threads(threads)

    methods: Methods = {
        **{f"guide, batch {n}": lambda held, n=n: guide_method(model, rows, n, held) for n in (1, 4, 8, 16)},
        "stack kept, batch 16": lambda held: kept_stack(model, rows, 16, held),
        "step: no LM head": lambda held: without_head(model, rows, 8, held),
        "step: pooled in hooks": lambda held: pooled_in_hooks(model, arrival, held, masked=True),
        "step: sorted, 1,024 tokens": lambda held: pooled_in_hooks(model, spans, held, masked=True),
        "step: no mask": lambda held: pooled_in_hooks(model, spans, held, masked=False),
        "traitmill": run_ours,
        "traitmill, self-check": lambda _held: checked.capture(rows),
        **({"traitmill, one thread": one_thread} if threads > 1 else {}),
        "traitmill, float32": lambda _held: in_float32.capture(rows),
        "matrix products alone": matrix_limit(model, tokens),
    }
    found = measure(methods, tokens, rounds, clock)
    lengths = [length(row) for row in rows]
    as_batches = [
        [Batch(tuple(range(len(part))), max(map(length, part))) for part in parts] for parts in (arrival, spans)
    ]
    return {
        "rows": n_rows,
        "tokens": tokens,
        "rounds": rounds,
        "threads": threads,
        "clock": "CPU" if clock is time.process_time else "wall",
        "dtype": ours.dtype,
        "methods": found,
        "padding": {
            "arrival, batch 8": padding_share(lengths, as_batches[0]),
            "sorted": padding_share(lengths, as_batches[1]),
        },
        "outside_forward": statistics.median(outside_the_forward(ours, rows, clock) for _ in range(3)),
        "budget": budget_sweep(ours, rows, tokens, min(rounds, 3), clock),
    }


def budget_sweep(
    ours: CaptureModel, rows: Sequence[CaptureRow], tokens: int, rounds: int, clock: Clock
) -> dict[str, float]:
    """Tokens/s by batch budget."""

    def at(limit: int) -> Callable[[Held], Any]:
        def run(_held: Held) -> None:
            ours.budget.now = ours.budget.limit = limit
            ours.capture(rows)

        return run

    limits = (256, 512, 1024, 2048, 4096)
    found = measure({str(limit): at(limit) for limit in limits}, tokens, rounds, clock)
    return {name: numbers["tokens_per_s"] for name, numbers in found.items()}


def flat(n_rows: int) -> dict[str, Any]:
    """`n_rows` through a tiny model in calls of 2,000: resident memory and seconds of each tenth."""
    import psutil
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=2,
    )
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        model = CaptureModel(folder, Capture())
        values = np.lib.format.open_memmap(Path(folder) / "all.npy", "w+", np.float32, (n_rows, 2, 16))
        process, memory, seconds, done = psutil.Process(), [], [], count(1)
        marks = {n_rows * tenth // 10 for tenth in range(1, 11)}
        rng = np.random.default_rng(0)
        started, at = time.perf_counter(), 0
        step = min(2000, n_rows // 10)
        for start in range(0, n_rows, step):
            sizes = rng.integers(3, 12, (step, 2))
            rows = [
                CaptureRow("flat", f"{start + i:032x}", (5,) * int(p), (7,) * int(r), int(r))
                for i, (p, r) in enumerate(sizes)
            ]
            for result in model.capture(rows):
                values[at] = result.pools["response_mean"]
                at += 1
            if at in marks:
                now = process.memory_info()
                memory.append(now.rss - now.shared)  # the output's own mapped pages are shared ones
                seconds.append(time.perf_counter() - started)
                print(f"  {next(done)}0 %: {memory[-1] / 2**20:.0f} MiB, {seconds[-1]:.1f} s", file=sys.stderr)
    tenths = np.diff([0.0, *seconds])
    return {
        "rows": at,
        "growth_mib_after_first_tenth": (max(memory[1:]) - memory[0]) / 2**20,
        "seconds": seconds[-1],
        "slowest_over_median_tenth": float(tenths.max() / np.median(tenths)),
        "last_half_over_first_half": float(tenths[5:].sum() / tenths[:5].sum()),
    }


def markdown(found: dict[str, Any]) -> str:
    """The tables of docs/capture.md, of what has been measured so far."""
    parts = [method_tables(found["methods"])] if "methods" in found else []
    if "flat" in found:
        run = found["flat"]
        parts.append(
            f"{run['rows']:,} rows of a tiny model in {run['seconds']:.0f} s ({run['machine']}): memory grew by "
            f"{run['growth_mib_after_first_tenth']:.1f} MiB after the first tenth; the second half took "
            f"{run['last_half_over_first_half']:.2f} times the first."
        )
    return "\n\n".join(parts)


def method_tables(found: dict[str, Any]) -> str:
    methods = found["methods"]
    ours = methods["traitmill"]["tokens_per_s"]
    padding = found["padding"]
    head = (
        f"SmolLM2-135M, {found['dtype']}, {found['machine']}, {found['threads']} threads; {found['rows']} rows, "
        f"{found['tokens']:,} tokens; medians of {found['rounds']} interleaved rounds, {found['clock']} time."
    )
    shares = (
        f"Padding: {padding['arrival, batch 8']:.1%} of the tokens computed in batches of 8 in arrival order, "
        f"{padding['sorted']:.1%} sorted. Outside the forward: {found['outside_forward']:.1%} of capture's time. "
        f"Share of the matrix products' own speed: {ours / methods['matrix products alone']['tokens_per_s']:.0%}."
    )
    lines = [head, "", "| method | tokens/s | traitmill is | activations held |", "| --- | ---: | ---: | ---: |"]
    for name, numbers in methods.items():
        held = f"{numbers['held_bytes'] / 2**20:.1f} MiB" if numbers["held_bytes"] else ""
        lines.append(f"| {name} | {numbers['tokens_per_s']:,.0f} | {ours / numbers['tokens_per_s']:.2f}x | {held} |")
    budgets = found["budget"]
    lines += ["", shares, "", f"| batch budget, tokens | {' | '.join(budgets)} |", "| --- |" + " ---: |" * len(budgets)]
    lines.append(f"| tokens/s | {' | '.join(f'{value:,.0f}' for value in budgets.values())} |")
    return "\n".join(lines)


def machine() -> str:
    """The processor and what of it this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = named[0] if named else name
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--busy", action="store_true", help="one thread, CPU seconds instead of wall time")
    parser.add_argument("--flat", type=int, metavar="ROWS", help="run so many rows of a tiny model instead")
    chosen = parser.parse_args()
    threads, clock = (1, time.process_time) if chosen.busy else (chosen.threads, time.perf_counter)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if chosen.flat:
        found["flat"] = {"machine": machine(), **flat(chosen.flat)}
    else:
        found["methods"] = {"machine": machine(), **compare(chosen.rows, chosen.rounds, threads, clock)}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(markdown(found))


if __name__ == "__main__":
    main()
