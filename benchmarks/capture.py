"""The capture pass against the guide's method and a kept `[layers, rows, tokens, dim]` stack:
speed, and memory of activations.

    python -m benchmarks.capture                                   # SmolLM2-135M, 3 rounds
    python -m benchmarks.capture --budgets 256,512,1024,2048,4096  # with other batch budgets beside the own
    python -m benchmarks.capture --shape gemma-2-2b --rows 512     # a GPU: random weights

Rows are as long as 32 real responses (response_lengths.json: the model's own to the demo's prompts,
with the guide's sampling); their ids are drawn from a fixed seed. All methods run in one process,
on the same weights and rows, in turn in each round, so that a noisy machine disturbs them alike.
What is measured is stored after each method; one that fails is named and costs no other.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import (
    ROOT,
    machine,
    no_figures,
    paragraphs,
    parser,
    record,
    shown,
    spread,
    table,
    turned,
)
from benchmarks.shapes import SHAPES, check_fits, dummy_model, gpu_memory
from tests.support.rows import response_row
from traitmill.engine.capture.batching import Batch, padding_share, run_batches
from traitmill.engine.capture.model import CaptureModel
from traitmill.engine.capture.self_check import Mode
from traitmill.engine.models import EMBEDDED, Shape, find_model
from traitmill.engine.records import Response
from traitmill.engine.settings import CaptureSettings

NAME = "capture"
LENGTHS = ROOT / "benchmarks" / "response_lengths.json"
OURS, GUIDES, STACK = "traitmill", "guide, batch 8", "stack kept, batch 16"
LIMIT = "matrix products alone"
CHECKED = "traitmill, self-check"
FAULTS = (RuntimeError, ValueError, ImportError)
"""What a method may fail with: out of memory among them, a kernel that is not there."""
Methods = dict[str, Callable[["Held"], Any]]


def real_lengths() -> list[tuple[int, int]]:
    """(prompt, response) tokens of stored real responses, in a mixed order."""
    stored = json.loads(LENGTHS.read_text(encoding="utf-8"))
    pairs = list(zip(stored["prompt_tokens"], stored["response_tokens"], strict=True))
    return [pairs[index] for index in np.random.default_rng(0).permutation(len(pairs))]


def ragged_rows(n: int, vocab: int, seed: int = 0) -> list[Response]:
    """Rows of the real lengths, in turn, with random ids."""
    rng = np.random.default_rng(seed)
    lengths, rows = real_lengths(), []
    for index in range(n):
        sizes = lengths[index % len(lengths)]
        prompt, response = (tuple(map(int, rng.integers(3, vocab, size))) for size in sizes)
        rows.append(response_row(f"{index:032x}", prompt, response, len(response)))
    return rows


def length(row: Response) -> int:
    return len(row.sample.prompt_token_ids) + row.n_pooled


@dataclass
class Held:
    """Bytes of activations alive when a batch's forward has ended, at their highest."""

    bytes: int = 0

    def note(self, *tensors: torch.Tensor) -> None:
        self.bytes = max(self.bytes, sum(tensor.nbytes for tensor in tensors))


