"""Predicted against measured memory, with an engine of its own for each batch size; the guide's
formula beside it.

    python -m benchmarks.memory

Predicted: weights by the shape's formula, KV cache by what the engine is sized for, capture batch
by the budget's bytes a token. Measured: weights as transformers builds the model, vLLM's own block
count for the cache, and memory (of all processes, shared pages once; of the device on a GPU) above
what was held before. One engine is told that little memory is free, so that auto sizing has to give
way.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from typing import Any

from benchmarks.common import (
    GIB,
    GUIDE,
    PeakMemory,
    Say,
    machine,
    paragraphs,
    parser,
    quietly,
    record,
    table,
)
from benchmarks.stand import SleepingJudge, Stand, whole, workload
from tests.support.rows import response_row
from traitmill.engine.capture import CaptureProcess
from traitmill.engine.capture.batching import Budget, run_batches
from traitmill.engine.generation import on_gpu
from traitmill.engine.models import (
    EMBEDDED,
    ModelRef,
    Shape,
    find_model,
    free_host_memory,
    token_budget,
)
from traitmill.engine.settings import CaptureSettings, Execution

NAME = "memory"
ROWS = "1,16,auto"
CAPTURE_ROWS = (1, 8, 32, 128)
TIGHT, TIGHT_BYTES = "auto, little free", 600 << 20
KV_SHARE, CAPTURE_SHARE = 1 / 3, 1 / 4
"""Of free memory: what auto sizing may take on a CPU."""
_ITEMSIZE = 2


async def engine_row(ref: ModelRef, batch: str, options: argparse.Namespace) -> dict[str, Any]:
    """Start an engine of that size, fill it once, read its memory."""
    free = TIGHT_BYTES if batch == TIGHT else free_memory()
    # On a GPU the cache is sized only where capture is to fit beside it.
    stand = Stand(
        ref,
        options.max_new_tokens,
        batch_size=int(batch) if batch.isdecimal() else None,
        captures=on_gpu(),
        free_bytes=free,
    )
    try:
        with PeakMemory(every_s=0.2) as peak:
            await stand.open()
            size = stand.size
            await stand.run(whole(size.max_num_seqs), SleepingJudge(0.0))
        config = stand.engine._engine.vllm_config.cache_config  # noqa: SLF001 - vLLM's own count of its cache's blocks
        tokens = int(config.num_gpu_blocks) * int(config.block_size)
    finally:
        await stand.close()
    shape = Shape.from_config(ref.config)
    # vLLM counts the blocks of alternating layer types by group: all groups share the same memory.
    groups = len(set(getattr(config_of(ref).get_text_config(), "layer_types", None) or [""]))
    return {
        "batch": batch,
        "sequences": size.max_num_seqs,
        "free_gib": free / GIB,
        "weights_gib": shape.weight_bytes(_ITEMSIZE) / GIB,
        "kv_predicted_gib": (size.kv_cache_bytes or 0) / GIB,
        "kv_allocated_gib": tokens * shape.kv_bytes_per_token(_ITEMSIZE) / groups / GIB,
        "peak_gib": held(peak) / GIB,
    }


def held(peak: PeakMemory) -> int:
    """Bytes of the device on a GPU, else of all processes."""
    return peak.gpu_bytes or peak.bytes


def free_memory() -> int:
    """Bytes that are free where models go."""
    import torch

    return int(torch.cuda.mem_get_info()[0]) if on_gpu() else free_host_memory()


def config_of(ref: ModelRef) -> Any:
    """transformers' configuration: it knows what a config.json leaves out."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(ref.source, revision=ref.hub_revision)


