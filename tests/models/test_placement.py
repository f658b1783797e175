"""Who gets which device, and what a run does to the engine and the capture worker because of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import fakes
from traitmill.engine.errors import SettingsChangedError, UsageError
from traitmill.engine.models import config, placement
from traitmill.engine.models.gpus import Gpu
from traitmill.engine.models.hub import ModelRef
from traitmill.engine.models.machine import GIB
from traitmill.engine.models.placement import Placement, choose_placement, place_on_gpus
from traitmill.engine.models.shape import Shape
from traitmill.engine.run import Work, loading, models, open_backends
from traitmill.engine.run.pipeline import Pipeline
from traitmill.engine.run.trait_run import TraitRun
from traitmill.engine.settings import CaptureSettings, Execution, JudgeSettings

GEMMA_2B = {
    "model_type": "gemma2",
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256000,
    "dtype": "bfloat16",
}
GEMMA_9B = GEMMA_2B | {
    "hidden_size": 3584,
    "num_hidden_layers": 42,
    "intermediate_size": 14336,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def cards(*totals_gib: float, taken: Sequence[float] = ()) -> list[Gpu]:
    """Cards of these sizes in GiB, of which so much is taken."""
    held = [*taken, *[0.0] * len(totals_gib)]
    return [
        Gpu(index, int(gib * GIB), int((gib - used) * GIB), "card", f"GPU-{index}", (9, 0), "580.1")
        for index, (gib, used) in enumerate(zip(totals_gib, held, strict=False))
    ]


def place(
    raw: dict[str, Any],
    *totals_gib: int,
    tp: int = 1,
    device: str = "auto",
    sequences: int = 256,
) -> Placement:
    return place_on_gpus(
        Shape.from_config(raw),
        gpus=cards(*totals_gib),
        tensor_parallel=tp,
        capture_device=device,
        itemsize=2,
        capture_itemsize=2,
        sequences=sequences,
        tokens_per_sequence=300,
    )


def test_the_cache_of_few_sequences_holds_one_of_the_engines_length() -> None:
    found = place(GEMMA_2B, 80, sequences=1)
    # 301 tokens, rounded up to 512 by the engine; vLLM wants spare blocks besides, or does not
    # start.
    assert found.mode == "co-resident"
    assert found.kv_cache_bytes is not None
    assert found.kv_cache_bytes >= (512 + 2 * 16) * Shape.from_config(GEMMA_2B).kv_bytes_per_token(
        2
    )


@pytest.mark.parametrize(
    ("raw", "total", "mode"),
    [
        (GEMMA_2B, 80, "co-resident"),
        (GEMMA_2B, 24, "co-resident"),
        (GEMMA_2B, 12, "in turn"),
        (GEMMA_9B, 141, "co-resident"),
        (GEMMA_9B, 40, "in turn"),
        (GEMMA_9B, 22, "in turn"),
        (LLAMA_70B, 80, "in turn"),
    ],
)
def test_one_gpu_policy(raw: dict[str, Any], total: int, mode: str) -> None:
    found = place(raw, total)
    assert (found.mode, found.capture_device) == (mode, "cuda")
    assert found.line.endswith("untested on GPU")
    if mode != "co-resident":  # who is alone on a GPU looks for itself
        assert (found.kv_cache_bytes, found.gpu_share, found.capture_tokens) == (None, None, None)
        return
    shape = Shape.from_config(raw)
    assert found.kv_cache_bytes
    assert found.capture_tokens
    assert found.gpu_share
    engine = (
        shape.weight_bytes(2) + placement.engine_overhead(shape, 256, 1, 2) + found.kv_cache_bytes
    )
    capture = shape.weight_bytes(2) + placement.CONTEXT_OVERHEAD
    capture += found.capture_tokens * shape.block_bytes_per_token(2)
    assert engine + capture <= 0.95 * total * GIB
    # vLLM's start asks for its share to be free, whether capture is loaded by then or not.
    assert found.gpu_share * total * GIB == pytest.approx(engine)
    assert (1 - found.gpu_share) * total * GIB >= capture


@pytest.mark.parametrize(
    ("raw", "totals", "tp", "device", "mode", "where"),
    [
        (GEMMA_9B, (80, 80), 1, "auto", "apart", "cuda:1"),
        (GEMMA_9B, (80, 80), 1, "cpu", "apart", "cpu"),
        (GEMMA_9B, (80,), 1, "cpu", "apart", "cpu"),
        (GEMMA_9B, (80, 80), 1, "cuda:1", "apart", "cuda:1"),
        (GEMMA_9B, (80, 80), 1, "cuda:0", "co-resident", "cuda:0"),
        (GEMMA_9B, (80, 80), 2, "cuda:1", "co-resident", "cuda:1"),
        (GEMMA_9B, (80, 80), 2, "auto", "co-resident", "cuda:0"),
        (GEMMA_9B, (80, 12), 1, "auto", "co-resident", "cuda:0"),  # the second is too small
        (LLAMA_70B, (80, 80), 2, "auto", "in turn", "cuda"),
        (LLAMA_70B, (80, 80, 80, 80), 4, "auto", "co-resident", "cuda"),
        (LLAMA_70B, (80, 80, 80, 80), 4, "cuda:0", "in turn", "cuda:0"),
    ],
)
def test_several_gpus(
    raw: dict[str, Any], totals: tuple[int, ...], tp: int, device: str, mode: str, where: str
) -> None:
    found = place(raw, *totals, tp=tp, device=device)
    assert (found.mode, found.capture_device) == (mode, where)
    if mode != "co-resident":
        assert found.kv_cache_bytes is None
        return
    shape = Shape.from_config(raw)
    over = 1 if ":" in where else len(totals)
    smallest = min(totals[: max(tp, over)])
    assert found.kv_cache_bytes is not None
    assert found.gpu_share is not None
    engine = (
        shape.weight_bytes(2) / tp
        + placement.engine_overhead(shape, 256, tp, 2)
        + found.kv_cache_bytes
    )
    assert engine + shape.weight_bytes(2) / over <= 0.95 * smallest * GIB
    assert found.gpu_share * smallest * GIB == pytest.approx(engine, rel=1e-6)


@pytest.mark.parametrize(
    ("own", "bfloat16", "requested", "itemsizes"),
    [
        ("bfloat16", True, "auto", (2, 2)),
        ("float32", True, "auto", (2, 4)),
        ("float32", True, "bfloat16", (2, 2)),
        ("bfloat16", False, "auto", (4, 4)),  # Gemma in float16 is refused by both
    ],
)
def test_auto_dtypes_are_resolved_before_they_are_counted(
    own: str,
    bfloat16: bool,
    requested: str,
    itemsizes: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, int]] = []

    def record(shape: Shape, *, itemsize: int, capture_itemsize: int, **_: object) -> Placement:
        seen.append((itemsize, capture_itemsize))
        return Placement("in turn", "", "cuda")

    monkeypatch.setattr(placement, "place_on_gpus", record)
    capability = (8, 0) if bfloat16 else (7, 5)
    seen_cards = [replace(card, capability=capability) for card in cards(80)]
    monkeypatch.setattr(placement, "read_gpus", lambda: seen_cards)
    for name in ("computes_bfloat16", "fast_bfloat16"):
        monkeypatch.setattr(config, name, lambda _: bfloat16)
    run = fakes.settings(capture=CaptureSettings(dtype=requested))
    choose_placement(
        GEMMA_2B | {"dtype": own}, run, gpu=True, engine=True, sequences=8, tokens_per_sequence=100
    )
    assert seen == [itemsizes]


def test_a_device_that_is_not_here_is_refused_before_anything_loads() -> None:
    run = fakes.settings(execution=Execution(capture_device="cuda:99"))
    with pytest.raises(
        UsageError, match=r"`capture_device` cuda:99: this machine shows \d+ NVIDIA GPUs"
    ):
        choose_placement(GEMMA_2B, run, gpu=True, engine=True, sequences=8, tokens_per_sequence=100)


def test_without_a_shared_gpu_there_is_nothing_to_divide() -> None:
    run = fakes.settings(execution=Execution(capture_device="cpu"))
    alone = choose_placement({}, run, gpu=False, engine=False, sequences=8, tokens_per_sequence=0)
    assert alone == Placement("alone", "", "cpu")
    on_cpu = choose_placement({}, run, gpu=False, engine=True, sequences=8, tokens_per_sequence=0)
    assert (on_cpu.mode, on_cpu.capture_device, on_cpu.capture_tokens) == ("in turn", "cpu", None)


# --- what a run does ---


class Recorded:
    """An engine and a capture process that write down what they are told."""

    calls: list[str]

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = self.calls = []

        class Engine(fakes.FakeGenerator):
            def __init__(
                self, ref: object, sampling: object, execution: object, size: Any, **how: Any
            ) -> None:
                super().__init__()
                self.size = size
                calls.append(
                    f"engine gpu={how['on_gpu']} kv={size.kv_cache_bytes is not None} "
                    f"share={size.gpu_share:.2f}"
                )

            def start(self) -> None:
                calls.append("engine starts")

            async def generate(self, sample: Any) -> Any:
                if "generates" not in calls:
                    calls.append("generates")
                return await super().generate(sample)

            async def close(self) -> None:
                calls.append("engine closes")

        class Process(fakes.FakeCapture):
            def __init__(
                self,
                _source: str,
                _revision: object,
                capture: CaptureSettings,
                execution: Execution,
                *,
                token_budget: Any,
                **_: object,
            ) -> None:
                super().__init__(capture)
                bounded = token_budget is not None
                calls.append(f"capture {execution.capture_device} budget={bounded}")

            async def start(self) -> Any:
                calls.append("capture loads")
                await asyncio.sleep(0)
                return fakes.FACTS

            async def capture(self, rows: Any) -> Any:
                if "captures" not in calls:
                    calls.append("captures")
                return await super().capture(rows)

            async def close(self) -> None:
                calls.append("capture closes")

        monkeypatch.setattr(models, "VllmEngine", Engine)
        monkeypatch.setattr(models, "CaptureProcess", Process)
        monkeypatch.setattr(loading, "tie_children", lambda: None)

    def before(self, first: str, second: str) -> bool:
        return self.calls.index(first) < self.calls.index(second)


async def run(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    totals: list[int],
    *,
    judges: bool = False,
    **changes: Any,
) -> tuple[TraitRun, list[str]]:
    """Run a small trait to the end on a machine with these GPUs, judged by the fake."""
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):  # put back after the run
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(models, "on_gpu", lambda: bool(totals))
    monkeypatch.setattr(placement, "read_gpus", lambda: cards(*totals))
    monkeypatch.setattr(placement, "dtype_on", lambda *_: "bfloat16")
    monkeypatch.setattr(models, "free_host_memory", lambda: 256 * GIB)
    settings = fakes.settings(n_examples=6, **changes)
    notices: list[str] = []
    runs = fakes.open_runs([fakes.make_trait(root, "one")], settings)
    work = Work(
        ref=ModelRef("fake", "fake", "r0", GEMMA_2B),
        settings=settings,
        runs=runs,
        generates=True,
        judges=judges,
        captures=True,
        log=root / "log",
        notice=notices.append,
    )
    async with open_backends(work) as backends:
        pipeline = Pipeline(runs, settings, backends, notices.append)
        await pipeline.run()
    assert not pipeline.errors
    return runs[0], notices


@pytest.mark.parametrize("mode", ["co-resident", "apart", "in turn"])
async def test_g07_a_run_on_gpus_does_what_the_policy_says(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals = {"co-resident": [80], "apart": [12, 12], "in turn": [12]}[mode]
    told = Recorded(monkeypatch)
    one, notices = await run(tmp_path, monkeypatch, totals)
    shared = mode == "co-resident"
    (engine,) = (call for call in told.calls if call.startswith("engine gpu="))
    assert engine.startswith("engine gpu=True kv=False")
    assert engine.endswith("share=0.92") != shared
    assert f"capture {'cuda:1' if mode == 'apart' else 'cuda'} budget={shared}" in told.calls
    if mode == "in turn":
        order = ["engine starts", "generates", "engine closes", "capture loads", "captures"]
        assert [call for call in told.calls if call in order] == order
    elif shared:  # vLLM measures itself when capture is loaded
        assert told.before("capture loads", "engine starts")
    else:
        assert told.before("capture loads", "generates")
        assert told.before("captures", "engine closes")
    assert any(note.endswith("untested on GPU") for note in notices)
    assert any(note.startswith("capture on ") for note in notices)
    assert one.state.capture is not None
    assert one.state.capture.placement == mode
    assert one.finished


def test_the_cache_gives_way_to_larger_capture_batches_but_keeps_half() -> None:
    shape = Shape.from_config(GEMMA_2B)
    wanted = 256 * 300 * shape.kv_bytes_per_token(2)
    sizes = [(place(GEMMA_2B, total), total) for total in range(20, 81)]
    shared = [found for found, _ in sizes if found.mode == "co-resident"]
    tokens = [found.capture_tokens or 0 for found in shared]
    caches = [found.kv_cache_bytes or 0 for found in shared]
    assert tokens == sorted(tokens)
    assert caches == sorted(caches)
    assert caches[-1] == wanted
    for given, batch in zip(caches, tokens, strict=True):
        if given < wanted:  # a card that is not large enough for all
            assert batch == 1024 if given < wanted // 2 else batch <= 8192
        else:
            assert batch >= 8192


async def test_on_cpu_capture_waits_until_generation_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Recorded(monkeypatch)
    await run(tmp_path, monkeypatch, [])
    order = ["generates", "engine closes", "captures"]
    assert [call for call in told.calls if call in order] == order
    # The weights alone are there before, where they fit beside the engine.
    assert told.before("capture loads", "generates")
    assert "capture auto budget=False" in told.calls


async def test_a_second_engine_on_a_gpu_is_refused_before_anything_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Recorded(monkeypatch)
    with pytest.raises(UsageError, match=r"`judge_model` local:other: a GPU holds one"):
        await run(
            tmp_path, monkeypatch, [80], judges=True, judge=JudgeSettings(model="local:other")
        )
    assert not told.calls


async def test_a_set_never_mixes_what_auto_means_on_two_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run captured in bfloat16 with flash-attn; here auto is float32 and eager."""
    Recorded(monkeypatch)
    one, _ = await run(tmp_path, monkeypatch, [80])
    key, facts = one.state.capture_key, one.state.capture
    assert key is not None
    assert facts is not None
    path = one.folder.activations(key) / "facts.json"
    changed = {"dtype": "bfloat16", "attention": "flash_attention_2", "device": "cuda"}
    facts.model_copy(update=changed).save(path)
    stored = sorted(path.parent.iterdir())
    one.state.choose(capture=facts.model_copy(update=changed))
    with pytest.raises(SettingsChangedError) as caught:
        one.begin_capture(fakes.FACTS, "alone")
    said = str(caught.value)
    assert "dtype: 'bfloat16' -> 'float32', attention: 'flash_attention_2' -> 'eager'" in said
    assert "`capture_dtype` float32 and `attention` eager" in said
    assert sorted(path.parent.iterdir()) == stored
