"""The capture benchmark's methods agree with each other."""

import copy
import json

import torch

from benchmarks import capture as bench
from tests.support.oracle import VOCAB, build
from traitmill.engine.capture.model import CaptureModel
from traitmill.engine.settings import CaptureSettings


def test_every_method_runs_and_computes_the_same_means(tmp_path, monkeypatch):
    """Else the ratios compare different work."""
    ours = CaptureModel(build("llama", tmp_path), CaptureSettings(), self_check="off", threads=1)
    rows = bench.ragged_rows(6, VOCAB)
    expected = [result.pools["response_mean"] for result in ours.capture(rows)]
    kept = []
    right = bench.means_of
    monkeypatch.setattr(
        bench, "means_of", lambda states, chosen: kept.append(right(states, chosen)) or kept[-1]
    )
    methods = bench.methods_of(ours, rows, (64,))
    assert list(methods) == [
        *("traitmill", "guide, batch 8", "guide, batch 1", "stack kept, batch 16"),
        *("traitmill, budget 64", "matrix products alone"),
    ]
    for name, method in methods.items():
        kept.clear()
        held = bench.Held()
        method(held)
        assert held.bytes > 0 or name == bench.LIMIT
        if name.startswith("guide"):
            for means, own in zip(torch.cat(kept), expected, strict=True):
                # transformers' last state is after the final norm
                torch.testing.assert_close(means[:-1], torch.tensor(own[:-1]), rtol=1e-4, atol=1e-5)


def test_a_stacks_hooks_are_gone_when_it_is_done(tmp_path):
    ours = CaptureModel(build("llama", tmp_path), CaptureSettings(), self_check="off", threads=1)
    bench.kept_stack(ours._model, bench.ragged_rows(2, VOCAB), 2, bench.Held())
    assert not any(block._forward_hooks for block in ours._model.model.layers)


def test_rows_are_the_same_each_time_and_as_long_as_stored_responses():
    stored = json.loads(bench.LENGTHS.read_text())
    rows = bench.ragged_rows(64, 1000)
    assert rows == bench.ragged_rows(64, 1000)
    pairs = sorted(zip(stored["prompt_tokens"], stored["response_tokens"], strict=True))
    lengths = sorted((len(row.sample.prompt_token_ids), row.n_pooled) for row in rows)
    assert lengths == sorted(pairs + pairs)
    assert max(stored["response_tokens"]) <= stored["max_new_tokens"]


def test_each_method_is_saved_and_one_that_fails_is_named_and_costs_no_other():
    saved = []

    def fails(_held):
        raise torch.OutOfMemoryError("CUDA out of memory\nmore")

    bench.measure(
        {"a": lambda held: held.note(torch.zeros(4)), "b": fails},
        2,
        lambda *found: saved.append(copy.deepcopy(found)),
        iter(range(100)).__next__,
    )
    named = {"b": "CUDA out of memory"}
    assert saved == [
        ({"a": [1], "b": []}, {"a": 16, "b": 0}, {}),
        ({"a": [1], "b": []}, {"a": 16, "b": 0}, named),
        ({"a": [1, 1], "b": []}, {"a": 16, "b": 0}, named),
    ]


def test_baselines_run_where_the_model_is():
    """Their ids, masks and weights are made on the model's device."""
    model = torch.nn.Linear(1, 1, device="meta")
    ids, mask = bench.padded(bench.ragged_rows(2, 100), model.weight.device)
    assert (ids.device.type, mask.device.type) == ("meta", "meta")


def test_a_round_that_was_cut_off_shows_what_it_had():
    seconds = {
        "traitmill": [2.0, 4.0],
        bench.GUIDES: [5.0, 9.0],
        bench.STACK: [6.0],
        bench.LIMIT: [],
    }
    # 5 over 2 and 9 over 4 s; the stack's second round is missing.
    assert bench.times_ours({"seconds": seconds}, bench.GUIDES) == [2.375, 2.25, 2.5]
    assert bench.times_ours({"seconds": seconds}, bench.STACK) == [3.0, 3.0, 3.0]
    assert bench.times_ours({"seconds": seconds}, bench.LIMIT) is None
