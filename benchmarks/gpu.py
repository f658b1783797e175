"""Capture and generation of Gemma-2 shapes on an NVIDIA GPU, in under ten minutes; the first part
of `make bench-gpu`.

    python -m benchmarks.gpu            # Gemma-2-2B and 9B shapes, bfloat16
    python -m benchmarks.gpu --small    # the 2B shape alone

No weights are needed for speed: shapes come from configs, weights are random, and the tables say
so. Capture is measured by batch budget and attention implementation, with the self-check and
without, against hooks that keep a `[layers, rows, tokens, dim]` stack; generation on vLLM where it
is installed, forced to length. Each cell is stored when it is measured; one that fails names its
error and costs no other. Without a GPU it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch

from traitmill.engine.capture import decoder
from traitmill.engine.capture.model import CaptureModel
from traitmill.engine.errors import TraitmillError
from traitmill.engine.models.config import flash_with_soft_cap, has_soft_cap
from traitmill.engine.models.machine import GPU_TOKENS
from traitmill.engine.models.shape import Shape
from traitmill.engine.records import Response
from traitmill.engine.settings import CaptureSettings

from .capture import Held, kept_stack, length, ragged_rows
from .common import machine, record

BUDGETS = (4096, 8192, 16384, 32768)
ROWS = 1024
TEN_MINUTES = 540.0
EXPECTED = (TraitmillError, RuntimeError, ValueError, ImportError)
"""What a cell may fail with: our own errors, CUDA's (out of memory among them), vLLM's start, a
missing kernel."""

Cell = dict[str, Any]
Save = Callable[[], object]


def gemma_2(name: str) -> Any:
    """The config of google/gemma-2-2b or -9b."""
    from transformers import Gemma2Config

    sizes = {
        "2b": {
            "hidden_size": 2304,
            "num_hidden_layers": 26,
            "intermediate_size": 9216,
            "num_attention_heads": 8,
        },
        "9b": {
            "hidden_size": 3584,
            "num_hidden_layers": 42,
            "intermediate_size": 14336,
            "num_attention_heads": 16,
        },
    }[name]
    return Gemma2Config(
        **sizes,
        num_key_value_heads=sizes["num_attention_heads"] // 2,
        head_dim=256,
        vocab_size=256000,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        query_pre_attn_scalar=256,
    )


def random_capture(config: Any, device: str, attention: str, budget: int | None) -> CaptureModel:
    """A CaptureModel of random weights: everything but the loading is the product's own."""
    from transformers import AutoModelForCausalLM

    def build(*_args: object, attn: str, **_options: object) -> Any:
        chosen = "eager" if attn == "auto" else attn
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, attn_implementation=chosen
            )
        return model.eval().requires_grad_(requires_grad=False)

    with patch.object(decoder, "load", build):
        capture = CaptureSettings(attention=attention)
        return CaptureModel("random", capture, device=device, self_check="off", token_budget=budget)


def forward_flops(shape: Shape, lengths: Sequence[int]) -> float:
    """Matrix FLOPs of the blocks: 2 a weight and token, and 4·n_q·d_h a pair of tokens that see
    each other."""
    attention = 2 * shape.hidden * shape.head_dim * (shape.heads + shape.kv_heads)
    weights = shape.n_layers * (attention + 3 * shape.hidden * shape.ffn)
    pairs = sum(n * (n + 1) / 2 for n in lengths)
    return (
        2.0 * weights * sum(lengths) + 4.0 * shape.n_layers * shape.heads * shape.head_dim * pairs
    )


def matrix_rate(device: str) -> float:
    """FLOP/s of a large bf16 product, the best of several."""
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device=device) for _ in range(2))
    return max(2 * 8192**3 / timed(lambda: a @ b, device) for _ in range(10))


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds of `work`, the device's own included."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def fill(cells: list[Cell], save: Save, labels: Cell, work: Callable[[], Cell]) -> None:
    """Add and store the cell that `work` measures, or the failure that is expected of one."""
    try:
        cells.append(labels | work())
    except EXPECTED as error:
        cells.append(labels | failure(error))
    save()


