"""What vLLM is asked for, what becomes of its answers and errors, and that its processes end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import ROOT
from traitmill.engine.errors import AccessError, EngineDiedError, ExitCode, UsageError
from traitmill.engine.generation import (
    EngineSize,
    VllmEngine,
    check_architecture,
    is_checked,
    require_cpu_build,
    vllm_engine,
)
from traitmill.engine.generation.environment import binding, set_environment
from traitmill.engine.models import Adapter, ModelRef
from traitmill.engine.records import Sample
from traitmill.engine.settings import Execution, Sampling

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "dtype": "bfloat16",
}
pytestmark = pytest.mark.usefixtures("online")
REF = ModelRef("someone/model", "someone/model", "abc", CONFIG)
SIZE = EngineSize(4, 128, 32, 1 << 30, 0.5)


def of_class(name: str, **config: Any) -> ModelRef:
    return replace(REF, config=CONFIG | {"architectures": [name], **config})


def test_a_class_that_vllm_cannot_compute_is_refused_before_anything_loads() -> None:
    check_architecture(of_class("LlamaForCausalLM"))
    check_architecture(of_class("OnlyTransformersKnowsForCausalLM"))
    with pytest.raises(UsageError, match=r"is a MptForCausalLM, which vLLM computed until version"):
        check_architecture(of_class("MptForCausalLM"))
    experts = {"model_type": "phimoe", "num_local_experts": 4, "num_experts_per_tok": 2}
    with pytest.raises(UsageError, match="a mixture of experts that vLLM has no code of its own"):
        check_architecture(of_class("PhimoeForCausalLM", **experts))
    check_architecture(of_class("PhiMoEForCausalLM", **experts))


def test_a_start_that_was_abandoned_before_it_began_loads_nothing() -> None:
    engine = made()
    engine.abandon()
    engine.start()
    assert engine._engine is None


def test_vllm_is_told_of_scales_that_it_looks_for_elsewhere() -> None:
    """From positions that a test of a small model reaches by other sizes alone."""

    def arguments(**config: Any) -> Any:
        ref = replace(REF, config=CONFIG | config)
        sampling = Sampling(model=REF.name, max_new_tokens=20)
        return VllmEngine(ref, sampling, Execution(), SIZE, on_gpu=True)._arguments()

    assert not arguments().hf_overrides
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "llama_4_scaling_beta": 0.1,
    }
    told = {"llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 16384}}
    assert arguments(model_type="ministral3", rope_parameters=rope).hf_overrides == told
    inner = {"model_type": "ministral3", "rope_parameters": rope}
    wrapped = arguments(model_type="mistral3", text_config=inner, vision_config={})
    assert wrapped.hf_overrides == {"text_config": told}
    for tuned in (True, False):
        llama4 = arguments(model_type="llama4_text", attn_temperature_tuning=tuned)
        assert llama4.override_generation_config == {"attn_temperature_tuning": tuned}


@pytest.mark.parametrize(
    ("config", "native"),
    [
        ({}, False),
        ({"model_type": "lfm2"}, True),
        ({"model_type": "lfm2_moe"}, True),
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512, "qk_rope_head_dim": 64}, True),
    ],
)
def test_tables_of_heads_are_rotated_by_pytorch_on_a_cpu(
    config: dict[str, Any], native: bool
) -> None:
    ref = replace(REF, config=CONFIG | config)
    sampling = Sampling(model=REF.name, max_new_tokens=20)
    arguments = VllmEngine(ref, sampling, Execution(), SIZE, on_gpu=False)._arguments()
    assert ("-rotary_embedding" in arguments.compilation_config.custom_ops) == native


def test_latent_attention_on_a_cpu_is_that_which_is_right_there() -> None:
    latent = {"model_type": "deepseek_v3", "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    for config, backend in (({}, None), (latent, "CPU_MLA")):
        engine = VllmEngine(
            replace(REF, config=CONFIG | config),
            Sampling(model=REF.name, max_new_tokens=20),
            Execution(),
            SIZE,
            on_gpu=False,
        )
        arguments = engine._arguments()
        chosen = arguments.attention_backend
        assert (chosen and getattr(chosen, "name", chosen)) == backend


def sample(n_tokens: int = 3, question: int = 0, rollout: int = 0, instruction: int = 0) -> Sample:
    ids = tuple(range(10, 10 + n_tokens))
    return Sample("t", "0" * 32, "pos", instruction, question, rollout, "i", "q", "p", ids, 11)


def made(gpu: bool = False, execution: Execution | None = None, **sampling: Any) -> VllmEngine:
    identity = Sampling(model=REF.name, **{"max_new_tokens": 20, **sampling})
    return VllmEngine(REF, identity, execution or Execution(), SIZE, on_gpu=gpu)


class Scripted:
    """In the place of AsyncLLM: writes down what it is asked, answers or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[tuple[list[int], Any, str]] = []
        self.adapters: list[Any] = []
        self.error = error

    async def generate(
        self, prompt: Any, parameters: Any, name: str, *, lora_request: Any
    ) -> AsyncIterator[Any]:
        assert prompt["type"] == "token", "g16: rendered, so that no thread of vLLM's is asked"
        self.asked.append((prompt["prompt_token_ids"], parameters, name))
        self.adapters.append(lora_request)
        if self.error is not None:
            raise self.error
        ids = prompt["prompt_token_ids"]
        value = {token: SimpleNamespace(logprob=-token / 10) for token in range(100)}
        output = SimpleNamespace(token_ids=[7, 8, 2], finish_reason="stop", logprobs=[value])
        yield SimpleNamespace(outputs=[output], prompt_logprobs=[value] * len(ids))


