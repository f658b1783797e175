"""Capture against an independent single-row float32 reference, for each family, pool and batch
composition."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from tests.support import families
from tests.support.oracle import BOS, BY_LENGTH, FAMILIES, VOCAB, Oracle, build
from tests.support.rows import response_row
from traitmill.engine.capture import decoder
from traitmill.engine.capture import model as capture
from traitmill.engine.capture.batching import Batch
from traitmill.engine.capture.model import CaptureModel
from traitmill.engine.capture.pooling import LayerHooks, padded_ids, pool_weights
from traitmill.engine.errors import AccessError, ResourceError, UsageError
from traitmill.engine.models.config import choose_attention, choose_dtype, require_causal
from traitmill.engine.settings import POOLS, CaptureSettings


def make_rows(n=9, seed=0):
    """Ragged rows; every third response ends with a token that does not count."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(n):
        prompt = (BOS, *map(int, rng.integers(3, VOCAB, rng.integers(1, 20))))
        response = tuple(map(int, rng.integers(3, VOCAB, rng.integers(2, 15))))
        thought = tuple(map(int, rng.integers(3, VOCAB, rng.integers(3, 9))))
        n_pooled = len(response) - (index % 3 == 0)
        rows.append(response_row(f"row{index}", prompt, response, n_pooled, thought=thought))
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """family -> a saved tiny float32 model and its oracle, each built once."""
    made = {}

    def get(family):
        if family not in made:
            path = build(family, tmp_path_factory.mktemp(family))
            made[family] = (path, Oracle(path))
        return made[family]

    return get


def load(path, **options):
    dtype = options.pop("dtype", "auto")
    default = CaptureSettings(pools=POOLS, include_embeddings=True, dtype=dtype)
    capture = options.pop("capture", default)
    return CaptureModel(
        path, capture, **{"self_check": "off", "token_budget": 64, "threads": 1, **options}
    )


