"""What a user would run instead of traitmill, written from the methods' descriptions, and traitmill
itself.

Each takes a model, the samples and the options (max_new_tokens, latency), and returns seconds by
stage.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.stand import SIDES, TRAITS, SleepingJudge, Stand, longest_prompt
from traitmill.engine.generation import on_gpu, size_engine
from traitmill.engine.models import (
    ModelRef,
    free_host_memory,
    generation_dtype,
    load_tokenizer,
    read_config,
)
from traitmill.engine.records import Sample
from traitmill.engine.settings import Execution

GUIDE_BATCH, PEER_BATCH, JUDGE_CHUNK = 8, 16, 20
TEMPERATURE, TOP_P = 0.7, 0.9
_WARM_UP_TOKENS = 4
Times = dict[str, float]
"""Seconds by stage, and `tokens`."""


class Watch:
    """Adds up seconds by stage; reads the clock once a stage."""

    def __init__(self) -> None:
        self.times: Times = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.times[stage] = self.times.get(stage, 0.0) + now - self._last
        self._last = now


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def judge(n: int, latency: float, chunk: int) -> None:
    """`n` calls of that latency, `chunk` at a time, the next chunk when all of the last have
    answered."""

    async def calls() -> None:
        for group in batches(range(n), chunk):
            await asyncio.gather(*(asyncio.sleep(latency) for _ in group))

    asyncio.run(calls())


# --- transformers ---


class Transformers:
    """A model and its tokenizer as scripts load them."""

    def __init__(self, ref: ModelRef) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = load_tokenizer(ref)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        model: Any = AutoModelForCausalLM.from_pretrained(
            ref.source, revision=ref.hub_revision, dtype="auto"
        )
        self.model = model.to(self.device).eval()

    def generate(self, samples: Sequence[Sample], max_new_tokens: int) -> list[list[int]]:
        """One fixed batch, padded on the left; response tokens up to and with the first end token."""
        import torch

        width = longest_prompt(samples)
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        prompts = [list(sample.prompt_token_ids) for sample in samples]
        ids = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        torch.manual_seed(samples[0].seed)
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=torch.tensor(ids, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                do_sample=True,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                top_k=0,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                eos_token_id=end,
            )
        rows: list[list[int]] = output[:, width:].tolist()
        return [row[: row.index(end) + 1] if end in row else row for row in rows]

    def states(self, texts: Sequence[str]) -> Any:
        """All hidden states `[layers + 1, rows, tokens, dim]` and the mask of a padded batch of
        texts."""
        import torch

        self.tokenizer.padding_side = "right"
        batch = self.tokenizer(list(texts), return_tensors="pt", padding=True).to(self.device)
        with torch.inference_mode():
            output = self.model(**batch, output_hidden_states=True)
        return torch.stack(output.hidden_states), batch["attention_mask"]

    def text(self, sample: Sample, response: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode([*sample.prompt_token_ids, *response], skip_special_tokens=True)
        )


def _mean(states: Any, mask: Any) -> Any:
    """float32 `[rows, layers + 1, dim]` on the host: means over tokens."""
    weights = mask[None, :, :, None].float()
    return ((states.float() * weights).sum(2) / weights.sum(2)).transpose(0, 1).cpu()


def _save(pooled: Sequence[Any]) -> None:
    import torch

    with TemporaryDirectory() as temp, (Path(temp) / "all_layers.pt").open("wb") as file:
        torch.save(torch.cat(list(pooled)), file)


def guide(ref: ModelRef, samples: Sequence[Sample], options: argparse.Namespace) -> Times:
    start = time.perf_counter()
    hf = Transformers(ref)
    first = samples[:GUIDE_BATCH]
    hf.states(
        [hf.text(s, r) for s, r in zip(first, hf.generate(first, _WARM_UP_TOKENS), strict=True)]
    )
    load = time.perf_counter() - start
    watch, tokens = Watch(), 0
    for side in batches(samples, len(samples) // SIDES):
        responses = [
            r for b in batches(side, GUIDE_BATCH) for r in hf.generate(b, options.max_new_tokens)
        ]
        tokens += sum(map(len, responses))
        watch.lap("generation_s")
        judge(len(side), options.latency, len(side))
        watch.lap("judging_s")
        texts = [
            hf.text(sample, response) for sample, response in zip(side, responses, strict=True)
        ]
        _save([_mean(*hf.states(batch)) for batch in batches(texts, GUIDE_BATCH)])
        watch.lap("capture_s")
    return {"load_s": load, "tokens": tokens, **watch.times}


# --- vLLM's offline class ---


def _llm(ref: ModelRef, samples: Sequence[Sample], max_new_tokens: int, **more: Any) -> Any:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    gpu = on_gpu()
    if not gpu:
        os.environ.setdefault(
            "VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0))))
        )
    from vllm import LLM

    longest = longest_prompt(samples) + max_new_tokens
    size = size_engine(ref, Execution(), longest, on_gpu=gpu, free_bytes=free_host_memory())
    return LLM(
        model=ref.source,
        revision=ref.hub_revision,
        max_num_seqs=size.max_num_seqs,
        max_num_batched_tokens=size.max_num_batched_tokens,
        max_model_len=size.max_model_len,
        kv_cache_memory_bytes=size.kv_cache_bytes,
        block_size=None if gpu else 32,
        enforce_eager=not gpu,
        enable_prefix_caching=True,
        enable_chunked_prefill=None if gpu else False,  # as the product has it, and why
        generation_config="vllm",
        **more,
    )


def _offline(
    llm: Any, samples: Sequence[Sample], max_new_tokens: int, top_p: float = TOP_P
) -> list[list[int]]:
    from vllm import SamplingParams, TokensPrompt

    prompts = [TokensPrompt(prompt_token_ids=list(sample.prompt_token_ids)) for sample in samples]
    limits = [
        SamplingParams(
            temperature=TEMPERATURE, top_p=top_p, max_tokens=max_new_tokens, seed=sample.seed
        )
        for sample in samples
    ]
    return [
        list(output.outputs[0].token_ids)
        for output in llm.generate(prompts, limits, use_tqdm=False)
    ]


def _bare(
    ref: ModelRef,
    samples: Sequence[Sample],
    options: argparse.Namespace,
    top_p: float = TOP_P,
    **more: Any,
) -> Times:
    start = time.perf_counter()
    llm = _llm(ref, samples, options.max_new_tokens, **more)
    _offline(llm, samples[:SIDES], options.max_new_tokens, top_p)
    _forget(llm)
    load = time.perf_counter() - start
    watch = Watch()
    responses = _offline(llm, samples, options.max_new_tokens, top_p)
    watch.lap("generation_s")
    return {"load_s": load, "tokens": sum(map(len, responses)), **watch.times}


def _forget(llm: Any) -> None:
    """Empty the prefix cache after a warm-up."""
    if not llm.reset_prefix_cache():
        raise RuntimeError("vLLM's prefix cache could not be emptied after the warm-up")


def bare(ref: ModelRef, samples: Sequence[Sample], options: argparse.Namespace) -> Times:
    return _bare(ref, samples, options)


def bare_tuned(ref: ModelRef, samples: Sequence[Sample], options: argparse.Namespace) -> Times:
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    from traitmill.engine.generation.top_p import NAME

    os.environ |= {"TORCH_COMPILE_DISABLE": "1", "GOMP_SPINCOUNT": "2000"}
    config = read_config(ref.config)
    more = {
        "logits_processors": [NAME],
        "additional_config": {"top_p": TOP_P},
        "dtype": generation_dtype(config, "auto", gpu=on_gpu()),
    }
    return _bare(ref, samples, options, 1.0, distributed_executor_backend=UniProcExecutor, **more)


def bare_default(ref: ModelRef, samples: Sequence[Sample], options: argparse.Namespace) -> Times:
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "auto"
    return bare(ref, samples, options)


def peer(ref: ModelRef, samples: Sequence[Sample], options: argparse.Namespace) -> Times:
    start = time.perf_counter()
    llm = _llm(ref, samples, options.max_new_tokens)
    _offline(llm, samples[:SIDES], options.max_new_tokens)
    _forget(llm)
    load = time.perf_counter() - start
    watch = Watch()
    responses: list[list[int]] = []
    for trait in batches(samples, len(samples) // len(TRAITS)):
        responses += _offline(llm, trait, options.max_new_tokens)
    watch.lap("generation_s")
    llm.llm_engine.engine_core.shutdown()
    del llm
    hf = Transformers(ref)
    hf.states([hf.text(sample, ()) for sample in samples[:PEER_BATCH]])
    load += time.perf_counter() - watch._last  # noqa: SLF001 - the second load is apart as the first is
    watch._last = time.perf_counter()  # noqa: SLF001
    texts = [hf.text(sample, response) for sample, response in zip(samples, responses, strict=True)]
    kept = [hf.states(batch) for batch in batches(texts, PEER_BATCH)]
    _save([_mean(*states) for states in kept])
    watch.lap("capture_s")
    judge(len(samples), options.latency, JUDGE_CHUNK)
    watch.lap("judging_s")
    return {"load_s": load, "tokens": sum(map(len, responses)), **watch.times}


def ours(ref: ModelRef, samples: Sequence[Sample], options: argparse.Namespace) -> Times:
    async def work() -> Times:
        stand = Stand(ref, options.max_new_tokens, watched=False)
        start = time.perf_counter()
        await stand.open()
        load = time.perf_counter() - start
        try:
            run = await stand.run(len(samples), SleepingJudge(options.latency), close_engine=True)
        finally:
            await stand.close()
        seconds = {f"{stage}_s": seconds for stage, seconds in run.seconds.items()}
        return {"load_s": load, "tokens": run.tokens, "makespan_s": run.makespan, **seconds}

    return asyncio.run(work())


METHODS: dict[str, Callable[[ModelRef, Sequence[Sample], argparse.Namespace], Times]] = {
    "guide": guide,
    "peer": peer,
    "bare": bare,
    "bare-tuned": bare_tuned,
    "ours": ours,
    "bare-default": bare_default,
}
STAGES = ("generation_s", "judging_s", "capture_s")
