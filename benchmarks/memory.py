"""Predicted against measured memory, with an engine of its own for each batch size; the guide's formula beside it.

    python -m benchmarks.memory

Predicted: weights by the shape's formula, KV cache by what the engine is sized for, capture batch by the budget's bytes
a token. Measured: vLLM's own block count for the cache, and process memory (PSS, shared pages once) above what the
processes held before. Linux gives an untouched page no memory, so a peak counts only the cache that was used.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from typing import Any

from benchmarks.common import GIB, GUIDE, PeakMemory, machine, parser, quietly, record, table, tree_bytes
from benchmarks.stand import SleepingJudge, Stand, whole, workload
from engine.batching import Budget, run_batches
from engine.capture import CaptureRow
from engine.devices import Shape, free_host_memory, token_budget
from engine.generation import on_gpu
from engine.models import EMBEDDED, ModelRef, find_model
from engine.settings import Capture, Speed
from engine.worker import CaptureWorker

NAME = "memory"
ROWS = "1,16,auto"
CAPTURE_ROWS = (1, 8, 32, 128)
KV_SHARE, CAPTURE_SHARE = 1 / 3, 1 / 4
"""Of free memory: what auto sizing may take on a CPU."""
_ITEMSIZE = 2


async def engine_row(ref: ModelRef, batch: str, options: argparse.Namespace) -> dict[str, Any]:
    """Start an engine of that size, fill it once, read its memory."""
    before, free = tree_bytes(), free_host_memory()
    sequences = None if batch == "auto" else int(batch)
    stand = Stand(ref, options.max_new_tokens, batch_size=sequences, captures=False)
    try:
        with PeakMemory(every_s=0.2) as peak:
            await stand.open()
            await stand.run(whole(stand.size.max_num_seqs), SleepingJudge(0.0))
        config = stand.engine._engine.vllm_config.cache_config  # noqa: SLF001 - vLLM's own count of its cache's blocks
        blocks, block_tokens = int(config.num_gpu_blocks), int(config.block_size)
    finally:
        await stand.close()
    shape = Shape.from_config(ref.text_config)
    return {
        "batch": batch,
        "sequences": stand.size.max_num_seqs,
        "free_gib": free / GIB,
        "weights_gib": shape.weight_bytes(_ITEMSIZE) / GIB,
        "kv_predicted_gib": (stand.size.kv_cache_bytes or 0) / GIB,
        "kv_allocated_gib": blocks * block_tokens * shape.kv_bytes_per_token(_ITEMSIZE) / GIB,
        "peak_gib": max(peak.bytes, peak.gpu_bytes) / GIB,
        "above_gib": (peak.bytes - before) / GIB,
    }


async def capture_row(ref: ModelRef, rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """Capture batches of at most that many rows; growth over what the worker held once loaded."""
    samples = workload(ref, whole(max(rows, 4)), options.max_new_tokens)
    new = options.max_new_tokens
    made = [CaptureRow(s.trait, s.id, s.prompt_token_ids, s.prompt_token_ids[:new], new) for s in samples]
    lengths = [len(row.prompt_token_ids) + row.n_pooled for row in made]
    shape, free = Shape.from_config(ref.text_config), free_host_memory()
    limit = token_budget(shape, _ITEMSIZE, free, gpu=on_gpu()).tokens
    budget = Budget(limit, max_rows=rows)
    largest = max(batch.padded_tokens for batch, _ in run_batches(lengths, budget, lambda _: None, lambda _: False))
    worker = CaptureWorker(ref, Capture(), Speed(batch_size=rows, self_check="off"))
    try:
        await worker.start()
        await worker.capture(made[:1])
        loaded = tree_bytes()
        with PeakMemory(every_s=0.2) as peak:
            await worker.capture(made)
    finally:
        await worker.close()
    return {
        "rows": rows,
        "tokens": largest,
        "free_gib": free / GIB,
        "predicted_gib": largest * shape.block_bytes_per_token(_ITEMSIZE) / GIB,
        "measured_gib": max(0, peak.bytes - loaded) / GIB,
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Both tables and whether auto stayed within its shares."""
    header = ["batch", "weights, GiB", "KV predicted, GiB", "KV allocated, GiB", "peak of all processes, GiB"]
    header += ["the guide's 6 + batch, GB", "the guide's table, GB"]
    engines = [
        [
            row["batch"],
            f"{row['weights_gib']:.2f}",
            f"{row['kv_predicted_gib']:.2f}",
            f"{row['kv_allocated_gib']:.2f}",
            f"{row['peak_gib']:.2f}",
            str(6 + row["sequences"]),
            str(GUIDE[row["batch"]][2]) if row["batch"] in GUIDE else "-",
        ]
        for row in result["engines"]
    ]
    captures = [
        [str(row["rows"]), f"{row['tokens']:,}", f"{row['predicted_gib']:.3f}", f"{row['measured_gib']:.3f}"]
        for row in result["captures"]
    ]
    worst_kv = max(row["kv_allocated_gib"] / row["free_gib"] for row in result["engines"])
    worst_capture = max(row["measured_gib"] / row["free_gib"] for row in result["captures"])
    note = (
        f"{result['model']}, responses of up to {result['max_new_tokens']} tokens, bfloat16. The largest cache took "
        f"{worst_kv:.1%} of the memory that was free (budget: {KV_SHARE:.0%}), the largest capture batch "
        f"{worst_capture:.1%} (budget: {CAPTURE_SHARE:.0%}). The guide's formula is Gemma-2-2B's in float16."
    )
    second = table(["capture rows", "tokens of the largest batch", "predicted, GiB", "measured growth, GiB"], captures)
    return f"{note}\n\n{table(header, engines)}\n\n{second}"


async def measure(options: argparse.Namespace, say: Any) -> None:
    facts, ref = machine(), find_model(options.gen_model)
    result: dict[str, Any] = {"model": ref.name, "max_new_tokens": options.max_new_tokens}
    result |= {"engines": [], "captures": []}
    for rows in options.capture_rows:
        result["captures"].append(await capture_row(ref, rows, options))
        say(f"capture of {rows} rows: {result['captures'][-1]['measured_gib']:.3f} GiB")
    for batch in options.rows.split(","):
        result["engines"].append(await engine_row(ref, batch, options))
        say(f"engine for batch {batch}: peak {result['engines'][-1]['peak_gib']:.2f} GiB")
        record(options.out, NAME, facts, result)
    say(markdown(result))


def main() -> None:
    options = parser(NAME, __doc__)
    options.add_argument("--gen_model", default=EMBEDDED)
    options.add_argument("--rows", default=ROWS)
    options.add_argument("--capture_rows", type=int, nargs="+", default=CAPTURE_ROWS)
    options.add_argument("--max_new_tokens", type=int, default=16)
    chosen = options.parse_args()
    with quietly(NAME) as say:
        asyncio.run(measure(chosen, say))


if __name__ == "__main__":
    main()
