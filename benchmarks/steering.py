"""A sweep over coefficients: in one stream, as a loop, unsteered, and in transformers with a hook.

    python -m benchmarks.steering

The embedded model, one vector of random direction at one layer, the same questions under each
coefficient. `stream` gives the engine all requests of all coefficients at once; `loop` gives it one
coefficient's after the other's; `unsteered` is the stream's requests without a vector, on the same
eager engine; `hf` is transformers' `generate` in batches of 8 with a forward hook, one coefficient
after the other, on a part of them. Methods alternate over the rounds, in turned order. Rates are of
tokens that were really sampled; model loads are apart.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common import machine, parser, quietly, record, shown, spread, table
from tests.support.device import engine_size
from traitmill.engine.generation import Shift, SteeredEngine, on_gpu
from traitmill.engine.models import (
    EMBEDDED,
    ModelRef,
    chat_token_ids,
    find_model,
    generation_dtype,
    load_tokenizer,
    read_config,
)
from traitmill.engine.records import Sample
from traitmill.engine.run.watchdog import tie_children
from traitmill.engine.settings import Execution, Sampling

NAME = "steering"
COEFFICIENTS = (-0.5, -0.375, -0.25, -0.125, 0.125, 0.25, 0.375, 0.5)
LAYER, NORM, DIM, BATCH = 16, 60.0, 576, 8
THINGS = ("sea", "moon", "rain", "bread", "winter", "trains", "bees", "music")
GOAL_LOOP, GOAL_HF, GOAL_COST = 3.0, 3.0, 0.2
Times = dict[str, list[float]]


def vector() -> np.ndarray:
    """A direction as long as the layer's residual stream is on average."""
    drawn = np.random.default_rng(0).standard_normal(DIM)
    return (NORM * drawn / np.linalg.norm(drawn)).astype(np.float32)


def prompts(ref: ModelRef, count: int) -> list[tuple[int, ...]]:
    tokenizer = load_tokenizer(ref)
    return [
        chat_token_ids(
            tokenizer, f"Write about {THINGS[i % len(THINGS)]}, no. {i}.", "2026-01-01T00:00:00Z"
        )
        for i in range(count)
    ]


def sample(ids: tuple[int, ...], seed: int) -> Sample:
    return Sample("t", f"{seed:032x}", "pos", 0, 0, 0, "", "q", "q", ids, seed)


async def on_vllm(
    engine: SteeredEngine, asked: Sequence[tuple[int, ...]], coefficients: Sequence[float | None]
) -> int:
    """Ask all at once; return the tokens sampled."""
    found = await asyncio.gather(
        *(
            engine.steered(
                sample(ids, 1000 * i + j),
                None if coefficient is None else Shift(0, coefficient, len(ids)),
            )
            for i, coefficient in enumerate(coefficients)
            for j, ids in enumerate(asked)
        )
    )
    return sum(len(response.response_token_ids) for response in found)


async def measure_vllm(ref: ModelRef, options: argparse.Namespace) -> Times:
    how = Sampling(model=ref.name, max_new_tokens=options.max_new_tokens)
    size = engine_size(ref, Execution(), 64 + options.max_new_tokens)
    engine = SteeredEngine(ref, how, Execution(), size, on_gpu=on_gpu())
    await asyncio.to_thread(engine.start)
    rates: Times = {"stream": [], "loop": [], "unsteered": []}
    try:
        await engine.load_vectors([(LAYER, vector())])
        asked = prompts(ref, options.n_questions)
        await on_vllm(engine, asked, [0.1, None])  # does not count
        for round_ in range(options.rounds):
            names = list(rates)
            for name in names[round_ % 3 :] + names[: round_ % 3]:
                began = time.perf_counter()
                if name == "loop":
                    tokens = 0
                    for coefficient in COEFFICIENTS:
                        tokens += await on_vllm(engine, asked, [coefficient])
                elif name == "stream":
                    tokens = await on_vllm(engine, asked, COEFFICIENTS)
                else:
                    tokens = await on_vllm(engine, asked, [None] * len(COEFFICIENTS))
                rates[name].append(tokens / (time.perf_counter() - began))
    finally:
        await engine.close()
    return rates


