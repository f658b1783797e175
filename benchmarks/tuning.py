"""What holds generation back on a CPU: the engine as it is, against the same with one choice
undone.

    python -m benchmarks.tuning
    python -m benchmarks.tuning --compiled      # instead: what compiling costs and gains; needs a C++ compiler

Each variant is a process of its own: an engine's start, then the same samples with the same seeds
at `auto` and at few sequences. The product comes first and last, and ratios are to the mean of
both: what lies between the two is noise. Generation only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import (
    answer,
    in_process,
    machine,
    no_figures,
    paragraphs,
    parser,
    quietly,
    record,
    table,
    why,
)
from benchmarks.stand import Stand, whole
from traitmill.engine.generation import VllmEngine
from traitmill.engine.models import EMBEDDED, find_model

NAME = "tuning"
FEW = 8
AS_IT_IS, AGAIN = "as it is", "as it is, again"


@dataclass(frozen=True, slots=True)
class Variant:
    """The product with one choice undone."""

    what: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of vLLM's engine, instead of the product's."""
    environment: Mapping[str, str] = field(default_factory=dict)


ALL_CORES = ",".join(map(str, sorted(os.sched_getaffinity(0))))
VARIANTS = {
    AS_IT_IS: Variant("the product"),
    "vLLM's top-p": Variant("sorts the vocabulary of every row at each step"),
    "a worker process": Variant(
        "vLLM's own choice on a CPU, here with all cores: the engine's process spins while it "
        "waits",
        {"distributed_executor_backend": None},
        {"VLLM_CPU_OMP_THREADS_BIND": ALL_CORES},
    ),
    "no self-check": Variant("log-probabilities of no sample"),
    "unseeded": Variant("no generator of its own for each sample"),
    "spinning threads": Variant(
        "OpenMP's own patience at a barrier before a thread sleeps",
        environment={"GOMP_SPINCOUNT": "300000"},
    ),
    "blocks of 128": Variant(
        "vLLM's own size on a CPU: shorter shared prefixes are computed anew", {"block_size": 128}
    ),
    "no prefix cache": Variant("every prompt is computed whole", {"enable_prefix_caching": False}),
    AGAIN: Variant("the product, last: how far the machine's speed wandered"),
    "compiled": Variant(
        "torch.compile instead of eager, where nothing was compiled before",
        {"enforce_eager": False},
        {"TORCH_COMPILE_DISABLE": "0", "VLLM_DISABLE_COMPILE_CACHE": "1"},
    ),
}


def engine_of(name: str) -> type[VllmEngine]:
    """The product's engine with one choice undone."""
    variant = VARIANTS[name]

    class Undone(VllmEngine):
        few = False
        """Whether only so many sequences are to run at once."""

        @property
        def max_in_flight(self) -> int:
            return FEW if self.few else super().max_in_flight

        @property
        def _own_nucleus(self) -> bool:
            return name != "vLLM's top-p" and super()._own_nucleus

        def _arguments(self) -> Any:
            arguments = super()._arguments()
            for argument, value in variant.arguments.items():
                setattr(arguments, argument, value)
            return arguments

        async def _logprobs(self, *asked: Any) -> tuple[float, ...] | None:
            return None if name == "no self-check" else await super()._logprobs(*asked)

        async def _run(self, prompt_token_ids: Any, parameters: Any, **more: Any) -> Any:
            if name == "unseeded":
                parameters.seed = None
            return await super()._run(prompt_token_ids, parameters, **more)

    return Undone


async def one(
    variant: str, gen_model: str, max_new_tokens: int, n_examples: int, n_few: int
) -> dict[str, float]:
    """Run one variant in this process."""
    os.environ |= VARIANTS[variant].environment
    ref = find_model(gen_model)
    stand = Stand(ref, max_new_tokens, captures=False, engine=engine_of(variant))
    try:
        await stand.open()
        many = await stand.run(whole(n_examples), None)
        stand.engine.few = True  # type: ignore[attr-defined]
        few = await stand.run(whole(n_few), None)
    finally:
        await stand.close()
    return {"load_s": stand.load_s, "auto": many.tokens_per_s, "few": few.tokens_per_s}


