"""The capture benchmarks' methods agree with each other, and the GPU benchmark refuses a machine without one."""

import subprocess
import sys

import pytest
import torch

from benchmarks import capture as bench
from benchmarks import gpu
from engine.capture import CaptureModel
from engine.devices import Shape
from engine.settings import Capture
from tests.oracle import FAMILIES, VOCAB, build


def test_every_method_computes_the_same_means(tmp_path, monkeypatch):
    """Else the ratios compare different work."""
    ours = CaptureModel(build("llama", tmp_path), Capture(), self_check="off", threads=1)
    rows = bench.ragged_rows(6, VOCAB)
    expected = {
        row.sample_id: result.pools["response_mean"] for row, result in zip(rows, ours.capture(rows), strict=True)
    }
    kept = []
    right = bench.means_of
    monkeypatch.setattr(bench, "means_of", lambda states, chosen: kept.append(right(states, chosen)) or kept[-1])
    held = bench.Held()
    bench.guide_method(ours._model, rows, 4, held)
    found = torch.cat(kept)
    for row, means in zip(rows, found, strict=True):
        # transformers' last state is after the final norm
        torch.testing.assert_close(means[:-1], torch.tensor(expected[row.sample_id][:-1]), rtol=1e-4, atol=1e-5)
    assert held.bytes > 0


def test_rows_are_the_same_each_time_and_ragged():
    rows = bench.ragged_rows(300, 1000)
    assert rows == bench.ragged_rows(300, 1000)
    responses = [row.n_pooled for row in rows]
    assert 8 <= min(responses) < 20
    assert max(responses) == 150
    assert 45 <= sorted(responses)[150] <= 55


def test_flops_count_weights_and_visible_pairs():
    """By hand for one token and two: 2 a weight, and one more pair than tokens."""
    shape = Shape.from_config(FAMILIES["llama"]().to_dict())
    weights = 3 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)
    assert gpu.forward_flops(shape, [1]) == 2 * weights + 4 * 3 * 32
    assert gpu.forward_flops(shape, [2]) == 4 * weights + 3 * 4 * 3 * 32


def test_gpu_cells_are_filled_by_the_product_itself():
    """On the CPU with a tiny shape: the code of every cell runs."""
    cells = gpu.capture_cells(FAMILIES["gemma2"](), "cpu", bench.ragged_rows(16, VOCAB), (256, 512), 1e12)
    assert [cell["budget"] for cell in cells] == [256, 512, "stack kept, batch 16"]
    assert all(cell["rows_per_s"] > 0 for cell in cells)
    table = gpu.markdown({"device": "none", "date": "today", "torch": "2", "capture": {"2b": cells}})
    assert "| eager | 512 |" in table


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU the benchmark asks for")
def test_without_a_gpu_it_refuses():
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no NVIDIA GPU" in done.stderr
    assert done.stdout == ""
