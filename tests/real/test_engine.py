"""The real engine in this process: one start, shared by what is asked of vLLM itself."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.support import fakes
from tests.support.device import engine_size
from traitmill.engine.generation import VllmEngine, is_checked, on_gpu
from traitmill.engine.judging.local import LocalJudge
from traitmill.engine.models import fast_bfloat16
from traitmill.engine.models.chat import lazy_tokenizer
from traitmill.engine.models.hub import find_model
from traitmill.engine.models.tokenizer import load_tokenizer
from traitmill.engine.records import Sample
from traitmill.engine.run.backends import Backends
from traitmill.engine.run.pipeline import Pipeline
from traitmill.engine.run.wanted import Wanted
from traitmill.engine.run.watchdog import tie_children
from traitmill.engine.settings import Execution, JudgeSettings, RunSettings, SampleCounts, Sampling
from traitmill.engine.storage import TraitFolder, load_state
from traitmill.engine.traits.definition import load_traits

pytestmark = pytest.mark.slow

CAP = 8
TRAITS = ("first", "second")


class Run:
    """One pipeline over two traits on real vLLM with the local judge; capture is a spy."""

    def __init__(self, root: Path, model_folder: Path) -> None:
        from vllm.v1.metrics.loggers import StatLoggerBase

        run = self
        self.running: list[tuple[int, int]] = []

        class Watch(StatLoggerBase):
            def __init__(self, vllm_config: object, engine_index: int = 0) -> None:
                pass

            def record(self, scheduler_stats: object, iteration_stats: object, **_: object) -> None:
                if scheduler_stats is not None:
                    run.running.append(
                        (scheduler_stats.num_running_reqs, scheduler_stats.num_waiting_reqs)
                    )

            def log_engine_initialized(self) -> None:
                pass

        tie_children()
        self.ref = find_model(str(model_folder))
        sampling = Sampling(model=self.ref.name, revision=self.ref.revision, max_new_tokens=24)
        self.settings = RunSettings(
            sampling=sampling,
            counts=SampleCounts(n_examples=18),
            judge=JudgeSettings(model="local"),
            execution=Execution(batch_size=CAP, flush_seconds=1),
        )
        content = {
            "instruction": [
                {
                    "pos": "Write a short fairy tale.",
                    "neg": "Give a dictionary definition in one sentence.",
                },
                {"pos": "Tell this as a fairy tale.", "neg": "Define this as a dictionary would."},
            ],
            "questions": [
                f"Write about the {thing}." for thing in ("moon", "sea", "bell", "wolf", "garden")
            ],
            "eval_prompt": "Score {question} {answer}",
            "yes_no_prompt": "{question}\n\n{answer}\n\nIs this text a fairy tale story? Answer Yes or No.",
        }
        self.folders = {name: fakes.make_trait(root, name, content) for name in TRAITS}
        tokenizers = lazy_tokenizer(self.ref)
        self.runs = [
            fakes.open_run(
                Wanted(
                    trait=trait,
                    folder=TraitFolder(self.folders[trait.name]),
                    settings=self.settings,
                    generates=True,
                    judges=True,
                ),
                self.ref,
                tokenizers,
                print,
            )
            for trait in load_traits(self.folders)
        ]
        size = engine_size(self.ref, self.settings.execution, 300)
        size = replace(size, max_num_batched_tokens=size.max_model_len)
        self.engine = VllmEngine(
            self.ref, sampling, self.settings.execution, size, on_gpu=on_gpu(), stat_loggers=[Watch]
        )
        self.engine.start()
        self.spy = fakes.FakeCapture(self.settings.capture)

    async def work(self) -> None:
        by_name = {one.name: one for one in self.runs}
        judge = LocalJudge(
            self.engine,
            load_tokenizer(self.ref),
            self.settings.judge,
            self.ref.name,
            lambda trait, offset: by_name[trait].learn(offset=offset),
        )
        for one in self.runs:
            ids = [one.state.plan.ids[place].decode() for place in one.calibration()]
            judge.open_trait(one.name, ids, None, one.state.record.created)
        backends = Backends(
            generator=self.engine, judge=judge, capturer=self.spy, on_skipped=judge.skip
        )
        self.pipeline = Pipeline(self.runs, self.settings, backends)
        await self.pipeline.run()
        long = Sample(
            "first", "0" * 32, "pos", 0, 0, 0, "i", "q", "p", tuple(range(5, 5 + 1000)), 1
        )
        self.overlong = await self.engine.generate(long)
        prompts = [tuple(range(100 + 300 * i, 400 + 300 * i)) for i in range(4)]
        samples = [
            Sample("first", f"{i:032x}", "pos", 1, 0, 0, "i", "q", "p", ids, i)
            for i, ids in enumerate(prompts)
        ]
        self.crowded = await asyncio.gather(*map(self.engine.generate, samples))
        children = psutil.Process().children(recursive=True)
        self.cores = [child for child in children if "EngineCore" in child.name()]
        await self.engine.close()
        self.left = [child.status() for child in self.cores if child.is_running()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Run:
    made = Run(tmp_path_factory.mktemp("real"), model_folder)
    asyncio.run(made.work())
    return made


def test_everything_arrives(run: Run) -> None:
    assert not run.pipeline.errors
    for job in run.runs:
        assert job.finished
        counts = load_state(job.folder).counts()
        for side in ("pos", "neg"):
            assert counts[side]["responses"]["ok"] + counts[side]["responses"]["empty"] == 18
            assert counts[side]["verdicts"]["unjudged"] == 0


def test_t32_an_ended_engine_is_reaped_before_capture_begins(run: Run) -> None:
    assert len(run.cores) == 1
    assert run.left == []


def test_running_sequences_stay_near_the_cap_until_the_queue_is_empty(run: Run) -> None:
    while_waiting = [running for running, waiting in run.running if waiting > 0]
    assert len(while_waiting) > 10
    assert np.mean(while_waiting) >= 0.8 * CAP
    assert max(running for running, _ in run.running) == CAP


def test_capture_sees_the_token_ids_that_vllm_saw_and_sampled(run: Run) -> None:
    seen = {(row.sample.trait, row.sample.id): row for row in run.spy.rows}
    tokenizer = load_tokenizer(run.ref)
    for job in run.runs:
        view = load_state(job.folder)
        stored = view.read_responses(np.flatnonzero(view.responses.having("ok")))
        for response in stored:
            row = seen[job.name, response.sample.id]
            assert row.sample.prompt_token_ids == response.sample.prompt_token_ids
            assert row.response_token_ids == response.response_token_ids
            assert (
                tokenizer.decode(response.response_token_ids, skip_special_tokens=True)
                == response.response
            )
            ended = response.finish_reason == "stop"
            assert row.n_pooled == len(response.response_token_ids) - ended
            assert (response.response_token_ids[-1] == tokenizer.eos_token_id) == ended
            text = tokenizer.decode(response.sample.prompt_token_ids)
            assert text.count(response.sample.prompt) == 1
            assert text.endswith("<|im_start|>assistant\n")
            assert is_checked(response.sample) == (response.logprobs is not None)
            if response.logprobs is not None:
                assert len(response.logprobs) == len(response.response_token_ids)
                assert max(response.logprobs) <= 0


def test_sampled_tokens_come_from_the_nucleus(run: Run) -> None:
    """Top-p is ours on CPU: left out, one token in ten or so would come from outside it."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if fast_bfloat16("cpu") else torch.float32
    model = AutoModelForCausalLM.from_pretrained(run.ref.source, dtype=dtype)
    outside = total = 0
    for row in run.spy.rows:
        ids = torch.tensor([[*row.sample.prompt_token_ids, *row.response_token_ids]])
        with torch.inference_mode():
            logits = (
                model(ids).logits[0, len(row.sample.prompt_token_ids) - 1 : -1].float()
                / run.settings.sampling.temperature
            )
        probabilities = logits.softmax(-1)
        chosen = probabilities.gather(-1, ids[0, len(row.sample.prompt_token_ids) :, None])
        likelier = torch.where(probabilities > chosen, probabilities, 0.0).sum(-1)
        outside += int(
            (likelier > run.settings.sampling.top_p + 0.03).sum()
        )  # bfloat16 moves the border a little
        total += len(likelier)
    assert total > 1000
    assert outside / total < 0.01