def padded(rows: Sequence[Response], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask `[rows, width]`, padded on the right with zeros."""
    ids = torch.zeros(len(rows), max(map(length, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        tokens = [*row.sample.prompt_token_ids, *row.response_token_ids]
        ids[place, : length(row)] = torch.tensor(tokens)
        mask[place, : length(row)] = 1
    return ids.to(device), mask.to(device)


def in_arrival_order(rows: Sequence[Response], size: int) -> Iterator[Sequence[Response]]:
    yield from (rows[start : start + size] for start in range(0, len(rows), size))


def means_of(states: Sequence[torch.Tensor], rows: Sequence[Response]) -> torch.Tensor:
    """`[rows, layers, dim]`: response means of kept states, a row at a time."""
    found = []
    for place, row in enumerate(rows):
        start = len(row.sample.prompt_token_ids)
        span = slice(start, start + row.n_pooled)
        found.append(torch.stack([state[place, span].float().mean(0) for state in states]))
    return torch.stack(found)


def guide_method(model: Any, rows: Sequence[Response], size: int, held: Held) -> None:
    """Full model with LM head, every state kept, padded batches with a mask in arrival order, means
    after."""
    for chosen in in_arrival_order(rows, size):
        ids, mask = padded(chosen, model.device)
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        means_of(out.hidden_states[1:], chosen)
        held.note(*out.hidden_states, out.logits)


def kept_stack(model: Any, rows: Sequence[Response], size: int, held: Held) -> None:
    """Hooks whose outputs are stacked to `[layers, rows, tokens, dim]` and averaged afterwards."""
    states: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _module, _inputs, out: states.append(out))
        for block in model.model.layers
    ]
    for chosen in in_arrival_order(rows, size):
        states.clear()
        ids, mask = padded(chosen, model.device)
        model(input_ids=ids, attention_mask=mask, use_cache=False)
        stack = torch.stack(states)
        spans = torch.zeros(len(chosen), ids.shape[1], device=ids.device)
        for place, row in enumerate(chosen):
            start = len(row.sample.prompt_token_ids)
            spans[place, start : start + row.n_pooled] = 1 / row.n_pooled
        torch.einsum("lbsd,bs->bld", stack, spans.to(stack.dtype)).float()
        held.note(*states, stack)
    for hook in hooks:
        hook.remove()


def matrix_products(model: Any, tokens: int, _held: Held) -> None:
    """The blocks' matrix products alone, on as many tokens as the rows have, in batches of 1,024."""
    linears = [each for each in model.model.layers.modules() if isinstance(each, nn.Linear)]
    widths = {linear.in_features for linear in linears}
    like = {"dtype": model.dtype, "device": model.device}
    inputs = {width: torch.randn(1024, width, **like) for width in widths}
    for start in range(0, tokens, 1024):
        for linear in linears:
            linear(inputs[linear.in_features][: min(1024, tokens - start)])


def clock() -> float:
    """Seconds, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(
    methods: Methods, rounds: int, save: Callable[..., object], now: Callable[[], float] = clock
) -> None:
    """Run the methods in turn, `rounds` times. `save` gets seconds and bytes held by name, and why
    some failed, after each of them."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    held = {name: Held() for name in methods}
    failed: dict[str, str] = {}
    for number in range(rounds):
        for name in turned(methods, number):
            if name in failed:
                continue
            start = now()
            try:
                with torch.inference_mode():
                    methods[name](held[name])
            except FAULTS as error:
                failed[name] = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            else:
                seconds[name].append(now() - start)
            print(f"round {number + 1}: {name}: {seconds[name][-1:] or failed[name]}", flush=True)
            save(seconds, {each: found.bytes for each, found in held.items()}, failed)


def methods_of(ours: CaptureModel, rows: Sequence[Response], budgets: Sequence[int]) -> Methods:
    """What is compared, on the weights of `ours`."""
    model = ours._model  # noqa: SLF001  the baselines run the very same weights
    own = ours.budget.limit
    pooled_bytes = ours.capture(rows[:2])[0].pools["response_mean"].nbytes

    def run(held: Held, budget: int = own, check: Mode = "off") -> None:
        ours.budget.now = ours.budget.limit = budget
        ours._check.mode = check  # noqa: SLF001  another model would be other weights
        ours.capture(rows)
        held.bytes = pooled_bytes * max(map(len, sorted_batches(rows, ours)))

    return {
        OURS: run,
        **{f"guide, batch {n}": partial(guide_method, model, rows, n) for n in (8, 1)},
        STACK: partial(kept_stack, model, rows, 16),
        **{f"traitmill, budget {n:,}": partial(run, budget=n) for n in budgets},
        **({CHECKED: partial(run, check="sample")} if model.device.type == "cuda" else {}),
        LIMIT: partial(matrix_products, model, sum(map(length, rows))),
    }


def sorted_batches(rows: Sequence[Response], ours: CaptureModel) -> list[list[Response]]:
    """The batches that capture makes of rows."""
    lengths = [length(row) for row in rows]
    found = run_batches(lengths, ours.budget, lambda batch: batch, lambda _error: False)
    return [[rows[index] for index in batch.indices] for batch, _ in found]


def padding(rows: Sequence[Response], parts: Sequence[Sequence[Response]]) -> float:
    """The share of computed tokens that are padding."""
    batches = [Batch(tuple(range(len(part))), max(map(length, part))) for part in parts]
    return padding_share([length(row) for row in rows], batches)


# --- the page ---


def times_ours(result: Mapping[str, Any], name: str, base: str = OURS) -> list[float] | None:
    """How many times faster `base` is than a method, by round: median, least, most."""
    seconds = result["seconds"]
    pairs = list(zip(seconds.get(name, ()), seconds.get(base, ()), strict=False))
    return spread(slow / fast for slow, fast in pairs) if pairs else None


def markdown(result: Mapping[str, Any]) -> str:
    """The methods, and how near they come to the limit."""
    held, lines = result["held_bytes"], []
    for name, times in result["seconds"].items():
        speed = f"{result['tokens'] / statistics.median(times):,.0f}" if times else "-"
        kept = f"{held[name] / 2**20:.1f}" if held.get(name) else "-"
        lines.append([name, speed, shown(times_ours(result, name), 2, "x"), kept])
    head = (
        f"{result['model']}, {result['dtype']}, {result['attention']} attention, "
        f"{result['device']}, {result['threads']} threads; {result['rows']} rows, "
        f"{result['tokens']:,} tokens, as long as real responses; rounds in which the methods take "
        f"turns: {len(result['seconds'][OURS])}; wall time, medians (least to most). Padding: "
        f"{result['padding']['arrival']:.1%} of the tokens computed in batches of 8 in arrival "
        f"order, {result['padding']['sorted']:.1%} sorted under {result['budget']:,} tokens a "
        f"batch."
    )
    limit = times_ours(result, OURS, LIMIT)
    if limit:
        head += (
            " The blocks' matrix products alone are what no method that runs every token can pass; "
            f"capture reaches {1 / limit[0]:.0%} of it."
        )
    header = "method | tokens/s | traitmill is | activations held, MiB"
    return paragraphs(head, table(header, lines), no_figures(result["failed"]))


def main() -> None:
    options = parser(NAME, __doc__)
    options.add_argument("--gen_model", default=EMBEDDED)
    options.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead")
    options.add_argument("--attention", default="auto")
    options.add_argument("--budgets", default="", help="comma list of batch budgets, in tokens")
    options.add_argument("--rows", type=int, default=24)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    chosen = options.parse_args()
    facts = machine()
    if chosen.shape:
        check_fits(chosen.shape, gpu_memory())
        model: Any = dummy_model(chosen.shape, weights=True)
    else:
        model = nullcontext(find_model(chosen.gen_model))
    torch.set_num_threads(chosen.threads)
    with model as ref:
        capture = CaptureSettings(attention=chosen.attention)
        ours = CaptureModel(ref.source, capture, revision=ref.hub_revision, self_check="off")
    rows = ragged_rows(chosen.rows, Shape.from_config(ref.config).vocab)
    setting = {
        "model": chosen.shape or ref.name,
        "dtype": ours.dtype,
        "attention": ours.attention,
        "device": ours.input_device.type,
        "threads": chosen.threads,
        "rows": len(rows),
        "tokens": sum(map(length, rows)),
        "budget": ours.budget.limit,
        "padding": {
            "arrival": padding(rows, list(in_arrival_order(rows, 8))),
            "sorted": padding(rows, sorted_batches(rows, ours)),
        },
    }
    figures: dict[str, Any] = {}

    def save(seconds: object, held_bytes: object, failed: object) -> None:
        found = {"seconds": seconds, "held_bytes": held_bytes, "failed": failed}
        figures.update({**setting, **found})
        record(chosen.out, NAME, facts, figures, chosen.shape)

    budgets = [int(part) for part in chosen.budgets.split(",") if part]
    measure(methods_of(ours, rows, budgets), chosen.rounds, save)
    print(markdown(figures))


if __name__ == "__main__":
    main()