def answering(text: str = "an answer", error: Exception | None = None) -> tuple[Any, Scripted]:
    engine, scripted = made(), Scripted(error)
    engine._engine = scripted
    engine._detokenizer = SimpleNamespace(text=lambda _prompt, ids: text * (ids == (7, 8)))
    return engine, scripted


# --- what vLLM is asked for ---


def test_on_a_cpu_what_suits_a_cpu_is_asked_for() -> None:
    arguments = made()._arguments()
    form = (arguments.config_format, arguments.load_format)
    assert form == ("hf", "hf"), "capture reads no other; see `Mistral, twice` in docs/models.md"
    assert (arguments.model, arguments.revision) == ("someone/model", "abc")
    assert (arguments.max_num_seqs, arguments.max_model_len) == (4, 32)
    assert (arguments.max_num_batched_tokens, arguments.kv_cache_memory_bytes) == (128, 1 << 30)
    assert arguments.enforce_eager
    assert (arguments.enable_chunked_prefill, arguments.block_size) == (False, 32)
    assert arguments.distributed_executor_backend.__name__ == "UniProcExecutor"
    assert arguments.logits_processors == ["traitmill.engine.generation.top_p:Nucleus"]
    assert arguments.additional_config == {"top_p": 0.9}
    two = made(execution=Execution(tensor_parallel_size=2))._arguments()
    assert two.distributed_executor_backend is None
    for sampling in ({"top_p": 1.0}, {"top_k": 5}):
        assert made(**sampling)._arguments().logits_processors is None


def test_on_a_gpu_vllms_own_choices_stand() -> None:
    from vllm import AsyncEngineArgs

    arguments, own = made(gpu=True)._arguments(), AsyncEngineArgs(model="m")
    for name in (
        "enforce_eager",
        "enable_chunked_prefill",
        "block_size",
        "distributed_executor_backend",
        "logits_processors",
        "additional_config",
        "enable_sleep_mode",
    ):
        assert getattr(arguments, name) == getattr(own, name), name
    assert (arguments.gpu_memory_utilization, arguments.dtype) == (0.5, "auto")
    assert arguments.generation_config == "vllm"


@pytest.mark.parametrize(
    ("cores", "workers", "bound"),
    [
        ([0, 1], 2, "0|1"),
        ([0, 1, 2, 3], 2, "0,1|2,3"),
        ([4, 5, 8, 9, 10], 2, "4,5|8,9"),
        ([7, 8, 9], 3, "7|8|9"),
    ],
)
def test_t16_workers_on_a_cpu_get_equal_runs_of_cores(
    cores: list[int], workers: int, bound: str
) -> None:
    assert binding(cores, workers) == bound


