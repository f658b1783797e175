"""The least time the hardware allows what the other benchmarks did, and the share they reached.

    python -m benchmarks.roofline                        # this CPU: its peaks are measured first
    python -m benchmarks.roofline --shape gemma-2-9b     # a GPU whose peaks NVIDIA publishes

Looks at the last stored results of batch_size and capture.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import (
    gpu_name,
    machine,
    named,
    paragraphs,
    parser,
    record,
    results_folder,
    table,
)
from benchmarks.plans import config
from benchmarks.shapes import SHAPES
from traitmill.engine.models import EMBEDDED, Shape, find_model, read_gpus
from traitmill.engine.planning.cards import card_of
from traitmill.engine.planning.roofline import Device, capture_seconds, step_seconds

NAME = "roofline"
FORMULAS = (
    "A decoding step of c sequences reads the weights once and each sequence's keys and values, "
    "and computes 2 operations a weight and sequence: it takes at least max((2 P + c L K) / "
    "bandwidth, 2 P c / peak). P: weights a token is multiplied with (blocks and output layer), in "
    "2 bytes each; K: bytes of keys and values a token; L: mean tokens of a sequence in the cache. "
    "Capture computes 2 operations a token for each weight of the blocks; the output layer is not "
    "run."
)


def here() -> tuple[Device | None, str]:
    """This machine's GPU, None if its peaks are not known, or its CPU; and where they are from."""
    if not gpu_name():
        return measured_cpu(), "measured with torch on all cores"
    card = card_of(read_gpus()[0])
    if card is None:
        return None, ""
    return Device(card.flops, card.bandwidth), "NVIDIA's data sheet"


def measured_cpu() -> Device:
    """This CPU's peaks as torch reaches them: a bfloat16 product of 2048 x 2048, and the sum of 1
    GiB of float32."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    a, vector = torch.randn(2048, 2048).bfloat16(), torch.ones(1 << 28)
    return Device(2 * 2048**3 / _best(lambda: a @ a), 4 * vector.numel() / _best(vector.sum))


def _best(function: Callable[[], object], times: int = 15) -> float:
    function()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def last_result(out: Path | None, name: str, model: str) -> dict[str, Any]:
    """The last stored result of a benchmark, if it was of this model; else nothing."""
    path = results_folder(out) / f"{name}.json"
    if not path.exists():
        return {}
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result if model.rpartition("/")[2] == result["model"].rpartition("/")[2] else {}


def mean_context(result: Mapping[str, Any]) -> float:
    """Mean tokens of a sequence in the cache over a batch-size run: its prompt, and half of its
    response."""
    return float(result["prompt_tokens"] + result["rows"][0]["tokens"] / result["samples"] / 2)


def measure(
    model: str, shape: Shape, device: Device, generated: dict[str, Any], captured: dict[str, Any]
) -> dict[str, Any]:
    """Rows of a batch-size run, each with the limit at its mean running sequences; and capture."""
    context = mean_context(generated) if generated else 90.0
    rows = []
    for row in generated.get("rows", ()):
        running = row["running"][0]
        limit = running / step_seconds(shape, device, running, context)
        reached = {"running": running, "tokens_per_s": row["tokens_per_s"][0], "limit": limit}
        rows.append({"batch": row["batch"], **reached})
    seconds = captured.get("seconds", {}).get("traitmill")
    return {
        "model": model,
        "gflops": device.flops / 1e9,
        "gb_per_s": device.bandwidth / 1e9,
        "context": context,
        "capture_tokens_per_s": 1 / capture_seconds(shape, device, 1),
        "reached": rows,
        "captured_tokens_per_s": captured["tokens"] / statistics.median(seconds)
        if seconds
        else None,
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The limits, and the share of each that the batch-size table's rows reached."""
    rows = [
        f"{row['batch']} | {row['running']:.1f} | {row['limit']:,.0f} | "
        f"{row['tokens_per_s']:,.1f} | {row['tokens_per_s'] / row['limit']:.0%}"
        for row in result["reached"]
    ]
    note = (
        f"{result['model']} in bfloat16: {result['gflops']:,.0f} GFLOP/s and "
        f"{result['gb_per_s']:,.1f} GB/s ({result['source']}), {result['context']:.0f} tokens a "
        f"sequence in the cache. Capture: at most {result['capture_tokens_per_s']:,.0f} tokens/s"
    )
    if reached := result["captured_tokens_per_s"]:
        share = reached / result["capture_tokens_per_s"]
        note += f"; `benchmarks.capture` reached {reached:,.0f}, {share:.0%}"
    header = "batch | running | limit at that, tokens/s | reached, tokens/s | share"
    return paragraphs(FORMULAS, f"{note}.", table(header, rows) if rows else "")


def main() -> None:
    options = parser(NAME, __doc__)
    options.add_argument("--gen_model", default=EMBEDDED)
    options.add_argument("--shape", choices=SHAPES)
    chosen = options.parse_args()
    device, source = here()
    if device is None:
        print(f"no limit known for {gpu_name()}: nothing was stored")
        return
    model = chosen.shape or chosen.gen_model
    sizes = config(chosen.shape) if chosen.shape else find_model(chosen.gen_model).config
    generated = last_result(chosen.out, named("batch_size", chosen.shape), model)
    captured = last_result(chosen.out, named("capture", chosen.shape), model)
    found = measure(model, Shape.from_config(sizes), device, generated, captured)
    found["source"] = source
    record(chosen.out, NAME, machine(), found, chosen.shape)
    print(markdown(found))


if __name__ == "__main__":
    main()
