"""What holds generation back on a CPU: the engine as it is, against the same with one choice undone.

    python -m benchmarks.tuning
    python -m benchmarks.tuning --variants "as it is,compiled"        # minutes for the first start alone

Each variant is a process of its own: an engine's start, then the same samples with the same seeds at `auto` and at few
sequences. Variants take turns over the rounds; ratios are to `as it is` of the same round. Generation only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import ROOT, machine, parser, quietly, record, shown, spread, table
from benchmarks.stand import Stand, whole
from engine.generation import VllmEngine
from engine.models import EMBEDDED, find_model

NAME = "tuning"
FEW = 8
AS_IT_IS = "as it is"
Change = Callable[[Any], None]
"""Takes vLLM's engine arguments."""


def _worker(arguments: Any) -> None:
    arguments.distributed_executor_backend = None


def _large_blocks(arguments: Any) -> None:
    arguments.block_size = 128


def _no_prefix_cache(arguments: Any) -> None:
    arguments.enable_prefix_caching = False


def _compiled(arguments: Any) -> None:
    arguments.enforce_eager = False
    os.environ["TORCH_COMPILE_DISABLE"] = "0"


VARIANTS: dict[str, tuple[str, Change]] = {
    AS_IT_IS: ("the product", lambda _: None),
    "vLLM's top-p": ("sorts the vocabulary of every row at each step", lambda _: None),
    "a worker process": ("vLLM's own choice on a CPU; the engine's process spins while it waits", _worker),
    "unseeded": ("no generator of its own for each sample", lambda _: None),
    "blocks of 128": ("vLLM's own size on a CPU: shorter shared prefixes are computed anew", _large_blocks),
    "no prefix cache": ("every prompt is computed whole", _no_prefix_cache),
    "compiled": ("torch.compile instead of eager; compiled code of earlier starts is reused", _compiled),
}


def engine_of(variant: str) -> type[VllmEngine]:
    """The product's engine with one choice undone."""
    change = VARIANTS[variant][1]

    class Variant(VllmEngine):
        @property
        def _own_nucleus(self) -> bool:
            return variant != "vLLM's top-p" and super()._own_nucleus

        def _arguments(self) -> Any:
            arguments = super()._arguments()
            change(arguments)
            return arguments

        async def _run(self, prompt_token_ids: Sequence[int], parameters: Any) -> Any:
            if variant == "unseeded":
                parameters.seed = None
            return await super()._run(prompt_token_ids, parameters)

    return Variant


async def one(options: argparse.Namespace) -> dict[str, float]:
    """Run one variant in this process."""
    stand = Stand(find_model(options.gen_model), options.max_new_tokens, captures=False, engine=engine_of(options.one))
    try:
        await stand.open()
        many = await stand.run(whole(options.n_examples), None)
        few = await stand.run(whole(options.n_few), None)
    finally:
        await stand.close()
    return {"load_s": stand.load_s, "auto": many.tokens_per_s, "few": few.tokens_per_s}


def in_process(variant: str, options: argparse.Namespace) -> dict[str, float]:
    """One variant in a process of its own. Raises CalledProcessError, TimeoutExpired."""
    with TemporaryDirectory() as temp:
        path = Path(temp) / "figures.json"
        command = [sys.executable, "-m", "benchmarks.tuning", "--one", variant, "--figures", str(path)]
        for name in ("gen_model", "n_examples", "n_few", "max_new_tokens"):
            command += [f"--{name}", str(getattr(options, name))]
        subprocess.run(command, cwd=ROOT, check=True, timeout=options.limit)
        figures: dict[str, float] = json.loads(path.read_text())
        return figures


def summary(variant: str, rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """A variant's row: medians, and ratios to `as it is` of the same round."""
    beside = [(measured[variant], measured[AS_IT_IS]) for measured in rounds if variant in measured]
    return {
        "variant": variant,
        "what": VARIANTS[variant][0],
        "load_s": spread(own["load_s"] for own, _ in beside),
        "auto": spread(own["auto"] for own, _ in beside),
        "few": spread(own["few"] for own, _ in beside),
        "auto_ratio": spread(own["auto"] / base["auto"] for own, base in beside),
        "few_ratio": spread(own["few"] / base["few"] for own, base in beside),
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Start, tokens a second and ratios of each variant."""
    header = ["variant", "what it is", "start, s", "auto, tokens/s", "ratio", "few, tokens/s", "ratio"]
    rows = [
        [
            row["variant"],
            row["what"],
            shown(row["load_s"]),
            shown(row["auto"], 0),
            shown(row["auto_ratio"], 2),
            shown(row["few"], 0),
            shown(row["few_ratio"], 2),
        ]
        for row in result["rows"]
    ]
    note = (
        f"{result['model']}, {result['samples']} samples of up to {result['max_new_tokens']} tokens at auto, then "
        f"{result['few']} at once; {result['rounds']} rounds, medians (least to most). `start` is the load without the "
        "warm-up. A ratio below 1 is what the product's choice gains."
    )
    failed = "".join(f"\n- {name} gave no figures: {why}" for name, why in result["failed"].items())
    return "\n\n".join(part for part in (note, table(header, rows), failed.strip()) if part)


def compare(options: argparse.Namespace) -> None:
    """All rounds, storing what there is after each."""
    facts, model = machine(), find_model(options.gen_model).name
    rounds: list[dict[str, dict[str, float]]] = []
    failed: dict[str, str] = {}
    with quietly(NAME) as say:
        for number in range(options.rounds):
            measured: dict[str, dict[str, float]] = {}
            rounds.append(measured)
            for variant in options.variants.split(","):
                try:
                    measured[variant] = in_process(variant, options)
                except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                    failed[variant] = str(error)[-200:]
                    continue
                say(f"round {number + 1}, {variant}: {measured[variant]['auto']:.0f} tokens/s")
            names = [name for name in VARIANTS if any(name in each for each in rounds)]
            figures = {
                "model": model,
                "samples": whole(options.n_examples),
                "few": whole(options.n_few),
                "max_new_tokens": options.max_new_tokens,
                "rounds": number + 1,
                "rows": [summary(name, rounds) for name in names],
                "failed": failed,
            }
            record(options.out, NAME, facts, figures)
        say(markdown(figures))


def main() -> None:
    options = parser(NAME, __doc__)
    options.add_argument("--gen_model", default=EMBEDDED)
    options.add_argument("--n_examples", type=int, default=160, help="at auto, all sides together")
    options.add_argument("--n_few", type=int, default=FEW)
    options.add_argument("--max_new_tokens", type=int, default=48)
    options.add_argument("--variants", default=",".join(name for name in VARIANTS if name != "compiled"))
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--limit", type=float, default=240, help="seconds one variant may take")
    options.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    options.add_argument("--figures", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.one:
        Path(chosen.figures).write_text(json.dumps(asyncio.run(one(chosen))))
        return
    compare(chosen)


if __name__ == "__main__":
    main()