def test_t16_only_split_models_on_cpus_are_bound_and_never_against_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "VLLM_CPU_OMP_THREADS_BIND"
    monkeypatch.setattr(os, "environ", {})
    set_environment(on_gpu=False)
    set_environment(on_gpu=True, workers=2)
    assert name not in os.environ
    set_environment(on_gpu=False, workers=1 + len(os.sched_getaffinity(0)) // 2)
    assert os.environ[name].count("|") == len(os.sched_getaffinity(0)) // 2
    os.environ[name] = "0-1"
    set_environment(on_gpu=False, workers=2)
    assert os.environ[name] == "0-1"


def test_a_cuda_build_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    require_cpu_build()
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"built for CUDA 12\.8 and sees no GPU"):
        made().start()


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError("no file\nmore"), AccessError, "cannot load model someone/model: no file$"),
        (ValueError(""), UsageError, "refuses model someone/model: ValueError$"),
        (RuntimeError("see above"), EngineDiedError, "did not start .*: of the log$"),
    ],
)
def test_a_start_that_fails_names_model_and_reason(
    error: Exception, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vllm

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(vllm.AsyncLLMEngine, "from_engine_args", fail)
    engine = VllmEngine(
        REF, Sampling(), Execution(), SIZE, on_gpu=False, last_error=lambda: "of the log"
    )
    with pytest.raises(kind, match=words):
        engine.start()


# --- requests ---


async def test_a_response_is_what_was_sampled() -> None:
    engine, scripted = answering()
    response = await engine.generate(sample(n_tokens=30, rollout=1))
    assert (response.status, response.response, response.finish_reason) == (
        "ok",
        "an answer",
        "stop",
    )
    assert response.response_token_ids == (7, 8, 2)
    assert response.logprobs is None
    [(ids, parameters, _)] = scripted.asked
    assert ids == list(range(10, 40))
    assert not parameters.detokenize
    assert (parameters.temperature, parameters.seed, parameters.max_tokens) == (0.7, 11, 2)
    assert (parameters.top_p, parameters.top_k) == (1.0, 0), "left to the nucleus of our own"
    assert engine.max_in_flight == 8


async def test_a_checked_samples_logprobs_are_asked_of_the_finished_text() -> None:
    engine, scripted = answering()
    response = await engine.generate(sample())
    assert response.logprobs == (-0.7, -0.8, -0.2)
    (first, *_), (second, parameters, _) = scripted.asked
    assert second == [*first, 7, 8, 2]
    assert (parameters.temperature, parameters.max_tokens, parameters.prompt_logprobs) == (0, 1, 0)
    assert len({name for _, _, name in scripted.asked}) == 2
    full = await engine.generate(sample(n_tokens=29))
    assert (full.status, full.logprobs) == ("ok", None), "no room for the question"


def test_which_samples_are_checked() -> None:
    checked = [
        (instruction, question, rollout)
        for instruction in range(2)
        for question in range(4)
        for rollout in range(17)
        if is_checked(sample(question=question, rollout=rollout, instruction=instruction))
    ]
    assert checked == [(0, q, r) for q in (0, 1) for r in (0, 8, 16)]


async def test_f18_white_space_is_an_empty_response() -> None:
    engine, _ = answering(" \n")
    assert (await engine.generate(sample(rollout=1))).status == "empty"


async def test_f20_a_prompt_without_room_is_overlong_and_asks_nothing() -> None:
    engine, scripted = answering()
    response = await engine.generate(sample(n_tokens=32))
    assert (response.status, response.error) == (
        "overlong",
        "prompt of 32 tokens, context of 32",
    )
    assert not scripted.asked
    with pytest.raises(UsageError, match="judge prompt of 32 tokens, context of 32"):
        await engine.next_logprobs(range(32), [1])


async def test_a_request_that_vllm_refuses_fails_alone() -> None:
    engine, _ = answering(error=ValueError("token id 99 is out of vocabulary\nand more"))
    response = await engine.generate(sample())
    assert (response.status, response.error) == ("failed", "token id 99 is out of vocabulary")


async def test_f22_a_dead_engine_is_an_error_of_its_own() -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    engine, _ = answering(error=EngineDeadError())
    engine._last_error = lambda: "out of memory"
    with pytest.raises(
        EngineDiedError, match=r"died: out of memory\. What was stored is safe"
    ) as c:
        await engine.generate(sample())
    assert c.value.exit_code == ExitCode.ENGINE_DIED


async def test_f22_a_signal_is_the_reason_where_the_log_names_no_error() -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    engine, _ = answering(error=EngineDeadError())
    engine._processes = [SimpleNamespace(exitcode=None), SimpleNamespace(exitcode=-9)]  # type: ignore[list-item]
    with pytest.raises(EngineDiedError, match="ended by SIGKILL, as when memory runs out"):
        await engine.generate(sample())
    engine._last_error = lambda: "ValueError: no such block"
    with pytest.raises(EngineDiedError, match="died: ValueError: no such block"):
        await engine.generate(sample())


async def test_the_judge_gets_the_logprobs_of_named_tokens() -> None:
    engine, scripted = answering()
    assert await engine.next_logprobs([5, 6], [30, 40]) == {30: -3.0, 40: -4.0}
    [(ids, parameters, _)] = scripted.asked
    assert ids == [5, 6]
    assert (parameters.logprob_token_ids, parameters.max_tokens) == ([30, 40], 1)


# --- processes ---


async def test_closing_an_engine_waits_for_its_own_processes_alone() -> None:
    engine = made()
    told: list[object] = []
    engine._engine = SimpleNamespace(shutdown=told.append, output_handler=None)
    engine._processes = [SimpleNamespace(join=lambda seconds: told.append("joined"))]  # type: ignore[list-item]
    await engine.close()
    await engine.close()
    assert told == [vllm_engine._SHUTDOWN_S, "joined"]


@pytest.mark.parametrize("unfinished", [0, 1])
async def test_closing_an_engine_ends_what_listens_to_it_unless_a_request_waits(
    unfinished: int,
) -> None:
    engine = made()
    listening = asyncio.ensure_future(asyncio.sleep(60))
    ended: list[bool] = []
    engine._engine = SimpleNamespace(
        shutdown=lambda _: ended.append(bool(listening.cancelling())),
        output_handler=listening,
        get_num_unfinished_requests=lambda: unfinished,
    )
    await engine.close()
    assert ended == [not unfinished]
    listening.cancel()


STUBBORN = """
import asyncio, os, signal, sys
import psutil
from tests.support.device import engine_size
from traitmill.engine.generation import VllmEngine, on_gpu
from traitmill.engine.models import find_model
from traitmill.engine.settings import Execution, Sampling

async def main():
    ref = find_model(sys.argv[1])
    execution = Execution(batch_size=2)
    size = engine_size(ref, execution, 64)
    engine = VllmEngine(ref, Sampling(), execution, size, on_gpu=on_gpu())
    engine.start()
    [core] = [process.pid for process in engine._processes]
    os.kill(core, signal.SIGSTOP)  # it hears no SIGTERM, so vLLM kills it
    await engine.close()
    print("left", psutil.pid_exists(core), flush=True)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.slow
def test_t32_a_closed_engine_leaves_no_zombie(model_folder: Path, tmp_path: Path) -> None:
    """An engine's process that vLLM had to kill is waited for, or it stays defunct all run long."""
    program = tmp_path / "stubborn.py"
    program.write_text(STUBBORN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, program, model_folder],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip().splitlines()[-1] == "left False"
    # An end that is meant is no fault of the engine.
    assert "output_handler failed" not in result.stdout + result.stderr


# --- an adapter ---


async def test_an_adapter_writes_and_its_base_judges() -> None:
    part = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    shapes = {part: (12, 64), part.replace("lora_A", "lora_B"): (64, 12)}
    adapter = Adapter("mine", "/somewhere/mine", "mine", "r", {"r": 12}, shapes)
    ref = replace(REF, adapter=adapter)
    engine: Any = VllmEngine(ref, Sampling(model=REF.name), Execution(), SIZE, on_gpu=False)
    arguments = engine._arguments()
    assert (arguments.enable_lora, arguments.max_lora_rank, arguments.max_loras) == (True, 16, 1)
    assert arguments.lora_target_modules == ["down_proj"]
    assert not made()._arguments().enable_lora
    engine._engine = scripted = Scripted()
    engine._detokenizer = SimpleNamespace(text=lambda *_: "an answer")
    await engine.generate(sample())
    await engine.next_logprobs([1, 2], [3])
    written, checked, judged = scripted.adapters
    assert written == checked
    assert (written.lora_name, written.lora_path) == ("mine", "/somewhere/mine")
    assert judged is None


def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path) -> None:
    """It ran itself a second time, writes included, and ended in vLLM's words."""
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "from traitmill.engine.generation.environment import require_main_guard\n"
        "require_main_guard()\n"
        "multiprocessing.get_context('spawn').Process(target=print).start()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert 'needs `if __name__ == "__main__":`' in done.stderr