def failure(error: BaseException) -> Cell:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    print(f"not measured: {line}", file=sys.stderr)
    return {"error": line}


def capture_cells(
    config: Any,
    device: str,
    rows: Sequence[Response],
    budgets: Sequence[int],
    rate: float,
    cells: list[Cell],
    save: Save,
    within: Callable[[], bool] = lambda: True,
) -> None:
    """A cell for each attention and budget: rows/s, tokens/s, share of the matrix rate, peak memory
    beside weights.

    Then the self-check's cost at the product's own budget, and the stack kept. `cells` grows and
    `save` is called with each; none is begun once `within` is false.
    """
    checked = GPU_TOKENS if GPU_TOKENS in budgets else budgets[-1]
    for attention in attentions(config, device):
        try:
            model = random_capture(config, device, attention, budgets[0])
        except EXPECTED as error:
            cells.append({"attention": attention, "budget": "model"} | failure(error))
            save()
            continue
        work: list[tuple[int | str, Callable[[], Cell]]] = [
            *((budget, partial(measured, model, rows, device, budget, rate)) for budget in budgets),
            (f"{checked}, self-check", partial(with_check, model, rows, device, checked, rate)),
            ("stack kept, batch 16", partial(stack_kept, model, rows, device)),
        ]
        for label, measure in work:
            if within():
                fill(cells, save, {"attention": attention, "budget": label}, measure)
                release(device)
        del model, work, measure
        release(device)


def attentions(config: Any, device: str) -> tuple[str, ...]:
    """Those that apply the soft-cap; flex_attention where flash-attn does not do it."""
    if device == "cpu" or not has_soft_cap(config):
        return ("eager",)
    return ("flash_attention_2" if flash_with_soft_cap() else "flex_attention", "eager")


