"""The self-check lets good captures pass and names what is wrong with bad ones."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.oracle import BOS, FAMILIES, VOCAB, Oracle, build
from tests.support.rows import response_row
from traitmill.engine.capture import model as capture_module
from traitmill.engine.capture.model import CaptureModel
from traitmill.engine.capture.reference import run_alone
from traitmill.engine.capture.self_check import ONE_IN, Reference, SelfCheck, is_sampled
from traitmill.engine.errors import ExitCode, SelfCheckError
from traitmill.engine.settings import POOLS, CaptureSettings


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """family -> (folder, rows with the log-probs an engine would report)."""
    known = {}

    def get(family):
        if family not in known:
            path = build(family, tmp_path_factory.mktemp(family))
            oracle, rng, rows = Oracle(path), np.random.default_rng(1), []
            for index in range(8):
                prompt = (BOS, *map(int, rng.integers(3, VOCAB, rng.integers(4, 20))))
                response = tuple(map(int, rng.integers(3, VOCAB, rng.integers(3, 15))))
                thought = tuple(map(int, rng.integers(3, VOCAB, rng.integers(3, 9))))
                logprobs = oracle.logprobs((*prompt, *thought), response)
                n = len(response) - 1
                rows.append(
                    response_row(f"row{index}", prompt, response, n, logprobs, thought=thought)
                )
            known[family] = (path, rows)
        return known[family]

    return get


def load(path, **options):
    capture = options.pop("capture", CaptureSettings(pools=POOLS, include_embeddings=True))
    chosen = {
        "self_check": "all",
        "generation_dtype": "float32",
        "token_budget": 10_000,
        "threads": 1,
        **options,
    }
    return CaptureModel(path, capture, **chosen)


@pytest.mark.parametrize("family", FAMILIES)
def test_good_captures_pass_with_room_to_spare(family, made):
    path, rows = made(family)
    model = load(path)
    assert not any(result.error for result in model.capture(rows))
    summary = json.loads(json.dumps(model.check_summary()))
    assert summary["rows"] == summary["logprob_rows"] == 8
    assert summary["skipped_for_memory"] == 0
    assert max(summary["worst_state_deviation"].values()) > 0
    for pool, tolerance in summary["state_tolerance"].items():
        assert summary["worst_state_deviation"][pool] < tolerance / 10
        assert tolerance == pytest.approx(
            1e-4 * (2 if "last" in pool else 1) * (2 if "moe" in family else 1)
        )
    assert 0 < summary["worst_logprob_deviation"] < summary["logprob_tolerance"] / 10


def test_swapped_rows_are_caught(made, monkeypatch):
    path, rows = made("llama")
    model = load(path)
    launch = model._launch

    def swapped(chosen, batch):
        pending = launch(chosen, batch)
        pending.pooled[[0, 1]] = pending.pooled[[1, 0]]
        return pending

    monkeypatch.setattr(model, "_launch", swapped)
    with pytest.raises(
        SelfCheckError, match=r"sample row\d, layer -1.*rows were swapped"
    ) as caught:
        model.capture(rows)
    assert caught.value.exit_code == ExitCode.SELF_CHECK


@pytest.mark.parametrize(("shift", "layers"), [(1, (0, 1)), (-1, (1, 2))])
def test_layers_off_by_one_are_caught(shift, layers, made, monkeypatch):
    path, rows = made("llama")
    model = load(path, capture=CaptureSettings(layers=layers))
    right = model.forward
    moved = [layer + shift for layer in layers]
    monkeypatch.setattr(model, "forward", lambda ids, _layers, take: right(ids, moved, take))
    with pytest.raises(
        SelfCheckError, match=rf"layer {layers[0]}.*matches layer {layers[0] + shift}.*`blocks`"
    ):
        model.capture(rows)


def test_a_dropped_soft_cap_is_caught(made):
    path, rows = made("gemma2")
    model = load(path)
    assert model.attention == "eager"
    model._model.set_attn_implementation("sdpa")
    with pytest.raises(SelfCheckError, match=r"after the last layer.*drops the soft-cap"):
        model.capture(rows)


def with_prompt(row, ids):
    return replace(row, sample=replace(row.sample, prompt_token_ids=tuple(ids)))


def test_a_second_bos_is_caught_by_its_ids(made):
    path, rows = made("llama")
    rows = [*rows[:3], with_prompt(rows[3], (BOS, *rows[3].sample.prompt_token_ids))]
    with pytest.raises(SelfCheckError, match="sample row3 starts with two BOS"):
        load(path, self_check="sample").capture(rows)
    assert not load(path, self_check="off").capture(rows)[3].error


def test_tokens_that_generation_did_not_see_are_caught_by_the_logprobs(made):
    path, rows = made("llama")
    dropped = [with_prompt(row, row.sample.prompt_token_ids[1:]) for row in rows]
    with pytest.raises(SelfCheckError, match="chat template or BOS"):
        load(path).capture(dropped)


def test_padding_that_is_seen_is_caught(made, monkeypatch):
    """Padding on the left without a mask: every row but the longest attends to it."""
    path, rows = made("llama")

    def left(token_ids, width):
        return torch.tensor(
            [[row[0]] * (width - len(row)) + list(row) for row in (r[:width] for r in token_ids)]
        )

    monkeypatch.setattr(capture_module, "padded_ids", left)
    with pytest.raises(SelfCheckError, match=r"sample row\d, layer"):
        load(path).capture(rows)


def test_a_mask_that_shows_later_tokens_is_caught(made):
    path, rows = made("llama")
    model = load(path)
    for block in model._blocks:
        block.self_attn.is_causal = False
    with pytest.raises(SelfCheckError, match="attention mask"):
        model.capture(rows)


def test_wrong_blocks_are_caught(made):
    """A list of the right length that is not the model's own blocks."""
    path, rows = made("llama")
    model = load(path)
    model._blocks = [block.mlp for block in model._blocks]
    with pytest.raises(SelfCheckError, match=r"sample row\d, layer -1.*`blocks` is wrong"):
        model.capture(rows)


