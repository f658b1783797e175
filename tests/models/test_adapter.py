"""LoRA adapters are found, and refused before anything loads where they do not fit."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.conftest import ROOT
from tests.models.test_stored import place
from tests.support.adapters import edit_config, make_adapter
from tests.support.oracle import build
from tests.support.rows import response_row
from traitmill.engine.capture.model import CaptureModel
from traitmill.engine.errors import AccessError, ResourceError, UsageError
from traitmill.engine.models import (
    ModelRef,
    Shape,
    Stored,
    adapter_fit,
    adapter_here,
    check_adapter,
    count_weights,
    find_adapter,
    find_model,
)
from traitmill.engine.models.adapter_fit import same_model
from traitmill.engine.models.stored import sized
from traitmill.engine.replicas import Seat
from traitmill.engine.run import replicated
from traitmill.engine.run.models import LocalModels, ModelsWanted
from traitmill.engine.settings import CaptureSettings, RunSettings, Sampling


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(build("llama", tmp_path_factory.mktemp("base")))


@pytest.fixture
def adapted(base: Path, tmp_path: Path) -> Callable[..., ModelRef]:
    """The base with an adapter made for it, or edited: adapter_config.json's keys."""

    def made(**config: Any) -> ModelRef:
        folder = make_adapter(tmp_path / "adapter", base)
        edit_config(folder, **config)
        return replace(find_model(str(base)), adapter=find_adapter(str(folder)))

    return made