def measured(
    model: CaptureModel, rows: Sequence[Response], device: str, budget: int, rate: float
) -> Cell:
    """The median of three passes over `rows`, after a warm-up over a quarter of them."""
    lengths = [length(row) for row in rows]
    model.budget.now = model.budget.limit = budget
    timed(partial(model.capture, rows[: len(rows) // 4]), device)
    base = reset_peak(device)
    seconds = statistics.median(timed(partial(model.capture, rows), device) for _ in range(3))
    shape = Shape.from_config(model._model.config)  # noqa: SLF001  what was built is what is counted
    return {
        "rows_per_s": len(rows) / seconds,
        "tokens_per_s": sum(lengths) / seconds,
        "matrix_share": forward_flops(shape, lengths) / seconds / rate,
        "peak_mib": peak(device, base) / 2**20,
        "halvings": model.budget.halvings,
    }


def with_check(
    model: CaptureModel, rows: Sequence[Response], device: str, budget: int, rate: float
) -> Cell:
    """The same with the self-check of a run on the same weights."""
    check = model._check  # noqa: SLF001  another model would be other weights
    check.mode = "sample"
    try:
        return measured(model, rows, device, budget, rate)
    finally:
        check.mode = "off"


def stack_kept(model: CaptureModel, rows: Sequence[Response], device: str) -> Cell:
    """The `[layers, rows, tokens, dim]` stack of batch 16 on the same weights."""
    part = rows[: max(16, len(rows) // 8)]
    # The stack's hooks build their ids on the CPU; the model wants them where its embeddings are.
    inner = model._model  # noqa: SLF001  the baseline runs the very same weights
    base = reset_peak(device)
    with torch.device(device):
        kept_stack(inner, part, 16, Held())
        seconds = timed(partial(kept_stack, inner, part, 16, Held()), device)
    return {
        "rows_per_s": len(part) / seconds,
        "tokens_per_s": sum(map(length, part)) / seconds,
        "peak_mib": peak(device, base) / 2**20,
    }


def reset_peak(device: str) -> int:
    if device == "cpu":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())


def peak(device: str, base: int) -> int:
    return 0 if device == "cpu" else int(torch.cuda.max_memory_allocated()) - base


def release(device: str) -> None:
    if device != "cpu":
        torch.cuda.empty_cache()


def generation_cell(config: Any, rows: Sequence[Response]) -> Cell:
    """Tokens/s of vLLM on dummy weights, 150 tokens a response whatever is sampled."""
    import vllm

    with tempfile.TemporaryDirectory() as folder:
        config.architectures = ["Gemma2ForCausalLM"]
        config.dtype = torch.bfloat16
        config.save_pretrained(folder)
        engine = vllm.LLM(
            folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=512,
            gpu_memory_utilization=0.85,
        )
        limits = {
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 150,
            "ignore_eos": True,
            "detokenize": False,
        }
        sampling = [
            vllm.SamplingParams(**limits, seed=seed) for seed in range(len(rows))
        ]  # seeded, as the product's
        prompts: Any = [{"prompt_token_ids": list(row.sample.prompt_token_ids)} for row in rows]
        engine.generate(prompts[:32], sampling[:32])
        start = time.perf_counter()
        engine.generate(prompts, sampling)
        seconds = time.perf_counter() - start
        engine.llm_engine.engine_core.shutdown()  # the next shape needs its memory
    return {"tokens_per_s": 150 * len(rows) / seconds, "rows_per_s": len(rows) / seconds}


def markdown(found: dict[str, Any]) -> str:
    """The GPU tables of docs/benchmarks.md."""
    lines = [
        f"{found['device']}, {found['date']}, torch {found['torch']}; random weights, bfloat16."
    ]
    for name, cells in found["capture"].items():
        lines += ["", f"Capture, Gemma-2-{name.upper()} shape:", ""]
        lines.append(
            "| attention | batch budget | rows/s | tokens/s | of the matrix rate | peak beside "
            "weights |"
        )
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
        for cell in cells:
            share = f"{cell['matrix_share']:.0%}" if "matrix_share" in cell else ""
            numbers = (
                f"{cell['rows_per_s']:,.0f} | {cell['tokens_per_s']:,.0f}"
                if "rows_per_s" in cell
                else " | "
            )
            memory = (
                f"{cell['peak_mib']:,.0f} MiB"
                if "peak_mib" in cell
                else cell.get("error", "").replace("|", "/")
            )
            lines.append(
                f"| {cell['attention']} | {cell['budget']} | {numbers} | {share} | {memory} |"
            )
    for name, cell in found.get("generation", {}).items():
        execution = (
            f"{cell['tokens_per_s']:,.0f} tokens/s"
            if "tokens_per_s" in cell
            else f"not measured: {cell['error']}"
        )
        lines += ["", f"vLLM {cell['version']}, Gemma-2-{name.upper()} shape: {execution}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="the 2B shape alone")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "no NVIDIA GPU is visible to PyTorch: these numbers need one; nothing was measured",
            file=sys.stderr,
        )
        raise SystemExit(2)
    started, device = time.monotonic(), "cuda:0"
    name = torch.cuda.get_device_name()
    rate = matrix_rate(device)
    found: dict[str, Any] = {
        "device": name,
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "matrix_rate": rate,
        "capture": {},
        "generation": {},
    }
    facts = machine()

    def save() -> None:
        record(None, "gpu", facts, found)

    for size in ("2b",) if chosen.small else ("2b", "9b"):
        rows = ragged_rows(ROWS, 255_000)
        cells = found["capture"].setdefault(size, [])
        capture_cells(
            gemma_2(size),
            device,
            rows,
            BUDGETS,
            rate,
            cells,
            save,
            lambda: time.monotonic() - started < TEN_MINUTES,
        )
        if find_spec("vllm") is not None and time.monotonic() - started < TEN_MINUTES / 2:
            generated: list[Cell] = []
            fill(
                generated,
                save,
                {"version": version_of_vllm()},
                partial(generation_cell, gemma_2(size), rows),
            )
            found["generation"][size] = generated[0]
            save()
    print(markdown(found))


def version_of_vllm() -> str:
    return next(
        (number for name, number in machine()["versions"].items() if name.startswith("vllm")),
        "unknown",
    )


if __name__ == "__main__":
    main()