def test_sampling_looks_at_the_first_batch_and_a_share_after(made):
    path, rows = made("llama")
    model = load(path, self_check="sample")
    model.capture([replace(row, logprobs=None) for row in rows])
    assert model.check_summary()["rows"] == 4
    model.capture([rows[0], *(replace(row, logprobs=None) for row in rows[1:])])
    assert (model.check_summary()["rows"], model.check_summary()["logprob_rows"]) == (5, 1)
    many = [f"{index:032x}" for index in range(64_000)]
    assert sum(map(is_sampled, many)) == pytest.approx(64_000 / ONE_IN, rel=0.15)


def test_a_batch_without_a_finite_row_is_looked_at_in_no_row():
    for mode in ("sample", "all", "off"):
        how = {"layers": (0,), "pools": ("response_mean",), "bos": None, "capped": False}
        check = SelfCheck(mode, "float32", "float32", **how)
        assert check.choose([], [], []) == []
        assert check.choose(["0" * 32], [4], [True]) == ([] if mode == "off" else [0])


def test_the_first_batch_prefers_rows_with_logprobs_from_shortest_to_longest():
    check = SelfCheck(
        "sample", "bfloat16", "auto", layers=(0,), pools=("response_mean",), bos=None, capped=False
    )
    ids, lengths = [f"row{i}" for i in range(10)], [30, 5, 9, 100, 7, 8, 50, 60, 20, 10]
    assert check.choose(ids, lengths, [i in {1, 2, 6, 7, 9} for i in range(10)]) == [1, 2, 7, 9]
    assert check.choose(ids, lengths, [i == 5 for i in range(10)]) == [5]
    many = [f"{i:032x}" for i in range(500)]
    assert (
        check.choose(many, lengths * 50, [False] * 500)
        == [i for i in range(500) if is_sampled(many[i])]
        != []
    )
    assert (
        SelfCheck("off", "float32", "auto", layers=(0,), pools=(), bos=None, capped=False).choose(
            ids, [], []
        )
        == []
    )


def test_noise_of_half_precision_passes_and_a_steady_shift_does_not():
    """Each response may be 0.1 off; three that are on average 0.09 off are no rounding, likely
    tokens as they are."""
    check = SelfCheck(
        "all", "bfloat16", "auto", layers=(0,), pools=("response_mean",), bos=None, capped=False
    )
    reference = Reference(
        np.zeros((1, 2, 4), np.float32), np.full(64, -1.0, np.float32), tuple(range(64))
    )
    check.logprobs("fine", [-1.04] * 64, reference)
    check.logprobs("row0", [-1.11] * 64, reference)
    with pytest.raises(SelfCheckError, match=r"sample row1.*log-probs of 3 responses"):
        check.logprobs("row1", [-1.11] * 64, reference)
    alone = SelfCheck(
        "all", "bfloat16", "auto", layers=(0,), pools=("response_mean",), bos=None, capped=False
    )
    with pytest.raises(SelfCheckError, match=r"sample odd.*of the response"):
        alone.logprobs("odd", [-1.2] * 64, reference)