def measure_hf(ref: ModelRef, options: argparse.Namespace) -> Times:
    """Two coefficients' worth of batches of 8, with a hook on the block."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(ref)
    dtype = generation_dtype(read_config(ref.config), "auto", gpu=on_gpu())  # as the engine's
    model: Any = AutoModelForCausalLM.from_pretrained(
        ref.source, dtype=getattr(torch, dtype)
    ).eval()
    push, coefficient = torch.tensor(vector()), 0.0

    def hook(_block: Any, _inputs: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        if stream.shape[1] > 1:  # the prompt
            return output
        moved = (stream.float() + coefficient * push).to(stream.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    model.model.layers[LAYER].register_forward_hook(hook)
    asked, rates = prompts(ref, BATCH), []
    for round_ in range(options.rounds + 1):
        began, tokens = time.perf_counter(), 0
        for wanted in COEFFICIENTS[:2]:
            coefficient = wanted
            width = max(map(len, asked))
            pad = [[tokenizer.pad_token_id] * (width - len(ids)) + list(ids) for ids in asked]
            mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in asked]
            with torch.inference_mode():
                out = model.generate(
                    torch.tensor(pad),
                    attention_mask=torch.tensor(mask),
                    do_sample=True,
                    temperature=0.7,
                    top_p=0.9,
                    max_new_tokens=options.max_new_tokens,
                    pad_token_id=tokenizer.pad_token_id,
                )
            for row in out[:, width:].tolist():
                ended = tokenizer.eos_token_id in row
                tokens += row.index(tokenizer.eos_token_id) + 1 if ended else len(row)
        if round_:  # the first does not count
            rates.append(tokens / (time.perf_counter() - began))
    return {"hf": rates}


SAID = {
    "stream": "all coefficients in one stream",
    "loop": "a loop over coefficients",
    "unsteered": "the stream's requests, unsteered",
    "hf": f"transformers with a hook, batches of {BATCH}",
}
GOALS = {
    "loop": "{0:.1f} times a loop (goal: {1:g})",
    "hf": "{0:.1f} times transformers (goal: {1:g})",
    "cost": "{0:.0%} slower than unsteered (goal: at most {1:.0%})",
}


def markdown(result: Mapping[str, Any]) -> str:
    """The rates, and what was reached of the goals."""
    rates = result["rates"]
    rows = [
        [said, shown(spread(rates[name]), 0), f"{ratio(rates, name):.2f}"]
        for name, said in SAID.items()
    ]
    reached = ", ".join(said.format(*result["goals"][name]) for name, said in GOALS.items())
    return (
        f"{len(result['coefficients'])} coefficients of {result['n_questions']} questions, up to "
        f"{result['max_new_tokens']} tokens each: median, least and most of {len(rates['stream'])} "
        f"rounds in turned order.\n\n{table(['', 'tokens/s', 'stream against it'], rows)}\n\n"
        f"The stream is {reached}."
    )


def ratio(rates: Times, name: str) -> float:
    """How many times as fast the stream is, by medians."""
    return float(np.median(rates["stream"]) / np.median(rates[name]))


def main() -> None:
    made = parser(NAME, __doc__)
    made.add_argument("--gen_model", default=EMBEDDED)
    made.add_argument("--n_questions", type=int, default=16)
    made.add_argument("--max_new_tokens", type=int, default=64)
    made.add_argument("--rounds", type=int, default=3)
    options = made.parse_args()
    facts = machine()
    with quietly(NAME) as say:
        tie_children()
        ref = find_model(options.gen_model)
        rates = asyncio.run(measure_vllm(ref, options))
        rates |= measure_hf(ref, options)
        goals = {
            "loop": [ratio(rates, "loop"), GOAL_LOOP],
            "hf": [ratio(rates, "hf"), GOAL_HF],
            "cost": [1 - ratio(rates, "unsteered"), GOAL_COST],
        }
        figures = {
            "rates": rates,
            "goals": goals,
            "coefficients": COEFFICIENTS,
            "n_questions": options.n_questions,
            "max_new_tokens": options.max_new_tokens,
        }
        say(markdown(figures))
        say(str(record(options.out, NAME, facts, figures)))


if __name__ == "__main__":
    main()
