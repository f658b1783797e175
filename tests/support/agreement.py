"""How far vLLM is from what capture computes, over texts longer than any window, token by token."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import torch

from traitmill.engine.capture.decoder import load
from traitmill.engine.generation import EngineSize, VllmEngine
from traitmill.engine.models import find_model
from traitmill.engine.settings import Execution, Sampling

BAR = 1e-3
"""Nats a token in float32: rounding stays below a third of it, and a fault is a tenth and more."""
PROMPTS = (400, 90, 300)
"""Tokens. Windows and lengths of these models are 64 and 256."""
NEW, _CONTEXT = 48, 512
_SIZE = EngineSize(4, 2048, _CONTEXT, 512 << 20)


@dataclass(frozen=True)
class Apart:
    """Largest differences of a token's log-probability, in nats."""

    read: float
    """Of prompts."""
    written: float
    """Of tokens that vLLM sampled behind them, one by one, the rows of a batch together."""
    first: int | None
    """The first place in the longest prompt that is beyond the bar."""


async def apart(folder: Path, dtype: str = "float32") -> Apart:
    """Compare the two engines on random prompts and what vLLM writes behind them."""
    ref = find_model(str(folder))
    how = Sampling(model=ref.name, max_new_tokens=NEW, dtype=dtype)
    engine = VllmEngine(ref, how, Execution(), _SIZE, on_gpu=False)
    noise = torch.Generator().manual_seed(11)
    prompts = [torch.randint(20, 40_000, (n,), generator=noise).tolist() for n in PROMPTS]
    try:
        await asyncio.to_thread(engine.start)
        rows = await asyncio.gather(*(_rows(engine, prompt) for prompt in prompts))
    finally:
        await engine.close()
    model = load(str(folder), dtype=dtype, attn="auto", device="cpu")
    read, written, first = 0.0, 0.0, None
    for prompt, (ids, found) in zip(prompts, rows, strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
        chosen = torch.tensor(ids[1:])[:, None]
        expected = logits.log_softmax(-1)[:-1].gather(-1, chosen)[:, 0]
        off = (torch.tensor(found) - expected).abs()
        read = max(read, float(off[: len(prompt) - 1].max()))
        written = max(written, float(off[len(prompt) - 1 :].max()))
        if len(prompt) == max(PROMPTS) and (off > BAR).any():
            first = int((off > BAR).nonzero()[0])
    return Apart(read, written, first)


async def _rows(engine: VllmEngine, prompt: list[int]) -> tuple[list[int], list[float]]:
    """Return a prompt with what vLLM writes behind it, and its log-probabilities of all but the
    first token."""
    from vllm import SamplingParams

    common = {"detokenize": False}
    reading = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, **common)
    writing = SamplingParams(
        temperature=1.0, seed=3, max_tokens=NEW, logprobs=0, ignore_eos=True, **common
    )
    read, answer = await asyncio.gather(engine._run(prompt, reading), engine._run(prompt, writing))
    new = list(answer.outputs[0].token_ids)
    steps = [*read.prompt_logprobs[1:], *answer.outputs[0].logprobs]
    ids = [*prompt, *new]
    return ids, [step[token].logprob for step, token in zip(steps, ids[1:], strict=True)]