def test_unlikely_tokens_may_differ_by_more():
    """Bfloat16 noise of SmolLM2 at temperature 2, where a token has -10 nats on average, against a
    fault's 0.2."""
    check = SelfCheck(
        "all", "bfloat16", "auto", layers=(0,), pools=("response_mean",), bos=None, capped=False
    )
    reference = Reference(
        np.zeros((1, 2, 4), np.float32), np.full(64, -10.0, np.float32), tuple(range(64))
    )
    for index in range(100):
        check.logprobs(f"row{index}", [-10.0 + 0.078 * (-1) ** index] * 64, reference)
    assert check.summary()["mean_logprob"] == pytest.approx(-10, abs=0.01)
    with pytest.raises(SelfCheckError, match=r"sample odd.*of the response"):
        check.logprobs("odd", [-10.3] * 64, reference)
    fault = SelfCheck(
        "all", "bfloat16", "auto", layers=(0,), pools=("response_mean",), bos=None, capped=False
    )
    with pytest.raises(SelfCheckError, match=r"log-probs of \d+ responses differ by 0\.2 nats"):
        for index in range(10):
            fault.logprobs(f"row{index}", [-10.2] * 64, reference)


@pytest.mark.parametrize("experts", [False, True])
def test_one_token_and_a_router_round_by_more_than_a_mean(experts):
    """Off by 0.08: too much for a mean, as little as rounding for one token; a mixture of experts
    doubles both."""
    states = np.ones((2, 4, 8), np.float32)
    reference = Reference(states, None, ())
    factor = 2 if experts else 1
    pools = ("response_mean", "response_last")

    def check(off):
        one = SelfCheck(
            "all",
            "bfloat16",
            "auto",
            layers=(0, 2),
            pools=pools,
            bos=None,
            capped=False,
            experts=experts,
        )
        batched = states[:, [1, 3]] * (1 + np.array(off, np.float32)[:, None, None])
        one.states("row", batched, reference)

    check((0.045 * factor, 0.08 * factor))
    with pytest.raises(SelfCheckError, match="layer 0, response_mean"):
        check((0.08 * factor, 0.08 * factor))
    with pytest.raises(SelfCheckError, match="layer 0, response_last"):
        check((0.0, 0.12 * factor))


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_faults_are_caught_in_half_precision(family, tmp_path, monkeypatch):
    """Where tolerances are widest: swapped rows and a shifted layer."""
    path = build(family, tmp_path, dtype=torch.bfloat16, scale=4.0)
    oracle, rng, rows = Oracle(path), np.random.default_rng(5), []
    for index in range(8):
        prompt = (BOS, *map(int, rng.integers(3, VOCAB, rng.integers(4, 20))))
        response = tuple(map(int, rng.integers(3, VOCAB, rng.integers(8, 30))))
        rows.append(
            response_row(
                f"row{index}",
                prompt,
                response,
                len(response),
                oracle.logprobs((*prompt, 5, 6, 7), response),
                thought=(5, 6, 7),
            )
        )
    assert not any(result.error for result in load(path, generation_dtype="bfloat16").capture(rows))

    def faulty(change):
        model = load(
            path, generation_dtype="bfloat16", capture=CaptureSettings(pools=POOLS, layers=(0, 1))
        )
        change(model)
        with pytest.raises(SelfCheckError):
            model.capture(rows)

    def swap(model):
        launch = model._launch

        def swapped(chosen, batch):
            pending = launch(chosen, batch)
            pending.pooled[[0, 1]] = pending.pooled[[1, 0]]
            return pending

        monkeypatch.setattr(model, "_launch", swapped)

    def shift(model):
        right = model.forward
        monkeypatch.setattr(model, "forward", lambda ids, _layers, take: right(ids, (1, 2), take))

    for fault in (swap, shift):
        faulty(fault)


def test_the_reference_keeps_its_index_where_any_device_takes_it():
    """The head of a model that is spread over GPUs is not where the embeddings are."""
    seen = []

    class Spread(torch.nn.Module):
        def get_input_embeddings(self):
            return torch.nn.Embedding(4, 4, device="meta")

        def forward(self, input_ids, logits_to_keep, **_):
            seen.append(
                (input_ids.device.type, logits_to_keep.device.type, logits_to_keep.tolist())
            )
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_alone(
            Spread(), [torch.nn.Identity()], (1, 2, 3), (4, 5), spans={}, pools=(), logprobs=True
        )
    assert seen == [("meta", "cpu", [2, 3])]


def test_a_row_too_large_to_run_alone_is_counted_not_fatal(made, monkeypatch):
    path, rows = made("llama")

    def too_large(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(capture_module, "run_alone", too_large)
    model = load(path)
    assert not any(result.error for result in model.capture(rows))
    assert model.check_summary()["skipped_for_memory"] == 8
