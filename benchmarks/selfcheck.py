"""What the self-check's tolerances stand on: rounding as it is, and what mistakes do. `python -m
benchmarks.selfcheck`.

vLLM generates responses and keeps their log-probs, in bfloat16 and in float32. Each is captured in
a batch and run alone, as the self-check does with some: pools must agree with the batch, log-probs
with vLLM's. Then mistakes are made on purpose: a second BOS, a prompt without its system turn, a
block skipped, weights 1 % too large.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.common import machine, parser, quietly, record, table
from traitmill.engine.capture.decoder import find_blocks
from traitmill.engine.capture.model import CaptureModel
from traitmill.engine.capture.reference import run_alone
from traitmill.engine.models.demo import embedded_folder
from traitmill.engine.models.hub import find_model
from traitmill.engine.records import Response
from traitmill.engine.settings import CaptureSettings

DTYPES = ("bfloat16", "float32")
MODEL = "embedded/SmolLM2-135M-Instruct"
POOLS = ("response_mean",)


async def generate(n: int, dtype: str, max_new_tokens: int) -> list[Response]:
    """Responses of real vLLM to the demo's prompts, with the log-probs of all of them."""
    from benchmarks.stand import workload
    from traitmill.engine.generation import vllm_engine as generation
    from traitmill.engine.models.machine import free_host_memory
    from traitmill.engine.run.watchdog import tie_children
    from traitmill.engine.settings import Execution, Sampling

    tie_children()
    ref = find_model(MODEL)
    samples = workload(ref, n, max_new_tokens)
    longest = max_new_tokens + max(len(sample.prompt_token_ids) for sample in samples)
    gpu = generation.on_gpu()
    size = generation.size_engine(
        ref, Execution(batch_size=n), longest, on_gpu=gpu, free_bytes=free_host_memory()
    )
    sampling = Sampling(
        model=ref.name, revision=ref.revision, dtype=dtype, max_new_tokens=max_new_tokens
    )
    engine = generation.VllmEngine(ref, sampling, Execution(), size, on_gpu=gpu)
    await asyncio.to_thread(engine.start)
    try:
        with patch.object(generation, "is_checked", lambda _sample: True):
            responses = await asyncio.gather(*(engine.generate(sample) for sample in samples))
    finally:
        await engine.close()
    return [response for response in responses if response.status == "ok"]


def check(rows: Sequence[Response], path: str, dtype: str) -> dict[str, Any]:
    """What the self-check says of every row, and how far apart rows and layers are."""
    model = CaptureModel(
        path, CaptureSettings(pools=POOLS, dtype=dtype), self_check="all", generation_dtype=dtype
    )
    pooled = [result.pools[POOLS[0]] for result in model.capture(rows)]
    summary = model.check_summary()
    return {
        "dtype": dtype,
        "rows": summary["rows"],
        "states": summary["worst_state_deviation"][POOLS[0]],
        "states_tolerance": summary["state_tolerance"][POOLS[0]],
        "response": summary["worst_logprob_deviation"],
        "response_tolerance": summary["logprob_tolerance"],
        "all": summary["mean_logprob_deviation"],
        "all_tolerance": summary["mean_logprob_tolerance"],
        "closest_rows": min(float(_apart(a, b).max()) for a, b in combinations(pooled, 2)),
        "closest_shift": min(float(_apart(values[1:], values[:-1]).max()) for values in pooled),
    }


def _apart(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Relative distance of each layer."""
    distance: np.ndarray = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(
        expected, axis=-1
    )
    return distance


def mistakes(rows: Sequence[Response], path: str, dtype: str) -> dict[str, float]:
    """Mean |log-prob - vLLM's| over all tokens, in nats, when something is wrong."""
    model = CaptureModel(path, CaptureSettings(dtype=dtype), self_check="off")._model  # noqa: SLF001  it is to be damaged
    blocks = find_blocks(model, None)
    bos = model.config.get_text_config().bos_token_id

    def off(prompt_of: Callable[[tuple[int, ...]], tuple[int, ...]]) -> float:
        differences = []
        for made in rows:
            prompt = prompt_of(made.sample.prompt_token_ids)
            row = replace(made, sample=replace(made.sample, prompt_token_ids=prompt))
            reference = run_alone(
                model,
                blocks,
                prompt,
                row.response_token_ids,
                spans=row.spans,
                pools=POOLS,
                logprobs=True,
            )
            assert reference.logprobs is not None
            assert row.logprobs is not None
            differences.append(
                np.abs(reference.logprobs - np.array(row.logprobs)[list(reference.positions)])
            )
        return float(np.concatenate(differences).mean())

    def without_first_turn(prompt: tuple[int, ...]) -> tuple[int, ...]:
        return prompt[prompt.index(prompt[0], 1) :] if prompt[0] in prompt[1:] else prompt[1:]

    found = {
        "nothing": off(lambda prompt: prompt),
        "a second BOS": off(lambda prompt: (bos, *prompt)),
        "no system turn": off(without_first_turn),
    }
    skipped = blocks[len(blocks) // 2].register_forward_hook(
        lambda _module, inputs, _output: inputs[0]
    )
    found["one block skipped"] = off(lambda prompt: prompt)
    skipped.remove()
    with torch.no_grad():
        for parameter in (each for block in blocks for each in block.parameters()):
            parameter.mul_(1.01)
    found["weights 1 % too large"] = off(lambda prompt: prompt)
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """Deviations beside their tolerances, and what mistakes do."""
    checked = result["checked"]
    header = [
        "",
        *(name for each in checked for name in (f"{each['dtype']}, worst seen", "tolerance")),
    ]
    lines = [
        [
            label,
            *(
                text
                for each in checked
                for text in (f"{each[name]:.2g}", f"{each[f'{name}_tolerance']:g}")
            ),
        ]
        for name, label in (
            ("states", "pooled vector, batched against alone, relative"),
            ("response", "log-probs, mean of one response, nats"),
            ("all", "log-probs, mean of all, nats"),
        )
    ]
    apart = "; ".join(
        f"{each['dtype']}: the closest two responses are {each['closest_rows']:.2g} apart, "
        f"neighbouring layers "
        f"{each['closest_shift']:.2g}"
        for each in checked
    )
    made = result.get("mistakes", {})
    wrong = table(
        ["what is wrong", "log-probs, mean of all, nats"],
        ([name, f"{off:.3f}"] for name, off in made.items()),
    )
    head = f"{result['model']}, {checked[0]['rows']} responses of up to {result['max_new_tokens']} tokens, vLLM."
    parts = [
        head,
        table(header, lines),
        f"By `{POOLS[0]}`, relative, at the layer where it shows most: {apart}.",
    ]
    return "\n\n".join([*parts, *([f"In {result['mistakes_dtype']}:", wrong] if made else [])])


def main() -> None:
    options = parser("selfcheck", __doc__)
    options.add_argument("--rows", type=int, default=24)
    options.add_argument("--max_new_tokens", type=int, default=100)
    chosen = options.parse_args()
    facts, path = machine(), str(embedded_folder())
    found: dict[str, Any] = {"model": MODEL, "max_new_tokens": chosen.max_new_tokens, "checked": []}
    with quietly("selfcheck") as say:
        for dtype in DTYPES:
            rows = asyncio.run(generate(chosen.rows, dtype, chosen.max_new_tokens))
            found["checked"].append(check(rows, path, dtype))
            if dtype == DTYPES[0]:
                found |= {"mistakes_dtype": dtype, "mistakes": mistakes(rows, path, dtype)}
            record(chosen.out, "selfcheck", facts, found)
        say(markdown(found))


if __name__ == "__main__":
    main()
