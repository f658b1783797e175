"""The benchmarks' arithmetic."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from subprocess import CalledProcessError, TimeoutExpired
from typing import Any

import pytest

from benchmarks import baselines, batch_size, common, methods, overlap, roofline, scale, tuning
from benchmarks.plans import config
from benchmarks.shapes import check_fits, dummy_model
from benchmarks.stand import Run, SleepingJudge, Stand, whole
from traitmill.engine.models import EMBEDDED, Shape, find_model
from traitmill.engine.records import Response, Sample
from traitmill.engine.traits import Trait

MACHINE = {
    "cpu": "Abacus 9",
    "cores": 2,
    "memory_gib": 23.5,
    "gpu": "",
    "python": "3.11.7",
    "versions": {"torch": "2.13.0"},
    "date": "2026-01-02",
    "load_at_start": 0.1,
}


def run(generation: float, makespan: float, tokens: int, samples: int = 4) -> Run:
    times = [generation * (i + 1) / samples for i in range(samples)]
    return Run(
        makespan=makespan,
        seconds={"generation": generation, "judging": 1.0, "capture": 2.0},
        times={"generation": times, "judging": times, "capture": times},
        tokens=tokens,
        running=3.0,
    )


def measured(of: Run) -> batch_size.Measured:
    return batch_size.Measured(of, load_s=21.0, sequences=8, memory_gib=2.75, gpu_memory_gib=0.0)


def test_spreads_tables_and_turns() -> None:
    assert common.spread([3.0, 1.0, 2.0]) == [2.0, 1.0, 3.0]
    assert common.shown([2.0, 1.0, 3.0], 1, "x") == "2.0x (1.0 to 3.0)"
    assert common.shown([2.0, 2.0, 2.0], 0) == "2"
    assert common.shown(None) == "-"
    assert common.table("a | b", [["1", "2"]]) == "| a | b |\n|---|---:|\n| 1 | 2 |"
    assert common.table(["a", "b"], ["1 | 2"]) == common.table("a | b", [["1", "2"]])
    assert [common.turned("abc", number) for number in (0, 1)] == [list("abc"), list("cba")]


def test_peak_memory_sees_what_is_held_for_a_moment() -> None:
    before = common.tree_bytes()
    with common.PeakMemory(every_s=0.01) as peak:
        block = bytearray(b"\1") * (200 << 20)
        held = common.tree_bytes()
        peak._look()
        del block
    assert held - before > 150 << 20
    assert peak.bytes >= held - (10 << 20)


def test_what_a_process_of_its_own_found_comes_back_or_why_it_did_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "python"
    answering = 'echo "{\\"asked\\": $4}" > "$6"\n[ "$4" != 2 ] || exit 3\n[ "$4" != 3 ] || sleep 9'
    program.write_text(f"#!/bin/bash\n{answering}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert common.in_process("any", 1) == {"asked": 1}  # type: ignore[arg-type]
    with pytest.raises(CalledProcessError) as ended:
        common.in_process("any", 2)  # type: ignore[arg-type]
    assert common.why(ended.value) == "ended with code 3"
    with pytest.raises(TimeoutExpired) as late:
        common.in_process("any", 3, limit_s=0.2)  # type: ignore[arg-type]
    assert common.why(late.value) == "not finished after 0 s"


def test_samples_fill_all_sides() -> None:
    assert [whole(n) for n in (1, 4, 5, 200)] == [4, 4, 8, 200]


@pytest.mark.parametrize(
    ("name", "billions"),
    [("gemma-2-2b", 2.61), ("gemma-2-9b", 9.24), ("llama-3.1-8b", 8.03), ("llama-3.1-70b", 70.55)],
)
def test_shapes_have_their_models_published_size(name: str, billions: float) -> None:
    assert Shape.from_config(config(name)).parameters / 1e9 == pytest.approx(billions, abs=0.01)


def test_a_shape_that_does_not_fit_is_refused_with_the_sizes() -> None:
    said = "llama-3.1-70b needs 131 GiB for its weights; here is 80 GiB of GPU memory"
    with pytest.raises(SystemExit, match=said):
        check_fits("llama-3.1-70b", 80 << 30)
    check_fits("gemma-2-2b", 16 << 30)


def test_a_dummy_model_is_one_that_transformers_knows(model_folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    with dummy_model("gemma-2-2b") as ref:
        known = AutoConfig.from_pretrained(ref.source)
        assert type(known).__name__ == "Gemma2Config"
        assert (known.num_hidden_layers, known.head_dim) == (26, 256)
        paths = (ref.source, model_folder)
        tokenizer, real = (AutoTokenizer.from_pretrained(path) for path in paths)
        assert tokenizer("a fairy tale")["input_ids"] == real("a fairy tale")["input_ids"]


def test_a_roofline_is_that_of_the_run_it_looks_at() -> None:
    # 60 tokens of prompt; 8 responses of 400 tokens in all, of which half is there on the mean.
    row = {"batch": "1", "tokens": 400, "running": [1.0], "tokens_per_s": [10.0]}
    generated = {"prompt_tokens": 60.0, "samples": 8, "rows": [row]}
    captured = {"tokens": 1200, "seconds": {"traitmill": [2.0, 4.0, 3.0]}}
    shape = Shape.from_config(config("llama-3.1-8b"))
    device = roofline.Device(flops=1e14, bandwidth=1e12)
    found = roofline.measure("m", shape, device, generated, captured)
    assert found["context"] == 85.0
    # 15.01 GB of weights at 1 TB/s, and 85 tokens of 128 KiB.
    limit = 1 / (0.015010 + 85 * 131072 / 1e12)
    assert found["reached"][0]["limit"] == pytest.approx(limit, rel=1e-3)
    assert found["capture_tokens_per_s"] == pytest.approx(1e14 / (2 * 6.98e9), rel=1e-3)
    assert found["captured_tokens_per_s"] == 400


def test_the_least_time_of_judging_is_its_last_answer() -> None:
    assert overlap.least_seconds(overlap.Condition("c", 1.0, 600), 201) == 21.0
    assert overlap.least_seconds(overlap.NONE, 200) == 0.0


async def test_the_sleeping_judge_passes_both_sides() -> None:
    trait = Trait("t", (("a", "b"),), ("q?",), "{question}{answer}")
    judge = SleepingJudge(0.0)
    scores = {}
    for side in ("pos", "neg"):
        sample = Sample("t", "0" * 32, side, 0, 0, 0, "a", "q?", "p", (1,), 1)
        scores[side] = (await judge.judge(trait, Response(sample, "ok", "x", (2,), "stop"))).score
    assert scores["pos"] >= 50 > scores["neg"]


class Engine:
    """Answers two tokens at once."""

    max_in_flight = 4

    def __init__(self, _ref: object, _sampling: object, _execution: object, size: Any, **_: Any):
        self.size, self._engine = size, self

    def start(self) -> None:
        """Nothing to load."""

    async def reset_prefix_cache(self) -> bool:
        return True

    async def generate(self, sample: Sample) -> Response:
        return Response(sample, "ok", "yes", (1, 2), "stop")

    async def close(self) -> None:
        """Nothing to end."""


@pytest.mark.slow
async def test_the_stand_runs_the_product_on_the_engine_it_is_given() -> None:
    """What it puts in the product's place must be there."""
    stand = Stand(
        find_model(EMBEDDED), 8, batch_size=3, captures=False, engine=Engine, watched=False
    )
    await stand.open()
    try:
        runs = [await stand.run(8, judge) for judge in (SleepingJudge(0.0), None)]
    finally:
        await stand.close()
    assert stand.size.max_num_seqs == 3
    for done, judged in zip(runs, (8, 0), strict=True):
        assert done.tokens == 16
        counts = {stage: len(times) for stage, times in done.times.items()}
        assert counts == {"generation": 8, "judging": judged, "capture": 0}
        assert done.makespan >= done.seconds["generation"] >= 0