def relative(found, expected):
    return float(
        (np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_r10_pools_equal_the_reference_in_any_batch(family, folder):
    path, oracle = folder(family)
    rows = make_rows()
    expected = [oracle.of(row) for row in rows]
    model = load(path)
    for budget, order in ((1, range(9)), (64, range(9)), (10_000, range(8, -1, -1))):
        model.budget.now = model.budget.limit = budget
        results = model.capture([rows[index] for index in order])
        for index, result in zip(order, results, strict=True):
            assert (result.sample_id, result.error) == (rows[index].sample.id, "")
            assert set(result.pools) == set(POOLS)
            for pool, values in result.pools.items():
                assert values.dtype == np.float32
                assert values.shape == (model.n_layers + 1, 32)
                assert relative(values, expected[index][pool]) < 1e-5, (pool, budget)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_depends_on_attention(family, folder):
    """Else the tests here could not see a wrong mask: another first token must move the last one's
    residual."""
    _, oracle = folder(family)
    ids = [BOS, *range(10, 18)]  # inside the sliding windows of nine
    moved = oracle.residuals([BOS, 50, *ids[2:]])[1:, -1]
    assert relative(moved, oracle.residuals(ids)[1:, -1]) > 0.01


def test_r11_the_last_layer_is_before_the_final_norm(folder):
    path, oracle = folder("llama")
    row = make_rows(1)[0]
    ids = torch.tensor([[*row.sample.prompt_token_ids, *row.response_token_ids]])
    normed = oracle.model(ids, output_hidden_states=True).hidden_states[-1][
        0, len(row.sample.prompt_token_ids) - 1
    ]
    found = load(path).capture([row])[0].pools["prompt_last"][-1]
    assert relative(found, oracle.model.model.norm(torch.tensor(found)).detach().numpy()) > 0.1
    assert (
        relative(
            oracle.model.model.norm(torch.tensor(found)).detach().numpy(), normed.detach().numpy()
        )
        < 1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_stays_close_to_the_float32_reference(family, tmp_path):
    path = build(family, tmp_path, dtype=torch.bfloat16, scale=1.0)
    oracle, rows, model = Oracle(path), make_rows(), load(path, dtype="bfloat16")
    assert model.dtype == "bfloat16"
    for row, result in zip(rows, model.capture(rows), strict=True):
        expected = oracle.of(row)
        for pool, values in result.pools.items():
            norms = np.linalg.norm(values, axis=-1) * np.linalg.norm(expected[pool], axis=-1)
            assert ((values * expected[pool]).sum(-1) / norms).min() >= 0.999


@pytest.mark.parametrize("family", BY_LENGTH)
def test_rows_of_all_lengths_keep_their_own_rope(family, tmp_path, monkeypatch):
    """The reference is loaded anew for each row, since transformers' modules remember the rows
    before."""
    path, rows = build(family, tmp_path), make_rows(12)
    lengths = [len(row.sample.prompt_token_ids) + len(row.response_token_ids) for row in rows]
    assert sum(length > 16 for length in lengths) >= 4
    assert sum(length < 16 for length in lengths) >= 2
    expected = [Oracle(path).of(row) for row in rows]

    def off(model):
        found = model.capture(rows)
        return max(
            relative(result.pools[pool], own[pool])
            for result, own in zip(found, expected, strict=True)
            for pool in POOLS
        )

    model = load(path, token_budget=10_000, self_check="all")
    assert off(model) < 1e-5
    assert off(model) < 1e-5  # again, after rows of all lengths
    assert model.check_summary()["rows"] == 24
    mixed = load(path, token_budget=10_000)
    monkeypatch.setattr(mixed, "together", lambda _longest, _other: True)
    assert off(mixed) > 1e-3


def test_a_subset_of_layers_ends_the_forward_early(folder):
    path, oracle = folder("gemma2")
    model = load(path, capture=CaptureSettings(layers=(0, 2)))
    ran = []
    for index, block in enumerate(model._blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    model._model.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    row = make_rows(1)[0]
    values = model.capture([row])[0].pools["response_mean"]
    expected = oracle.of(row)["response_mean"]
    assert model.layers == (0, 2)
    assert relative(values, expected[[1, 3]]) < 1e-5
    assert 3 not in ran
    assert "head" not in ran
    assert not any(len(block._forward_pre_hooks) for block in model._blocks)


def test_hooks_go_when_the_forward_fails(folder):
    model = load(folder("llama")[0])
    before = [len(block._forward_hooks) for block in model._blocks]

    def fail():
        with LayerHooks(model._blocks, model.layers, lambda *_: None):
            assert [len(block._forward_hooks) for block in model._blocks] != before
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert [len(block._forward_hooks) for block in model._blocks] == before


def test_prompt_pools_alone_run_no_response_token(folder):
    path, oracle = folder("llama")
    model = load(path, capture=CaptureSettings(pools=("prompt_mean",)))
    row = make_rows(1)[0]
    assert model.tokens_run(row) == len(row.sample.prompt_token_ids)
    found = model.capture([row])[0].pools["prompt_mean"]
    assert (
        relative(found, oracle.pools(row.sample.prompt_token_ids, (), 0)["prompt_mean"][1:]) < 1e-5
    )


def test_rows_without_tokens_get_an_error_and_others_are_safe(folder):
    rows = make_rows(3)
    rows[1] = response_row("mute", rows[1].sample.prompt_token_ids, (2,), 0)
    results = load(folder("llama")[0]).capture(rows)
    assert [result.error for result in results] == ["", "", ""]
    assert set(results[0].pools) == set(POOLS)
    assert set(results[1].pools) == {pool for pool in POOLS if pool.startswith("prompt")}
    alone = CaptureSettings(pools=("response_mean", "thought_mean"))
    [_, mute, _] = load(folder("llama")[0], capture=alone, self_check="all").capture(rows)
    assert mute.error == "sample mute: it has no response and no thought token to pool"
    checked = load(folder("llama")[0], self_check="all").capture(rows)
    for pool, values in checked[1].pools.items():
        np.testing.assert_array_equal(values, results[1].pools[pool])
    assert load(folder("llama")[0]).capture([]) == []


def test_f21_out_of_memory_in_the_forward_loses_no_row(folder, monkeypatch):
    path, oracle = folder("llama")
    model, rows = load(path, token_budget=200), make_rows()
    forward, refused = model._model.forward, []

    def short_of_memory(input_ids, **options):
        if input_ids.numel() > 80:
            refused.append(input_ids.numel())
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried "
                "..."
            )
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(model._model, "forward", short_of_memory)
    for row, result in zip(rows, model.capture(rows), strict=True):
        expected = oracle.of(row)
        assert relative(result.pools["response_mean"], expected["response_mean"]) < 1e-5
    assert refused
    count = len(refused)
    model.capture(rows)
    assert len(refused) == count, "the size that fits is remembered"
    monkeypatch.setattr(
        model._model, "forward", lambda **_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA"))
    )
    with pytest.raises(ResourceError, match="one row"):
        model.capture(rows)


def test_f30_nan_names_sample_and_layer_and_leaves_others(folder, monkeypatch):
    path, _ = folder("llama")
    model, rows = load(path, token_budget=10_000), make_rows()
    clean = {result.sample_id: result.pools for result in model.capture(rows)}
    poison = rows[4].response_token_ids[0]
    rows = [row for row in rows if row is rows[4] or poison not in row.token_ids]
    assert len(rows) >= 4
    launch, running = model.forward, []

    def remember(ids, layers, take):
        running.append(ids)
        return launch(ids, layers, take)

    def poisoned(_block, _args, output):
        state = output.clone()
        state[running[-1] == poison] = float("inf")
        return state

    monkeypatch.setattr(model, "forward", remember)
    model._blocks[1].register_forward_hook(poisoned, prepend=True)
    results = {result.sample_id: result for result in model.capture(rows)}
    assert "sample row4" in results["row4"].error
    assert "layer 1" in results["row4"].error
    assert results["row4"].pools == {}
    for name in set(results) - {"row4"}:
        assert results[name].error == ""
        np.testing.assert_allclose(
            results[name].pools["response_mean"], clean[name]["response_mean"], rtol=1e-4
        )


def test_a_copy_is_waited_for_on_its_own_gpu(folder, monkeypatch):
    """The current stream is the first GPU's: an event recorded there has passed before another
    GPU's copy has."""
    recorded = []

    class Event:
        def record(self, stream=None):
            recorded.append(stream)

    class OnSecondGpu:
        def __init__(self, *_):
            self.pooled = SimpleNamespace(device=torch.device("cuda:1"))
            self.take = None

        def elsewhere(self):
            third = SimpleNamespace(device=torch.device("cuda:2"))
            return [([1], third)]

    model = load(folder("llama")[0])
    monkeypatch.setattr(model, "forward", lambda *_: None)
    monkeypatch.setattr(capture, "Pooler", OnSecondGpu)
    monkeypatch.setattr(
        torch, "empty_like", lambda *_, **__: SimpleNamespace(copy_=lambda *_, **__: None)
    )
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
    rows = make_rows(1)
    model._launch(rows, Batch((0,), model.tokens_run(rows[0])))
    assert sorted(recorded) == ["stream of cuda:1", "stream of cuda:2"]


def test_padding_repeats_the_last_token():
    assert padded_ids([[5, 6, 7, 8], [9]], 3).tolist() == [[5, 6, 7], [9, 9, 9]]


def test_pool_weights_pick_the_right_tokens():
    rows = [
        {"prompt": (0, 2), "thought": (0, 0), "response": (2, 5)},
        {"prompt": (0, 1), "thought": (2, 4), "response": (5, 6)},
    ]
    weights = pool_weights(POOLS, rows, 6)
    by_pool = dict(zip(POOLS, weights.unbind(1), strict=True))
    assert by_pool["response_mean"][0].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3, 0])
    assert by_pool["response_last"].tolist() == [[0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]]
    assert by_pool["thought_mean"].tolist() == [[0] * 6, [0, 0, 0.5, 0.5, 0, 0]]
    assert by_pool["prompt_mean"][0].tolist() == [0.5, 0.5, 0, 0, 0, 0]
    assert by_pool["prompt_last"].tolist() == [[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]


def test_blocks_that_are_not_found_name_the_option(folder):
    model = load(folder("llama")[0])._model
    model.config.num_hidden_layers = 2
    with pytest.raises(UsageError, match=r"`blocks` model\.layers"):
        decoder.find_blocks(model)
    model.config.num_hidden_layers = 3
    assert decoder.find_blocks(model, "model.layers") == list(model.model.layers)
    for path in ("model.nowhere", "model.norm"):
        with pytest.raises(UsageError, match=f"`blocks` {path}"):
            decoder.find_blocks(model, path)


def test_a_layer_the_model_does_not_have_is_refused(folder):
    with pytest.raises(UsageError, match="layers 0 to 2"):
        load(folder("llama")[0], capture=CaptureSettings(layers=(1, 3)))


def test_a_folder_without_weights_is_an_access_error(folder, tmp_path):
    with pytest.raises(AccessError, match="config of model"):
        load(str(tmp_path))
    shutil.copy(Path(folder("llama")[0]) / "config.json", tmp_path)
    with pytest.raises(AccessError, match="weights of model"):
        load(str(tmp_path))


def test_soft_cap_models_never_get_an_implementation_that_drops_the_cap():
    capped, plain = FAMILIES["gemma2"](), FAMILIES["llama"]()
    choose = choose_attention
    assert choose(capped, "auto", device="cpu", dtype="bfloat16") == "eager"
    assert (
        choose(capped, "auto", device="cuda", dtype="bfloat16", flash=True) == "flash_attention_2"
    )
    assert choose(capped, "auto", device="cuda", dtype="float32", flash=True) == "eager"
    assert choose(capped, "auto", device="cuda", dtype="bfloat16") == "eager"
    assert choose(plain, "auto", device="cpu", dtype="float32") == "sdpa"
    assert choose(plain, "auto", device="cpu", dtype="float32", supports_sdpa=False) == "eager"
    assert choose(capped, "flex_attention", device="cuda", dtype="bfloat16") == "flex_attention"
    with pytest.raises(UsageError, match="soft-cap"):
        choose(capped, "sdpa", device="cuda", dtype="bfloat16")
    assert (
        choose(capped, "flash_attention_2", device="cuda", dtype="bfloat16", flash=True)
        == "flash_attention_2"
    )
    with pytest.raises(UsageError, match=r"flash-attn knows from 2\.6 on"):
        choose(capped, "flash_attention_2", device="cuda", dtype="bfloat16", flash=False)
    with pytest.raises(UsageError, match="needs a GPU and `capture_dtype`"):
        choose(plain, "flash_attention_2", device="cpu", dtype="bfloat16")


def test_dtype_follows_the_model_and_is_never_float16_for_gemma():
    config = FAMILIES["gemma2"]()
    for own, expected in (
        (torch.bfloat16, "bfloat16"),
        (torch.float16, "bfloat16"),
        (torch.float32, "float32"),
    ):
        config.dtype = own
        assert choose_dtype(config, "auto") == expected
    config.dtype = torch.bfloat16
    assert choose_dtype(config, "auto", bfloat16=False) == "float32"
    with pytest.raises(UsageError, match="`capture_dtype` float16 overflows"):
        choose_dtype(config, "float16")
    with pytest.raises(UsageError, match="unknown"):
        choose_dtype(config, "int8")


def test_a_model_that_looks_ahead_is_refused():
    config = FAMILIES["gemma3"]()
    require_causal(config)
    config.use_bidirectional_attention = True
    with pytest.raises(UsageError, match="later tokens"):
        require_causal(config)
    for kind in (transformers.BertConfig, transformers.RobertaConfig):
        with pytest.raises(UsageError, match="later tokens"):
            require_causal(kind())
        require_causal(kind(is_decoder=True))
    require_causal(transformers.GPTNeoXConfig())


def test_a_model_with_a_vision_tower_is_captured_at_its_text_blocks(tmp_path):
    """Both towers have four blocks here; only the decoder's count."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, Gemma3Config

    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    text = {**FAMILIES["gemma3"]().to_dict(), "vocab_size": 300}
    config = Gemma3Config(
        text_config=text,
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=299,
    )
    config.dtype = torch.float32
    MODEL_FOR_CAUSAL_LM_MAPPING[Gemma3Config](config).save_pretrained(tmp_path)
    model = load(str(tmp_path), self_check="all")
    assert model._blocks == list(model._model.model.language_model.layers)
    assert not any(result.error for result in model.capture(make_rows(4)))
    assert model.check_summary()["rows"] == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["Mistral-3, with vision", "Qwen-2-VL", "Qwen-2.5-VL", "Qwen-3-VL"]
)
def test_a_model_that_sees_is_captured_as_its_own_class_reads_text(name, tmp_path, model_folder):
    """transformers lists none of these as causal: they were refused, though no picture is shown."""
    [family] = [each for each in families.FAMILIES if each.name == name]
    path = family.make(tmp_path / "model", model_folder)
    own = transformers.AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
    model = load(str(path), self_check="all")
    rows = make_rows(6)
    for row, result in zip(rows, model.capture(rows), strict=True):
        ids = torch.tensor([row.sample.prompt_token_ids])
        states = own(input_ids=ids, output_hidden_states=True).hidden_states
        last = [each[0, -1].detach().numpy() for each in states[:-1]]
        assert result.error == ""
        assert relative(result.pools["prompt_last"][:-1], np.stack(last)) < 1e-5
    assert model.check_summary()["rows"] == len(rows)
