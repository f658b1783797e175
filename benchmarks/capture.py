"""The capture pass against the guide's method and a kept `[layers, rows, tokens, dim]` stack:
speed, memory, shares.

    python -m benchmarks.capture                 # SmolLM2-135M, 3 rounds, about 4 minutes on 2 cores
    python -m benchmarks.capture --busy          # on a machine with other work: one thread, CPU seconds
    python -m benchmarks.capture --budgets       # instead: speed by batch budget
    python -m benchmarks.capture --flat 100000   # instead: 100,000 rows of a tiny model: flat memory, linear time
    python -m benchmarks.capture --lengths       # instead: generate 32 real responses and store their lengths

Rows are as long as the responses that `--lengths` stored, made by the model from the demo's prompts
with the guide's sampling; their ids are drawn from a fixed seed. All methods run in one process, on
the same rows, one after the other in each round, so that a noisy machine disturbs them alike. What
is measured is stored after each method.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import RESULTS, machine, parser, record, shown, spread, table
from tests.support.rows import response_row
from traitmill.engine.capture.batching import Batch, Budget, padding_share, run_batches
from traitmill.engine.capture.model import CaptureModel
from traitmill.engine.capture.pooling import Pooler, pool_weights
from traitmill.engine.models.demo import embedded_folder
from traitmill.engine.records import Response
from traitmill.engine.settings import CaptureSettings

LENGTHS = RESULTS / "capture-lengths.json"
"""Written by `--lengths`."""
Save = Callable[[Mapping[str, Any]], object]


def real_lengths() -> list[tuple[int, int]]:
    """(prompt, response) tokens of stored real responses, in a mixed order."""
    stored = json.loads(LENGTHS.read_text(encoding="utf-8"))
    pairs = list(zip(stored["prompt_tokens"], stored["response_tokens"], strict=True))
    order = np.random.default_rng(0).permutation(len(pairs))
    return [pairs[index] for index in order]


def ragged_rows(n: int, vocab: int, seed: int = 0) -> list[Response]:
    """Rows of the real lengths, in turn, with random ids."""
    rng = np.random.default_rng(seed)
    lengths = real_lengths()
    rows = []
    for index in range(n):
        prompt, response = (
            tuple(map(int, rng.integers(3, vocab, size))) for size in lengths[index % len(lengths)]
        )
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
    width = max(map(length, rows))
    ids, mask = (
        torch.zeros(len(rows), width, dtype=torch.long),
        torch.zeros(len(rows), width, dtype=torch.long),
    )
    for place, row in enumerate(rows):
        ids[place, : length(row)] = torch.tensor(
            [*row.sample.prompt_token_ids, *row.response_token_ids]
        )
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


@torch.inference_mode()
def guide_method(model: Any, rows: Sequence[Response], size: int, held: Held) -> None:
    """Full model with LM head, every state kept, padded batches with a mask in arrival order, means
    after."""
    for chosen in in_arrival_order(rows, size):
        ids, mask = padded(chosen, model.device)
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        means_of(out.hidden_states[1:], chosen)
        held.note(*out.hidden_states, out.logits)


@torch.inference_mode()
def without_head(model: Any, rows: Sequence[Response], size: int, held: Held) -> None:
    """The guide's method on the base model."""
    for chosen in in_arrival_order(rows, size):
        ids, mask = padded(chosen, model.device)
        out = model.base_model(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        )
        means_of(out.hidden_states[1:], chosen)
        held.note(*out.hidden_states)


@torch.inference_mode()
def kept_stack(model: Any, rows: Sequence[Response], size: int, held: Held) -> None:
    """Hooks whose outputs are stacked to `[layers, rows, tokens, dim]` and averaged afterwards."""
    blocks: Sequence[nn.Module] = model.model.layers
    for chosen in in_arrival_order(rows, size):
        ids, mask = padded(chosen, model.device)
        states: list[torch.Tensor] = []
        handles = [
            block.register_forward_hook(lambda _m, _a, out, keep=states: keep.append(out))
            for block in blocks
        ]
        model(input_ids=ids, attention_mask=mask, use_cache=False)
        for handle in handles:
            handle.remove()
        stack = torch.stack(states)
        spans = torch.zeros(len(chosen), ids.shape[1], device=ids.device)
        for place, row in enumerate(chosen):
            start = len(row.sample.prompt_token_ids)
            spans[place, start : start + row.n_pooled] = 1 / row.n_pooled
        torch.einsum("lbsd,bs->bld", stack, spans.to(stack.dtype)).float()
        held.note(*states, stack)


