"""The least time the hardware allows for generation at each concurrency and for capture, and the
share reached.

    python -m benchmarks.roofline                                   # this CPU: its peaks are measured first
    python -m benchmarks.roofline --shape gemma-2-9b --device H100  # arithmetic alone, from published peaks

The formulas stand in FORMULAS, which the page shows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.common import gpu_name, machine, named, parser, record, results_folder, table
from benchmarks.shapes import SHAPES
from traitmill.engine.models.demo import EMBEDDED
from traitmill.engine.models.hub import find_model
from traitmill.engine.models.shape import Shape

NAME = "roofline"
FORMULAS = (
    "A decoding step of c sequences reads the weights once and each sequence's keys and values, "
    "and computes 2 "
    "operations a weight and sequence: it takes at least max((2 P + c L K) / bandwidth, 2 P c / "
    "peak). P: weights a "
    "token is multiplied with (blocks and output layer), in 2 bytes each; K: bytes of keys and "
    "values a token; L: mean "
    "tokens of a sequence in the cache. Capture computes 2 operations a token for each weight of "
    "the blocks; the "
    "output layer is not run."
)
CONCURRENCY = (1, 4, 8, 16, 32, 64, 128, 256, 512)
_ITEMSIZE = 2


@dataclass(frozen=True, slots=True)
class Device:
    """A device's peaks: dense 16-bit operations a second, bytes a second."""

    name: str
    flops: float
    bandwidth: float
    source: str


DEVICES = {
    name: Device(name, teraflops * 1e12, gigabytes * 1e9, "NVIDIA's data sheet")
    for name, teraflops, gigabytes in (
        ("T4", 65, 320),
        ("V100", 125, 900),
        ("L4", 121, 300),
        ("A100", 312, 1555),
        ("A100 80GB", 312, 2039),
        ("H100", 989, 3350),
        ("H200", 989, 4800),
    )
}
"""Tensor-core peaks without sparsity (SXM where there are two; A100 alone is the one of 40 GB)."""


def step_seconds(shape: Shape, device: Device, sequences: float, context: float) -> float:
    """Least time of one decoding step with `context` tokens a sequence in the cache."""
    moved = _ITEMSIZE * passed(shape) + sequences * context * shape.kv_bytes_per_token(_ITEMSIZE)
    return max(moved / device.bandwidth, 2 * passed(shape) * sequences / device.flops)


def passed(shape: Shape) -> int:
    """Weights a token is multiplied with in decoding: blocks (active experts only) and the output
    layer."""
    return _blocks(shape) + shape.vocab * shape.hidden


def capture_tokens_per_s(shape: Shape, device: Device) -> float:
    """Most tokens a second of a capture pass that is bound by arithmetic."""
    return device.flops / (2 * _blocks(shape))


def _blocks(shape: Shape) -> int:
    attention = 2 * shape.hidden * shape.head_dim * (shape.heads + shape.kv_heads)
    return shape.n_layers * (attention + 3 * shape.hidden * shape.ffn)