def test_the_local_judge_is_what_it_says(run: Run) -> None:
    for job in run.runs:
        view = load_state(job.folder)
        offset = view.judge.offset
        columns = ["sample_id", "status", "score", "raw", "mode"]
        judged = np.flatnonzero(view.verdicts.status >= 0)
        rows = [
            row for table in view.tables("verdicts", judged, columns) for row in table.to_pylist()
        ]
        margins = {}
        for row in rows:
            margins[row["sample_id"]] = json.loads(row["raw"])["m"]
            assert row["mode"] == "local_relative"
            if row["status"] == "scored":
                assert row["score"] == pytest.approx(
                    100 / (1 + np.exp(offset - margins[row["sample_id"]])), abs=0.02
                )
        picked = [view.plan.ids[p].decode() for p in job.calibration()]
        assert len(picked) == 32
        assert offset == pytest.approx(
            np.mean([margins[id_] for id_ in picked if id_ in margins]), abs=1e-3
        )


def test_seeded_prompts_that_do_not_fit_one_step_together_are_all_answered(run: Run) -> None:
    """vLLM would cut one of them in two, which its CPU engine does not survive."""
    assert run.engine.size.max_num_batched_tokens < 2 * 300
    assert all(response.response_token_ids for response in run.crowded)


def test_f20_a_prompt_longer_than_the_context_fails_by_name(run: Run) -> None:
    assert run.overlong.status == "overlong"
    assert "1000 tokens" in run.overlong.error