@torch.inference_mode()
def pooled_in_hooks(
    model: Any, batches: Sequence[Sequence[Response]], held: Held, *, masked: bool
) -> None:
    """Base model with pooling hooks; nothing of a token's states is kept."""
    blocks = list(model.model.layers)
    for chosen in batches:
        ids, mask = padded(chosen, model.device)
        weights = pool_weights(
            ("response_mean",),
            [row.spans for row in chosen],
            ids.shape[1],
        )
        pooler = Pooler(weights, len(blocks), model.config.hidden_size, model.device)
        handles = [
            block.register_forward_hook(
                lambda _m, _a, out, slot=slot, pooler=pooler: pooler.take(slot, out)
            )
            for slot, block in enumerate(blocks)
        ]
        model.base_model(input_ids=ids, attention_mask=mask if masked else None, use_cache=False)
        for handle in handles:
            handle.remove()
        held.note(pooler.pooled, weights)


def sorted_batches(rows: Sequence[Response], tokens: int) -> list[list[Response]]:
    found = run_batches(
        [length(row) for row in rows], Budget(tokens), lambda batch: batch, lambda _error: False
    )
    return [[rows[index] for index in batch.indices] for batch, _ in found]


Methods = dict[str, Callable[[Held], Any]]
Clock = Callable[[], float]


def clock_of(device: torch.device, *, busy: bool) -> Clock:
    """Seconds, wall or CPU, once the device has done what it was given."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if busy else time.perf_counter()

    return now


def measure(
    methods: Methods,
    rounds: int,
    clock: Clock,
    save: Callable[[dict[str, list[float]], dict[str, int]], object],
    limit_s: float = float("inf"),
) -> None:
    """Run the methods in turn, `rounds` times; `save` gets seconds and bytes held by name after
    each of them.

    No round is begun that would end after `limit_s`, judged by the one before; the first is always
    made.
    """
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    held = {name: Held() for name in methods}
    began = ended = time.monotonic()
    for turn in range(rounds):
        last, ended = time.monotonic() - ended, time.monotonic()
        if turn and ended - began + last > limit_s:
            print(
                f"  {turn} of {rounds} rounds: another would end after {limit_s:.0f} s",
                file=sys.stderr,
            )
            return
        for name in list(methods)[:: -1 if turn % 2 else 1]:
            start = clock()
            methods[name](held[name])
            seconds[name].append(clock() - start)
            print(f"  round {turn + 1}: {name}: {seconds[name][-1]:.2f} s", file=sys.stderr)
            save(seconds, {name: each.bytes for name, each in held.items()})


def matrix_limit(model: Any, tokens: int) -> Callable[[Held], Any]:
    """The blocks' matrix products alone, on as many tokens as the rows have, in batches of 1,024."""
    linears = [
        module
        for block in model.model.layers
        for module in block.modules()
        if isinstance(module, nn.Linear)
    ]
    inputs = {
        linear.in_features: torch.randn(
            1024, linear.in_features, dtype=model.dtype, device=model.device
        )
        for linear in linears
    }

    @torch.inference_mode()
    def run(_held: Held) -> None:
        for start in range(0, tokens, 1024):
            for linear in linears:
                linear(inputs[linear.in_features][: min(1024, tokens - start)])

    return run


class TimedForward:
    """Adds up the time of a model's forwards while one `capture` call is looked at."""

    def __init__(self, model: CaptureModel, clock: Clock) -> None:
        self.seconds: list[float] = []
        """Of each call that was looked at."""
        self._forward, self._clock, self._looking = model.forward, clock, False
        model.forward = self._timed  # type: ignore[method-assign]

    def __enter__(self) -> None:
        self.seconds.append(0.0)
        self._looking = True

    def __exit__(self, *_: object) -> None:
        self._looking = False

    def _timed(self, *arguments: Any) -> None:
        start = self._clock()
        self._forward(*arguments)
        if self._looking:
            self.seconds[-1] += self._clock() - start


def load(**options: Any) -> CaptureModel:
    """The embedded model without its self-check."""
    return CaptureModel(
        str(embedded_folder()),
        options.pop("capture", CaptureSettings()),
        self_check="off",
        **options,
    )