def test_an_adapter_of_its_model_is_taken(adapted: Callable[..., ModelRef]) -> None:
    ref = adapted()
    check_adapter(ref)
    assert ref.adapter is not None
    assert (ref.adapter.name, ref.adapter.rank, ref.adapter.slot) == ("adapter", 4, 8)
    assert len(ref.adapter.revision) == 16


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "IA3"}, "of kind IA3; only LORA"),
        ({"r": 0}, "r is 0 in adapter_config.json"),
        ({"r": 1024}, "rank 1024, above vLLM's 512"),
        ({"r": 2}, "says rank 2 in adapter_config.json, and its weights for .* have 4"),
        ({"use_dora": True}, "uses use_dora .*merge_and_unload"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"bias": "all"}, "uses bias"),
        ({"init_lora_weights": "pissa"}, "uses init_lora_weights"),
    ],
)
def test_what_an_engine_lacks_is_refused_in_one_line(
    adapted: Callable[..., ModelRef], config: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        check_adapter(adapted(**config))
    assert "\n" not in str(refused.value)
    assert "`adapter` adapter" in str(refused.value)


def test_an_adapter_of_another_model_is_refused_by_name(adapted: Callable[..., ModelRef]) -> None:
    ref = adapted(base_model_name_or_path="google/gemma-2-2b-it")
    check_adapter(ref)  # a folder's name tells nothing
    with pytest.raises(UsageError, match="made for google/gemma-2-2b-it, not for google/gemma-2b"):
        check_adapter(replace(ref, name="google/gemma-2b"))
    check_adapter(replace(ref, name="unsloth/Gemma-2-2B-it"))


@pytest.mark.parametrize(
    ("base", "used"),
    [
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "meta-llama/Llama-3.1-8B-Instruct"),
        ("unsloth/qwen2.5-7b-instruct-unsloth-bnb-4bit", "Qwen/Qwen2.5-7B-Instruct"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("TheBloke/Mistral-7B-GPTQ", "mistralai/Mistral-7B"),
    ],
)
def test_a_model_is_known_under_another_name(base: str, used: str) -> None:
    """Adapters of Unsloth name the packed weights that they were trained over."""
    assert same_model(base, used)
    assert not same_model(base, used.replace("-7B", "-3B").replace("-8B", "-70B"))


def test_an_adapter_of_another_model_is_refused_by_shape(base: Path, tmp_path: Path) -> None:
    wide = Path(build("phi", tmp_path / "phi"))
    of_phi = find_adapter(str(make_adapter(tmp_path / "a", wide, targets=("q_proj", "fc1"))))
    with pytest.raises(UsageError, match="changes model.layers.0.mlp.fc1, which is no linear"):
        check_adapter(replace(find_model(str(base)), adapter=of_phi))
    of_moe = Path(build("qwen3", tmp_path / "qwen3"))
    of_qwen = find_adapter(str(make_adapter(tmp_path / "b", of_moe, targets=("q_proj",))))
    check_adapter(replace(find_model(str(base)), adapter=of_qwen))  # of the same shape
    config = replace(find_model(str(base)), adapter=of_qwen)
    narrow = replace(config, config=config.config | {"hidden_size": 64})
    with pytest.raises(UsageError, match="q_proj takes 64 to 32, and A.weight is 4x32"):
        check_adapter(narrow)


def test_an_adapter_of_the_embedding_is_refused(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a", base, targets=("q_proj", "lm_head"))
    ref = replace(find_model(str(base)), adapter=find_adapter(str(folder)))
    with pytest.raises(UsageError, match="changes lm_head"):
        check_adapter(ref)


async def test_a_replica_takes_a_hub_adapter_from_its_own_machine(
    adapted: Callable[..., ModelRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = adapted()
    assert ref.adapter is not None
    cached = shutil.copytree(ref.adapter.folder, tmp_path / "own" / "commit")
    sent = replace(ref.adapter, source="who/what", folder="/there/commit", revision="commit")
    asked: list[object] = []

    def fetch(name: str, _: object, revision: str | None, kind: str) -> Path:
        asked.append((name, revision, kind))
        return cached

    monkeypatch.setattr(adapter_fit, "fetch_files", fetch)
    monkeypatch.setattr(replicated, "tie_children", lambda: None)
    seen: list[ModelRef] = []

    async def prepare(models: LocalModels) -> None:
        seen.append(models.wanted.ref)

    monkeypatch.setattr(LocalModels, "prepare", prepare)
    wanted = ModelsWanted(
        ref=replace(ref, adapter=sent),
        settings=RunSettings(sampling=Sampling(model="m", revision="r")),
        engine=True,
        captures=True,
        longest=9,
    )
    for generates in (True, False):
        opened = replicated.OpenReplica(wanted, share_cores=False)
        async with opened(Seat(0, 1, generates)):
            pass
    assert asked == [("who/what", "commit", "adapter")] * 2
    assert [each.adapter and each.adapter.folder for each in seen] == [str(cached)] * 2
    here = replace(sent, folder=str(cached))
    assert adapter_here(here) is here  # no hub is asked for what is there


def test_a_local_adapter_is_the_same_on_every_machine(adapted: Callable[..., ModelRef]) -> None:
    adapter = adapted().adapter
    assert adapter is not None
    assert adapter_here(adapter) is adapter
    folder = Path(adapter.folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match=f"has other files on {socket.gethostname()}; copy it"):
        adapter_here(adapter)
    shutil.rmtree(folder)
    with pytest.raises(UsageError, match=f"`adapter` {folder} is not there on"):
        adapter_here(adapter)


def test_folders_that_are_none_are_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="`adapter` .* has no adapter_config.json"):
        find_adapter(str(base))
    folder = make_adapter(tmp_path / "a", base)
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(AccessError, match="is cut off or damaged"):
        find_adapter(str(folder))
    weights.unlink()
    with pytest.raises(AccessError, match="has no adapter_model.safetensors"):
        find_adapter(str(folder))
    (folder / "adapter_config.json").write_text("{")
    weights.write_bytes(whole)
    with pytest.raises(AccessError, match="cannot be read"):
        find_adapter(str(folder))
    with pytest.raises(AccessError, match="neither a folder here nor a hub name; check `adapter`"):
        find_adapter("no/such/thing")


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_r12_captured_states_are_those_of_the_adapted_model(family: str, tmp_path: Path) -> None:
    """Against peft's own wrapper, run row by row with transformers' own states."""
    path = build(family, tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", path)
    rows = [response_row(f"r{n}", range(3, 9 + n), range(20, 26 + n), 6 + n) for n in range(4)]
    settings = CaptureSettings(layers=(0, 1))
    how: dict[str, Any] = {"self_check": "off", "threads": 1, "token_budget": 64}
    found = CaptureModel(path, settings, adapter=str(adapter), **how).capture(rows)
    plain = CaptureModel(path, settings, **how).capture(rows)
    tuned = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ),
        adapter,
    )
    for row, mine, without in zip(rows, found, plain, strict=True):
        with torch.inference_mode():
            states = tuned(torch.tensor([row.token_ids]), output_hidden_states=True).hidden_states
        first, end = row.spans["response"]
        expected = torch.stack([state[0, first:end].mean(0) for state in states[1:3]]).numpy()
        values = mine.pools["response_mean"]
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
        far = np.linalg.norm(values - without.pools["response_mean"]) / np.linalg.norm(expected)
        assert far > 0.05


def test_memory_counts_an_adapter_as_vllm_makes_room_for_it(
    adapted: Callable[..., ModelRef],
) -> None:
    """Each part as though it had the largest rank, and vLLM's ranks begin at 8."""
    ref = adapted()
    assert ref.adapter is not None
    shapes = ref.adapter.shapes
    parts = {name.rsplit(".lora_", 1)[0] for name in shapes}
    expected = sum(
        8 * (shapes[f"{part}.lora_A.weight"][1] + shapes[f"{part}.lora_B.weight"][0])
        for part in parts
    )
    stored = count_weights(ref)
    assert stored is not None
    assert stored.adapter == expected > 0
    with_, without = (sized(ref.config, s) for s in (stored, replace(stored, adapter=0)))
    assert with_.weight_bytes(2) - without.weight_bytes(2) == 2 * expected
    unread = replace(ref, source="someone/model")
    estimated = sized(ref.config, count_weights(unread))
    assert estimated.parameters - Shape.from_config(ref.config).parameters == expected


def test_a_model_that_fits_without_its_adapter_alone_is_refused_with_it() -> None:
    config = json.loads((ROOT / "benchmarks/configs/gemma-2-9b.json").read_text())
    assert place(config, None, 23).mode == "alone"
    rank_256 = 42 * 256 * 80_384  # of all linear parts of all layers: 1.6 GiB
    with pytest.raises(ResourceError, match=r"GiB of weights \(6\.4 of them the adapter's\)"):
        place(config, Stored(0, 0, 4 * rank_256), 23)