def test_the_peers_judge_waits_for_each_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, most = 0, []
    really_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        nonlocal under_way
        assert seconds == 1.0
        under_way += 1
        most.append(under_way)
        await really_sleep(0.01)
        under_way -= 1

    monkeypatch.setattr(methods.asyncio, "sleep", sleep)
    methods.judge(45, 1.0, 20)
    assert most == [*range(1, 21), *range(1, 21), *range(1, 6)]


def test_laps_add_up_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 2.0, 3.0, 7.0])
    monkeypatch.setattr(methods.time, "perf_counter", lambda: next(moments))
    watch = methods.Watch()
    for stage in ("generation_s", "judging_s", "generation_s"):
        watch.lap(stage)
    assert watch.times == {"generation_s": 6.0, "judging_s": 1.0}


def test_speedups_and_differences_are_taken_within_a_round() -> None:
    sizes = [
        {"1": measured(run(10, 20, 100)), "8": measured(run(5, 10, 400, 8))},
        {"1": measured(run(20, 30, 100)), "8": measured(run(5, 10, 400, 8))},
    ]
    # 100 tokens in 10 and 20 s at batch 1, 400 in 5 s at batch 8: 8 and 16 times; 20 and 30 s in
    # all against 10 s.
    row = batch_size.row("8", sizes, "1")
    assert (row["speedup"], row["job_speedup"]) == ([12.0, 8.0, 16.0], [2.5, 2.0, 3.0])
    rounds = [
        {"no judge": run(10, 12, 1000), "instant": run(10, 10, 1000), "1 s": run(10, 12, 900)},
        {"no judge": run(10, 40, 500), "instant": run(10, 30, 500), "1 s": run(10, 31, 500)},
    ]
    found = {row["name"]: row for row in overlap.figures(rounds, 4)["conditions"]}
    assert found["1 s"]["later_s"] == [1.5, 1.0, 2.0]
    assert found["1 s"]["share"] == [0.95, 0.9, 1.0]
    small = scale.Cost(10_000, 3.45, 2.0, 200.0, 246.4)
    large = scale.Cost(100_000, 69.0, 30.0, 200.0, 288.4)
    figures = scale.figures({10_000: [small], 100_000: [large]}, [3.1])
    assert figures["wall_per_sample_ratio"][0] == pytest.approx(2.0)
    assert figures["cpu_per_sample_ratio"][0] == pytest.approx(1.5)