def built_weights(ref: ModelRef) -> int:
    """Bytes of the model's weights in 16 bits, as transformers builds it; none are loaded."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(ref))
    return _ITEMSIZE * int(sum(parameter.numel() for parameter in model.parameters()))


async def capture_row(ref: ModelRef, rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """Capture batches of at most that many rows; growth over what the worker held once loaded."""
    samples = workload(ref, whole(max(rows, 4)), options.max_new_tokens)
    new = options.max_new_tokens
    made = [response_row(s.id, s.prompt_token_ids, s.prompt_token_ids[:new], new) for s in samples]
    lengths = [len(row.sample.prompt_token_ids) + row.n_pooled for row in made]
    shape, free = Shape.from_config(ref.config), free_memory()
    limit = token_budget(shape, _ITEMSIZE, free, gpu=on_gpu()).tokens
    budget = Budget(limit, max_rows=rows)
    largest = max(
        batch.padded_tokens
        for batch, _ in run_batches(lengths, budget, lambda _: None, lambda _: False)
    )
    worker = CaptureProcess(
        ref.source,
        ref.hub_revision,
        CaptureSettings(),
        Execution(batch_size=rows, self_check="off"),
    )
    try:
        await worker.start()
        await worker.capture(made[:1])
        with PeakMemory(every_s=10.0) as loaded:
            pass
        with PeakMemory(every_s=0.2) as peak:
            await worker.capture(made)
    finally:
        await worker.close()
    return {
        "rows": rows,
        "tokens": largest,
        "free_gib": free / GIB,
        "predicted_gib": largest * shape.block_bytes_per_token(_ITEMSIZE) / GIB,
        "measured_gib": max(0, held(peak) - held(loaded)) / GIB,
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Both tables and whether auto stayed within its shares."""
    engines = []
    for row in result["engines"]:
        batch = row["batch"]
        formula = str(6 + row["sequences"]) if batch.isdecimal() else "-"
        engines.append(
            f"{batch} | {row['weights_gib']:.3f} | {result['built_gib']:.3f} | "
            f"{row['free_gib']:.1f} | {row['kv_predicted_gib']:.2f} | "
            f"{row['kv_allocated_gib']:.2f} | {row['peak_gib']:.2f} | {formula} | "
            f"{GUIDE[batch][2] if batch in GUIDE else '-'}"
        )
    captures = [
        f"{row['rows']} | {row['tokens']:,} | {row['predicted_gib']:.3f} | "
        f"{row['measured_gib']:.3f}"
        for row in result["captures"]
    ]
    worst_kv = max(row["kv_allocated_gib"] / row["free_gib"] for row in result["engines"])
    worst_capture = max(row["measured_gib"] / row["free_gib"] for row in result["captures"])
    note = (
        f"{result['model']}, responses of up to {result['max_new_tokens']} tokens, bfloat16. The "
        f"largest cache took {worst_kv:.1%} of the memory that was free (budget on a CPU: "
        f"{KV_SHARE:.0%}), the largest capture batch {worst_capture:.1%} (budget: "
        f"{CAPTURE_SHARE:.0%}). In the last row the engine was told that so little is free, and "
        "all its sequences were asked for. Peaks are looked for five times a second; Linux gives "
        "an untouched page no memory, so they hold of the cache what was used. A capture's growth "
        "includes the finished vectors, in the worker and where they arrive. The guide's formula "
        "and table are Gemma-2-2B's in float16."
    )
    first = "batch | weights predicted, GiB | weights built, GiB | free, GiB | KV predicted, GiB"
    first += " | KV allocated, GiB | peak of all processes, GiB | the guide's 6 + batch, GB"
    second = "capture rows | tokens of the largest batch | predicted, GiB | measured growth, GiB"
    return paragraphs(
        note, table(f"{first} | the guide's table, GB", engines), table(second, captures)
    )


async def measure(options: argparse.Namespace, say: Say) -> None:
    facts, ref = machine(), find_model(options.gen_model)
    result: dict[str, Any] = {"model": ref.name, "max_new_tokens": options.max_new_tokens}
    result["built_gib"] = built_weights(ref) / GIB
    result |= {"engines": [], "captures": []}
    for rows in options.capture_rows:
        result["captures"].append(await capture_row(ref, rows, options))
        say(f"capture of {rows} rows: {result['captures'][-1]['measured_gib']:.3f} GiB")
    for batch in [*options.rows.split(","), *([] if on_gpu() else [TIGHT])]:
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
