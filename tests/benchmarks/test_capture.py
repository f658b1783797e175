"""The capture benchmarks' methods agree with each other, and the GPU benchmark refuses a machine
without one."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import capture as bench
from benchmarks import gpu, selfcheck
from tests.support.oracle import FAMILIES, VOCAB, build
from tests.support.rows import response_row
from traitmill.engine.capture.model import CaptureModel
from traitmill.engine.models.shape import Shape
from traitmill.engine.settings import CaptureSettings


def test_every_method_computes_the_same_means(tmp_path, monkeypatch):
    """Else the ratios compare different work."""
    ours = CaptureModel(build("llama", tmp_path), CaptureSettings(), self_check="off", threads=1)
    rows = bench.ragged_rows(6, VOCAB)
    expected = {
        row.sample.id: result.pools["response_mean"]
        for row, result in zip(rows, ours.capture(rows), strict=True)
    }
    kept = []
    right = bench.means_of
    monkeypatch.setattr(
        bench, "means_of", lambda states, chosen: kept.append(right(states, chosen)) or kept[-1]
    )
    held = bench.Held()
    bench.guide_method(ours._model, rows, 4, held)
    found = torch.cat(kept)
    for row, means in zip(rows, found, strict=True):
        # transformers' last state is after the final norm
        torch.testing.assert_close(
            means[:-1], torch.tensor(expected[row.sample.id][:-1]), rtol=1e-4, atol=1e-5
        )
    assert held.bytes > 0


def test_rows_are_the_same_each_time_and_as_long_as_stored_responses():
    stored = json.loads(bench.LENGTHS.read_text())
    rows = bench.ragged_rows(64, 1000)
    assert rows == bench.ragged_rows(64, 1000)
    pairs = sorted(zip(stored["prompt_tokens"], stored["response_tokens"], strict=True))
    assert sorted((len(row.sample.prompt_token_ids), row.n_pooled) for row in rows) == sorted(
        pairs + pairs
    )
    assert max(stored["response_tokens"]) <= stored["max_new_tokens"]


def test_no_round_is_begun_that_would_end_late_and_each_method_is_saved():
    saved = []
    methods = {"a": lambda held: held.note(torch.zeros(4)), "b": lambda _held: None}
    bench.measure(
        methods,
        3,
        iter(range(100)).__next__,
        lambda *found: saved.append(copy.deepcopy(found)),
        limit_s=-1,
    )
    assert saved == [
        ({"a": [1], "b": []}, {"a": 16, "b": 0}),
        ({"a": [1], "b": [1]}, {"a": 16, "b": 0}),
    ]
    bench.measure(
        methods, 3, iter(range(100)).__next__, lambda *found: saved.append(copy.deepcopy(found))
    )
    assert saved[-1] == ({"a": [1, 1, 1], "b": [1, 1, 1]}, {"a": 16, "b": 0})


def test_baselines_run_where_the_model_is():
    """Their ids, masks and weights are made on the model's device."""
    model = torch.nn.Linear(1, 1, device="meta")
    ids, mask = bench.padded(bench.ragged_rows(2, 100), model.weight.device)
    assert (ids.device.type, mask.device.type) == ("meta", "meta")


def test_only_the_forwards_that_are_looked_at_are_counted():
    class Model:
        def forward(self):
            return None

    model = Model()
    watched = bench.TimedForward(model, iter(range(100)).__next__)
    model.forward()
    with watched:
        model.forward()
        model.forward()
    model.forward()
    assert watched.seconds == [2.0]


def test_the_self_checks_figures_see_each_mistake(tmp_path):
    """On a tiny model whose own log-probs stand for generation's."""
    path = build("llama", tmp_path)
    loaded = CaptureModel(path, CaptureSettings(), self_check="off")._model
    blocks = selfcheck.find_blocks(loaded, None)

    def with_logprobs(row):
        alone = selfcheck.run_alone(
            loaded,
            blocks,
            row.sample.prompt_token_ids,
            row.response_token_ids,
            spans=row.spans,
            pools=selfcheck.POOLS,
            logprobs=True,
        )
        return replace(row, logprobs=tuple(map(float, alone.logprobs)))

    rows = [
        response_row(row.sample.id, row.sample.prompt_token_ids[:6], row.response_token_ids[:9], 9)
        for row in bench.ragged_rows(3, VOCAB)
    ]
    rows = [with_logprobs(row) for row in rows]
    checked = selfcheck.check(rows, path, "float32")
    assert checked["rows"] == 3
    assert checked["states"] <= checked["states_tolerance"] < checked["closest_rows"]
    assert checked["all"] < 1e-5
    found = selfcheck.mistakes(rows, path, "float32")
    assert found.pop("nothing") < 1e-5
    assert min(found.values()) > 1e-4, found


def test_flops_count_weights_and_visible_pairs():
    """By hand for one token and two: 2 a weight, and one more pair than tokens."""
    shape = Shape.from_config(FAMILIES["llama"]().to_dict())
    weights = 3 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)
    assert gpu.forward_flops(shape, [1]) == 2 * weights + 4 * 3 * 32
    assert gpu.forward_flops(shape, [2]) == 4 * weights + 3 * 4 * 3 * 32


def test_gpu_cells_are_filled_by_the_product_itself():
    """On the CPU with a tiny shape: the code of every cell runs."""
    cells, saved = [], []
    gpu.capture_cells(
        FAMILIES["gemma2"](),
        "cpu",
        bench.ragged_rows(16, VOCAB),
        (256, 512),
        1e12,
        cells,
        lambda: saved.append(len(cells)),
    )
    assert [cell["budget"] for cell in cells] == [
        256,
        512,
        "512, self-check",
        "stack kept, batch 16",
    ]
    assert [cell for cell in cells if "error" in cell] == []
    assert all(cell["rows_per_s"] > 0 for cell in cells)
    assert saved == [1, 2, 3, 4]
    table = gpu.markdown(
        {"device": "none", "date": "today", "torch": "2", "capture": {"2b": cells}}
    )
    assert "| eager | 512 |" in table


def test_a_gpu_cell_that_fails_is_named_and_costs_no_other(monkeypatch):
    right, cells = gpu.measured, []

    def fails_once(model, rows, device, budget, rate):
        if budget == 512 and model._check.mode == "off":
            raise torch.OutOfMemoryError("CUDA out of memory | 1\nmore")
        return right(model, rows, device, budget, rate)

    monkeypatch.setattr(gpu, "measured", fails_once)
    monkeypatch.setattr(gpu, "attentions", lambda *_: ("no_such_kernel", "eager"))
    gpu.capture_cells(
        FAMILIES["gemma2"](),
        "cpu",
        bench.ragged_rows(16, VOCAB),
        (256, 512),
        1e12,
        cells,
        lambda: None,
    )
    assert [(cell["budget"], "error" in cell) for cell in cells] == [
        ("model", True),
        (256, False),
        (512, True),
        ("512, self-check", False),
        ("stack kept, batch 16", False),
    ]
    found = {"device": "none", "date": "today", "torch": "2", "capture": {"2b": cells}}
    table = gpu.markdown({**found, "generation": {"2b": {"version": "1", "error": "no start"}}})
    assert "| eager | 512 |  |  |  | CUDA out of memory / 1 |" in table
    assert "vLLM 1, Gemma-2-2B shape: not measured: no start." in table


@pytest.mark.slow
def test_without_a_gpu_it_refuses():
    # Hidden where there is one: the benchmark must not start in a test.
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, env=hidden
    )
    assert done.returncode == 2
    assert "no NVIDIA GPU" in done.stderr
    assert done.stdout == ""