def test_ratios_are_to_ours_and_to_the_products_own_rows() -> None:
    times = {"load_s": 5.0, "tokens": 400, "generation_s": 4.0, "makespan_s": 7.0}
    guide = {**times, "generation_s": 16.0, "capture_s": 1.0, "makespan_s": 21.0}
    named = {"guide": guide, "bare": times, "ours": {**times, "capture_s": 2.0}}
    rows = [baselines.summary(name, [each], 64) for name, each in named.items()]
    assert baselines.goals(rows) == {
        "generation over guide": 4.0,
        "generation over bare": 1.0,
        "whole job over guide": 3.0,
    }
    result = {"methods": rows, "goals": {}, "failed": {"peer": "late"}, "model": "m", "rounds": 1}
    page = baselines.markdown(result | {"samples": 64, "max_new_tokens": 8, "judge_latency_s": 1})
    assert "| bare | 100.0 | 4.0 | - | - | - | 5.0 | - | - |" in page  # generation has no makespan
    assert "- peer gave no figures: late" in page
    figures = {"load_s": 11.0, "auto": 900.0, "few": 270.0}
    again = {**figures, "auto": 1100.0}
    undone = {tuning.AS_IT_IS: figures, tuning.AGAIN: again, "unseeded": {**figures, "auto": 500.0}}
    assert tuning.summary("unseeded", undone)["auto_ratio"] == 0.5