def summary(name: str, measured: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """A variant's row, with ratios to the mean of the product's own."""
    products = [measured[product] for product in (AS_IT_IS, AGAIN) if product in measured]
    ratios = {
        f"{key}_ratio": measured[name][key] / statistics.fmean(product[key] for product in products)
        for key in ("auto", "few")
        if products
    }
    return {"variant": name, "what": VARIANTS[name].what, **measured[name], **ratios}


def markdown(result: Mapping[str, Any]) -> str:
    """Start, tokens a second and ratios of each variant."""

    def ratio(row: Mapping[str, Any], key: str) -> str:
        return f"{row[key]:.2f}" if key in row else "-"

    rows = [
        f"{row['variant']} | {row['what']} | {row['load_s']:.1f} | {row['auto']:,.0f} | "
        f"{ratio(row, 'auto_ratio')} | {row['few']:,.0f} | {ratio(row, 'few_ratio')}"
        for row in result["rows"]
    ]
    note = (
        f"{result['model']}, {result['samples']} samples of up to {result['max_new_tokens']} "
        f"tokens at auto, then {result['few']} of them with {FEW} at a time (`few`); one run each. "
        "`start` is the load without the warm-up. Ratios are to the mean of the product's own "
        "rows, which lie as far apart as the machine's speed wandered meanwhile; one below 1 is a "
        "loss without the product's choice."
    )
    header = "variant | what it is | start, s | auto, tokens/s | ratio | few, tokens/s | ratio"
    return paragraphs(note, table(header, rows), no_figures(result["failed"]))


def compare(options: argparse.Namespace, names: Sequence[str]) -> None:
    """All variants, storing what there is after each."""
    facts, model = machine(), find_model(options.gen_model).name
    measured: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    how = {key: getattr(options, key) for key in ("gen_model", "max_new_tokens", "n_few")}
    with quietly(NAME) as say, TemporaryDirectory() as temp:
        for name in names:
            one = {"variant": name, "n_examples": options.n_examples, **how}
            # Compiled code of an earlier run would shorten the start of a compiled engine.
            environment = {"TORCHINDUCTOR_CACHE_DIR": temp}
            try:
                measured[name] = in_process(NAME, one, options.limit, environment)
            except subprocess.SubprocessError as error:
                failed[name] = why(error)
                continue
            say(f"{name}: {measured[name]['auto']:.0f} tokens/s, few: {measured[name]['few']:.0f}")
            figures = {
                "model": model,
                "samples": whole(options.n_examples),
                "few": whole(options.n_few),
                "max_new_tokens": options.max_new_tokens,
                "rows": [summary(each, measured) for each in measured],
                "failed": failed,
            }
            record(options.out, NAME, facts, figures, "compiled" if options.compiled else None)
        say(markdown(figures) if measured else no_figures(failed))


def main() -> None:
    options = parser(NAME, __doc__)
    options.add_argument("--gen_model", default=EMBEDDED)
    options.add_argument("--n_examples", type=int, default=160, help="at auto, all sides together")
    options.add_argument("--n_few", type=int, default=32)
    options.add_argument("--max_new_tokens", type=int, default=48)
    options.add_argument("--compiled", action="store_true", help="a compiled engine instead")
    options.add_argument("--limit", type=float, default=300, help="seconds one variant may take")
    chosen = options.parse_args()
    if chosen.one:
        answer(chosen, asyncio.run(one(**chosen.one)))
        return
    names = [name for name in VARIANTS if name != "compiled"]
    compare(chosen, [AS_IT_IS, "compiled"] if chosen.compiled else names)


if __name__ == "__main__":
    main()