def compare(
    n_rows: int, rounds: int, threads: int, limit_s: float, save: Save, *, busy: bool
) -> None:
    """Every figure of the method and step tables."""
    torch.set_num_threads(threads)
    ours, in_float32 = load(), load(capture=CaptureSettings(dtype="float32"))
    model = ours._model  # noqa: SLF001  the baselines run the very same weights
    clock = clock_of(model.device, busy=busy)
    rows = ragged_rows(n_rows, model.config.vocab_size)
    tokens = sum(map(length, rows))
    spans = sorted_batches(rows, ours.budget.limit)
    arrival = list(in_arrival_order(rows, 8))
    pooled_bytes = ours.capture(rows[:2])[0].pools["response_mean"].nbytes
    in_float32.capture(rows[:2])
    guide_method(model, rows[:2], 2, Held())
    forward = TimedForward(ours, clock)

    def run_ours(held: Held) -> None:
        with forward:
            ours.capture(rows)
        held.bytes = max(pooled_bytes * len(batch) for batch in spans)

    def one_thread(_held: Held) -> None:
        torch.set_num_threads(1)
        ours.capture(rows)
        torch.set_num_threads(threads)

    methods: Methods = {
        OURS: run_ours,
        **{
            f"guide, batch {n}": lambda held, n=n: guide_method(model, rows, n, held)
            for n in (8, 1, 4, 16)
        },
        STACK: lambda held: kept_stack(model, rows, 16, held),
        "no LM head": lambda held: without_head(model, rows, 8, held),
        "pooled in hooks": lambda held: pooled_in_hooks(model, arrival, held, masked=True),
        "sorted batches": lambda held: pooled_in_hooks(model, spans, held, masked=True),
        **({ONE_THREAD: one_thread} if threads > 1 and model.device.type == "cpu" else {}),
        **({FLOAT32: lambda _held: in_float32.capture(rows)} if ours.dtype != "float32" else {}),
        LIMIT: matrix_limit(model, tokens),
    }
    lengths = [length(row) for row in rows]
    padding = {
        name: padding_share(
            lengths, [Batch(tuple(range(len(part))), max(map(length, part))) for part in parts]
        )
        for name, parts in (("arrival", arrival), ("sorted", spans))
    }
    facts = {
        "model": "SmolLM2-135M-Instruct",
        "dtype": ours.dtype,
        "device": model.device.type,
        "threads": threads,
        "clock": "CPU" if busy else "wall",
        "rows": n_rows,
        "tokens": tokens,
        "budget": ours.budget.limit,
        "lengths_command": json.loads(LENGTHS.read_text(encoding="utf-8"))["command"],
        "padding": padding,
    }
    measure(
        methods,
        rounds,
        clock,
        lambda seconds, held: save(
            {**facts, "seconds": seconds, "held_bytes": held, "forward_s": forward.seconds}
        ),
        limit_s,
    )


def budget_sweep(n_rows: int, rounds: int, threads: int, save: Save, *, busy: bool) -> None:
    """Seconds by batch budget."""
    torch.set_num_threads(threads)
    ours = load()
    rows = ragged_rows(n_rows, ours._model.config.vocab_size)  # noqa: SLF001
    ours.capture(rows[:2])

    def at(limit: int) -> Callable[[Held], Any]:
        def run(_held: Held) -> None:
            ours.budget.now = ours.budget.limit = limit
            ours.capture(rows)

        return run

    facts = {
        "rows": n_rows,
        "tokens": sum(map(length, rows)),
        "dtype": ours.dtype,
        "threads": threads,
    }
    measure(
        {str(limit): at(limit) for limit in (256, 512, 1024, 2048, 4096)},
        rounds,
        clock_of(ours.input_device, busy=busy),
        lambda seconds, _held: save({**facts, "seconds": seconds}),
    )