def measured_cpu() -> Device:
    """This CPU's peaks as torch reaches them: a bfloat16 product of 2048 x 2048, and the sum of 1
    GiB of float32."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    a = torch.randn(2048, 2048).bfloat16()
    vector = torch.ones(1 << 28)
    flops = 2 * 2048**3 / _best(lambda: a @ a)
    return Device(
        "this CPU",
        flops,
        4 * vector.numel() / _best(vector.sum),
        "measured with torch on all cores",
    )


def _best(function: Callable[[], object], times: int = 15) -> float:
    function()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def limits(shape: Shape, device: Device, context: float) -> dict[str, Any]:
    """Figures of the page."""
    return {
        "device": device.name,
        "gflops": device.flops / 1e9,
        "gb_per_s": device.bandwidth / 1e9,
        "source": device.source,
        "context": context,
        "steps": [
            {"sequences": c, "tokens_per_s": c / step_seconds(shape, device, c, context)}
            for c in CONCURRENCY
        ],
        "capture_tokens_per_s": capture_tokens_per_s(shape, device),
    }


def last_result(name: str, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """The last stored result of a benchmark, if it was of this model; else nothing."""
    path = results_folder(options.out) / f"{name}.json"
    result: dict[str, Any] = (
        json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"model": ""}
    )
    return result if model.rpartition("/")[2] == result["model"].rpartition("/")[2] else {}


def mean_context(result: Mapping[str, Any]) -> float:
    """Mean tokens of a sequence in the cache over a batch-size run: its prompt, and half of its
    response."""
    return float(result["prompt_tokens"] + result["rows"][0]["tokens"] / result["samples"] / 2)


def reached(
    result: Mapping[str, Any], shape: Shape, device: Device, context: float
) -> list[dict[str, Any]]:
    """Rows of a batch-size run, each with the limit at its mean running sequences."""
    return [
        {
            "batch": row["batch"],
            "running": row["running"][0],
            "tokens_per_s": row["tokens_per_s"][0],
            "limit": row["running"][0] / step_seconds(shape, device, row["running"][0], context),
        }
        for row in result.get("rows", ())
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """The limits, and the share of each that the batch-size table's rows reached."""
    steps = [[str(step["sequences"]), f"{step['tokens_per_s']:,.0f}"] for step in result["steps"]]
    rows = [
        [
            row["batch"],
            f"{row['running']:.1f}",
            f"{row['limit']:,.0f}",
            f"{row['tokens_per_s']:,.1f}",
            f"{row['tokens_per_s'] / row['limit']:.0%}",
        ]
        for row in result["reached"]
    ]
    note = (
        f"{result['model']} in bfloat16 on {result['device']}: {result['gflops']:,.0f} GFLOP/s and "
        f"{result['gb_per_s']:,.1f} GB/s ({result['source']}), {result['context']:.0f} tokens a "
        f"sequence in the cache. "
        f"Capture: at most {result['capture_tokens_per_s']:,.0f} tokens/s"
    )
    if result["captured_tokens_per_s"]:
        share = result["captured_tokens_per_s"] / result["capture_tokens_per_s"]
        note += (
            f"; `benchmarks.capture` reached {result['captured_tokens_per_s']:,.0f}, {share:.0%}"
        )
    parts = [FORMULAS, f"{note}.", table(["sequences", "limit, tokens/s"], steps)]
    if rows:
        header = ["batch", "running", "limit at that, tokens/s", "reached, tokens/s", "share"]
        parts.append(table(header, rows))
    return "\n\n".join(parts)


def main() -> None:
    options = parser(NAME, __doc__)
    options.add_argument("--gen_model", default=EMBEDDED)
    options.add_argument("--shape", choices=SHAPES)
    options.add_argument(
        "--device", choices=DEVICES, help="published peaks; without it this machine's"
    )
    options.add_argument(
        "--context",
        type=float,
        help="mean tokens of a sequence in the cache; by default the last batch-size run's, or 90",
    )
    chosen = options.parse_args()
    config = SHAPES[chosen.shape] if chosen.shape else find_model(chosen.gen_model).text_config
    model, device = chosen.shape or chosen.gen_model, DEVICES.get(chosen.device) or here()
    if device is None:
        print(f"no limit known for {gpu_name()}: name a like one with --device; nothing was stored")
        return
    generated, captured = {}, {}
    if not chosen.device:
        generated = last_result(named("batch_size", chosen.shape), model, chosen)
        captured = last_result("capture", model, chosen)
    context = chosen.context or (mean_context(generated) if generated else 90.0)
    shape = Shape.from_config(config)
    found: dict[str, Any] = {"model": model, **limits(shape, device, context)}
    found["reached"] = reached(generated, shape, device, context)
    seconds = captured.get("seconds", {}).get("traitmill")
    found["captured_tokens_per_s"] = (
        captured["tokens"] / statistics.median(seconds) if seconds else None
    )
    facts = machine()
    if not chosen.device:  # another machine's arithmetic is for reading, not for the page
        record(chosen.out, NAME, facts, found, chosen.shape)
    print(markdown(found))


def here() -> Device | None:
    """This machine's GPU, None if its peaks are not known; its CPU where there is no GPU."""
    name = gpu_name()
    if not name:
        return measured_cpu()
    return known_gpu(name)


def known_gpu(name: str) -> Device | None:
    """The device whose words are all in a GPU's name, the one with the most of them; else None."""
    words = set(re.split(r"[\s-]", name))
    known = [device for key, device in DEVICES.items() if set(key.split()) <= words]
    return max(known, key=lambda device: len(device.name.split()), default=None)


if __name__ == "__main__":
    main()
