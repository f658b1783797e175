"""A benchmark that is cut off on a rented card keeps what it has measured."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import baselines, batch_size, roofline
from tests.benchmarks.test_benchmarks import MACHINE, measured, run
from tests.support import fakes
from tests.support.rows import response_row
from traitmill.engine.models import Gpu


async def test_g05_a_cut_off_batch_size_table_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def row(_ref: object, batch: str, *_: object) -> batch_size.Measured:
        if batch == "auto":
            raise TimeoutError
        return measured(run(10, 20, 100))

    monkeypatch.setattr(batch_size, "_row", row)
    monkeypatch.setattr(batch_size, "machine", lambda: MACHINE)
    monkeypatch.setattr(
        batch_size, "workload", lambda *_: [response_row("a", (1, 2), (3,), 1).sample]
    )
    options = argparse.Namespace(
        out=tmp_path,
        shape=None,
        capture=False,
        n_examples=4,
        max_new_tokens=8,
        rows="1,8,auto",
        rounds=1,
        latency=1.0,
    )
    with pytest.raises(TimeoutError):
        await batch_size.measure(fakes.REF, options, print)
    kept = json.loads((tmp_path / "batch_size.json").read_text())
    assert [each["batch"] for each in kept["rows"]] == ["1", "8"]


def test_g05_cut_off_baselines_keep_their_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(_: str, asked: dict[str, Any], limit_s: float) -> Any:
        assert limit_s == 9
        if asked["method"] == "ours":
            raise KeyboardInterrupt
        if asked["method"] == "guide":
            raise subprocess.CalledProcessError(1, "guide")
        times = {"load_s": 5.0, "tokens": 400, "generation_s": 4.0, "makespan_s": 7.0}
        return {**times, "memory_gib": 1.5}

    monkeypatch.setattr(baselines, "in_process", one)
    monkeypatch.setattr(baselines, "machine", lambda: MACHINE)
    monkeypatch.setattr(baselines, "find_model", lambda _: fakes.REF)
    options = argparse.Namespace(
        out=tmp_path,
        gen_model="fake",
        methods="guide,bare,ours",
        rounds=1,
        n_examples=4,
        max_new_tokens=8,
        latency=1.0,
        limit=9,
    )
    with pytest.raises(KeyboardInterrupt):
        baselines.compare(options)
    kept = json.loads((tmp_path / "baselines.json").read_text())
    assert [each["method"] for each in kept["methods"]] == ["bare"]
    assert kept["failed"] == {"guide": "ended with code 1"}


def test_g05_a_card_without_published_peaks_ends_no_benchmark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(roofline, "gpu_name", lambda: "Abacus 9")
    monkeypatch.setattr(roofline, "read_gpus", lambda: [Gpu(0, 1, 1, "Abacus 9", "GPU-1", (9, 0))])
    monkeypatch.setattr(
        "sys.argv", ["roofline", "--shape", "gemma-2-2b", "--out", str(tmp_path / "out")]
    )
    roofline.main()
    assert "no limit known for Abacus 9" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_g05_what_is_tuned_for_a_cpu_is_not_tried_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(baselines, "gpu_name", lambda: "Abacus 9")
    monkeypatch.setattr(baselines, "compare", lambda options: told.append(options.methods))
    monkeypatch.setattr("sys.argv", ["baselines"])
    baselines.main()
    assert "bare" in told[0].split(",")
    assert "bare-tuned" not in told[0].split(",")