def flat(n_rows: int) -> dict[str, Any]:
    """`n_rows` through a tiny model in calls of 2,000: anonymous memory and seconds of each tenth."""
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
        model = CaptureModel(folder, CaptureSettings())
        values = np.lib.format.open_memmap(
            Path(folder) / "all.npy", "w+", np.float32, (n_rows, 2, 16)
        )
        process, memory, seconds, done = psutil.Process(), [], [], count(1)
        marks = {n_rows * tenth // 10 for tenth in range(1, 11)}
        rng = np.random.default_rng(0)
        started, at = time.perf_counter(), 0
        step = min(2000, n_rows // 10)
        for start in range(0, n_rows, step):
            sizes = rng.integers(3, 12, (step, 2))
            rows = [
                response_row(f"{start + i:032x}", (5,) * int(p), (7,) * int(r), int(r))
                for i, (p, r) in enumerate(sizes)
            ]
            for result in model.capture(rows):
                values[at] = result.pools["response_mean"]
                at += 1
            if at in marks:
                now = process.memory_info()
                memory.append(now.rss - now.shared)  # the output's own mapped pages are shared ones
                seconds.append(time.perf_counter() - started)
                print(
                    f"  {next(done)}0 %: {memory[-1] / 2**20:.0f} MiB, {seconds[-1]:.1f} s",
                    file=sys.stderr,
                )
    tenths = np.diff([0.0, *seconds])
    return {
        "rows": at,
        "growth_mib_after_first_tenth": (max(memory[1:]) - memory[0]) / 2**20,
        "seconds": seconds[-1],
        "slowest_over_median_tenth": float(tenths.max() / np.median(tenths)),
        "last_half_over_first_half": float(tenths[5:].sum() / tenths[:5].sum()),
    }


def generate_lengths(n: int = 32, max_new_tokens: int = 150) -> dict[str, Any]:
    """Token counts of `n` responses of the model to the demo's prompts, at the guide's sampling."""
    from transformers import AutoModelForCausalLM

    from benchmarks.stand import workload
    from traitmill.engine.models.hub import find_model
    from traitmill.engine.settings import Sampling

    ref = find_model("embedded/SmolLM2-135M-Instruct")
    samples = workload(ref, n, max_new_tokens)
    prompts = [list(sample.prompt_token_ids) for sample in samples]
    width = max(map(len, prompts))
    model = AutoModelForCausalLM.from_pretrained(str(embedded_folder()), dtype="auto").eval()
    end = model.generation_config.eos_token_id
    ends = set(end) if isinstance(end, list) else {end}
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    sampling = Sampling(model=ref.name, revision=ref.revision)
    torch.manual_seed(0)
    out = model.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=0,
        max_new_tokens=max_new_tokens,
        pad_token_id=0,
    )
    found = [
        next((i for i, token in enumerate(row) if token in ends), len(row))
        for row in out[:, width:].tolist()
    ]
    return {
        "model": "SmolLM2-135M-Instruct",
        "max_new_tokens": max_new_tokens,
        "prompt_tokens": [len(prompt) for prompt in prompts],
        "response_tokens": [max(1, tokens) for tokens in found],
    }


# --- the pages ---

OURS, STACK, LIMIT = "traitmill", "stack kept, batch 16", "matrix products alone"
ONE_THREAD, FLOAT32 = "traitmill, one thread", "traitmill, float32"
_TABLE = (*(f"guide, batch {n}" for n in (1, 4, 8, 16)), STACK, OURS, LIMIT)
_STEPS = ("guide, batch 8", "no LM head", "pooled in hooks", "sorted batches", OURS)
_STEP_NAMES = {
    "no LM head": "no LM head",
    "pooled in hooks": "no kept states: pooled in hooks",
    "sorted batches": "no padding waste: sorted by length, batches by tokens",
    OURS: "no attention mask: traitmill",
}


def times_ours(result: Mapping[str, Any], name: str, base: str = OURS) -> list[float] | None:
    """How many times faster `base` is than a method, by round: median, least, most."""
    seconds = result["seconds"]
    pairs = list(zip(seconds.get(name, ()), seconds.get(base, ()), strict=False))
    return spread(slow / fast for slow, fast in pairs) if pairs else None


def _speed(result: Mapping[str, Any], name: str) -> str:
    times = result["seconds"].get(name)
    return f"{result['tokens'] / statistics.median(times):,.0f}" if times else "-"


def markdown(result: Mapping[str, Any]) -> str:
    """The methods, and what each step gives."""
    rounds = len(result["seconds"].get(OURS, ()))
    head = (
        f"{result['model']}, {result['dtype']}, {result['device']}, {result['threads']} threads; "
        f"{result['rows']} "
        f"rows, {result['tokens']:,} tokens, as long as real responses "
        f"(`{result['lengths_command']}`); rounds "
        f"in which the methods take turns: {rounds}; {result['clock']} time, medians (least to "
        f"most)."
    )
    held = result["held_bytes"]
    lines = [
        [
            name,
            _speed(result, name),
            shown(times_ours(result, name), 2, "x"),
            f"{held[name] / 2**20:.1f}" if held.get(name) else "-",
        ]
        for name in _TABLE
    ]
    parts = [head, table(["method", "tokens/s", "traitmill is", "activations held, MiB"], lines)]
    steps = [
        [
            _STEP_NAMES[after],
            _speed(result, before),
            _speed(result, after),
            _gain(result, before, after),
        ]
        for before, after in pairwise(_STEPS)
    ]
    steps += [
        [label, _speed(result, name), _speed(result, OURS), _gain(result, name, OURS)]
        for name, label in (
            (ONE_THREAD, f"{result['threads']} threads, not one"),
            (FLOAT32, "bfloat16, not float32"),
        )
        if name in result["seconds"]
    ]
    parts.append(table(["step", "before, tokens/s", "after, tokens/s", "gain"], steps))
    parts.append(" ".join(_shares(result)))
    return "\n\n".join(parts)


def _gain(result: Mapping[str, Any], before: str, after: str) -> str:
    return shown(times_ours(result, before, after), 2, "x")


def _shares(result: Mapping[str, Any]) -> Iterator[str]:
    padding, seconds, held = result["padding"], result["seconds"], result["held_bytes"]
    yield (
        f"Padding: {padding['arrival']:.1%} of the tokens computed in batches of 8 in arrival "
        f"order, "
        f"{padding['sorted']:.1%} sorted under {result['budget']:,} tokens a batch."
    )
    outside = [
        1 - inside / whole
        for inside, whole in zip(result["forward_s"], seconds[OURS], strict=False)
    ]
    if outside:
        yield f"Outside the forward: {statistics.median(outside):.1%} of capture's time."
    limit = times_ours(result, OURS, LIMIT)
    if limit:
        guide = times_ours(result, "guide, batch 8", LIMIT)
        yield (
            f"Arithmetic limit: the blocks' matrix products alone run at {_speed(result, LIMIT)} "
            f"tokens/s, "
            f"{shown(guide, 2)} times the guide's batch 8, which no method that runs every token "
            f"can pass; capture "
            f"reaches {1 / limit[0]:.0%} of it."
        )
    if held.get(OURS) and held.get(STACK):
        yield (
            "Activations held: of the kept stack the states and the stack itself, of traitmill the "
            "vectors of its "
            f"largest batch, 1/{held[STACK] / held[OURS]:,.0f}."
        )


def budgets_markdown(result: Mapping[str, Any]) -> str:
    """Speed by batch budget."""
    head = f"{result['rows']} rows, {result['tokens']:,} tokens, {result['dtype']}, {result['threads']} threads; medians."
    names = [name for name, times in result["seconds"].items() if times]
    return f"{head}\n\n{table(['batch budget, tokens', *names], [['tokens/s', *(_speed(result, n) for n in names)]])}"


def flat_markdown(result: Mapping[str, Any]) -> str:
    """Memory and time over many rows."""
    return (
        f"{result['rows']:,} rows of a tiny model in {result['seconds']:.0f} s: memory grew by "
        f"{result['growth_mib_after_first_tenth']:.1f} MiB after the first tenth; the second half "
        f"took "
        f"{result['last_half_over_first_half']:.2f} times the first."
    )


def main() -> None:

    options = parser("capture", __doc__)
    options.add_argument("--rows", type=int, default=24)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument(
        "--limit_s", type=float, default=240, help="no round is begun that would end later"
    )
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument(
        "--busy", action="store_true", help="one thread, CPU seconds instead of wall time"
    )
    instead = options.add_mutually_exclusive_group()
    instead.add_argument("--budgets", action="store_true", help="speed by batch budget instead")
    instead.add_argument(
        "--flat", type=int, metavar="ROWS", help="run so many rows of a tiny model instead"
    )
    instead.add_argument(
        "--lengths", action="store_true", help="store lengths of real responses instead"
    )
    chosen = options.parse_args()
    facts, threads = machine(), 1 if chosen.busy else chosen.threads
    latest: dict[str, Any] = {}

    def save(figures: Mapping[str, Any], what: str | None = None) -> None:
        latest.update(figures)
        record(chosen.out, "capture", facts, figures, what)

    if chosen.lengths:
        save(generate_lengths(), "lengths")
    elif chosen.flat:
        save(flat(chosen.flat), "flat")
        print(flat_markdown(latest))
    elif chosen.budgets:
        budget_sweep(
            chosen.rows, chosen.rounds, threads, partial(save, what="budgets"), busy=chosen.busy
        )
        print(budgets_markdown(latest))
    else:
        compare(chosen.rows, chosen.rounds, threads, chosen.limit_s, save, busy=chosen.busy)
        print(markdown(latest))


if __name__ == "__main__":
    main()
