"""Plans: sizes against published ones, times against arithmetic by hand, advice that does help."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import plans
from tests.conftest import ROOT, Traitmill
from tests.gpu.test_placement import card, smi
from tests.support import fakes
from tests.support.finished import finish, on
from traitmill.engine.errors import ExitCode, ResourceError, UsageError
from traitmill.engine.judging import find_price
from traitmill.engine.models import (
    Gpu,
    ModelRef,
    Placement,
    Shape,
    check_split,
    choose_placement,
    gpus,
)
from traitmill.engine.models.machine import GIB
from traitmill.engine.planning import card_of, job_of, make_plan, parse_gpus, typical_job
from traitmill.engine.planning.job import Job
from traitmill.engine.planning.layout import layouts
from traitmill.engine.planning.roofline import Device, read_weights, step_seconds
from traitmill.engine.run.foresight import few_questions, foresee, foresee_verdicts
from traitmill.engine.settings import JudgeSettings, RunSettings, apply
from traitmill.engine.traits import load_traits

PUBLISHED = {
    "llama-3.2-1b": 1_235_814_400,
    "gemma-2-2b": 2_614_341_888,
    "llama-3.1-8b": 8_030_261_248,
    "qwen3-8b": 8_190_735_360,
    "gemma-2-9b": 9_241_705_984,
    "qwen3-14b": 14_768_307_200,
    "gemma-2-27b": 27_227_128_320,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-32b": 32_762_123_264,
    "llama-3.1-70b": 70_553_706_496,
}


# --- the page ---


def test_the_page_of_plans_is_what_the_code_says_now() -> None:
    """Where this fails: python -m benchmarks.plans, and read what changed."""
    assert plans.PAGE.read_text(encoding="utf-8") == plans.page()


@pytest.mark.parametrize("model", plans.MODELS)
def test_the_configs_have_the_published_sizes(model: str) -> None:
    assert Shape.from_config(plans.config(model)).parameters == pytest.approx(
        PUBLISHED[model], rel=2e-3
    )


@pytest.mark.parametrize("setup", plans.SETUPS)
def test_a_plan_fits_its_cards_and_a_refusal_is_beyond_them(setup: str) -> None:
    """Bytes of weights by published counts: two a value, four where Gemma meets a T4."""
    gpus = parse_gpus(setup)
    for model in plans.MODELS:
        value = 4 if setup == "T4" and model.startswith("gemma") else 2
        weights = value * PUBLISHED[model]
        try:
            found = plans.plan(model, setup).layout
        except ResourceError:
            assert weights > 0.7 * sum(gpu.free for gpu in gpus)
            continue
        assert found.weights * found.tensor_parallel == pytest.approx(weights, rel=2e-3)
        assert found.taken <= gpus[0].free
        assert found.replicas * found.tensor_parallel == len(gpus)
        assert found.sequences >= 1


# --- cards ---


@pytest.mark.parametrize(
    ("named", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA A100-PCIE-40GB", "A100-40"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("Tesla T4", "T4"),
        ("NVIDIA A10", None),
    ],
)
def test_cards_are_known_by_their_drivers_names(named: str, kind: str | None) -> None:
    found = card_of(Gpu(0, GIB, GIB, named))
    assert (found and found.name) == kind


def test_cards_are_asked_for_by_number_and_name() -> None:
    assert [(gpu.index, gpu.total >> 20) for gpu in parse_gpus("2xh100")] == [
        (0, 81559),
        (1, 81559),
    ]
    assert len(parse_gpus(" t4 ")) == 1
    for text in ("", "8", "0xT4", "65xT4", "8xV100", "T4,L4"):
        with pytest.raises(UsageError, match="as 8xH100; known: T4, L4,"):
            parse_gpus(text)


# --- arithmetic ---


def test_a_step_reads_weights_and_cache_or_computes() -> None:
    """Llama-3.1-8B: all weights but embeddings and norms, 128 KiB of cache a token."""
    shape = Shape.from_config(plans.config("llama-3.1-8b"))
    weights = 8_030_261_248 - 128_256 * 4096 - 65 * 4096
    h100 = Device(flops=989e12, bandwidth=3.35e12)
    one = (2 * weights + 1000 * 131_072) / 3.35e12
    assert step_seconds(shape, h100, 1, 1000) == pytest.approx(one, rel=1e-6)
    many = 2 * weights * 4096 / 989e12
    assert step_seconds(shape, h100, 4096, 0) == pytest.approx(many, rel=1e-6)


def test_a_mixtures_step_reads_the_experts_that_are_asked() -> None:
    shape = Shape.from_config(plans.config("qwen3-30b-a3b"))
    expert = 48 * 3 * 2048 * 768
    one, two, all_ = (read_weights(shape, count) for count in (1, 2, 10_000))
    assert two - one == 8 * expert
    assert all_ - one == 120 * expert


def small_job(**changes: float) -> Job:
    base = Job(
        traits=1,
        samples=1000,
        prompt_tokens=50.0,
        longest_prompt=60,
        new_tokens=100,
        judge_tokens=300.0,
        captures=True,
    )
    return replace(base, **changes)


def test_the_judges_price_and_pace_are_the_lists_and_the_limits() -> None:
    settings = apply({"judge_rpm": 100.0, "judge_model": "gpt-5-mini"})
    gpus = parse_gpus("H100")
    found = make_plan("m", plans.config("gemma-2-2b"), settings, gpus, small_job(), sequences=64)
    assert found.estimate is not None
    assert found.estimate.dollars == pytest.approx((1000 * 300 * 0.25 + 1000 * 16 * 2.0) / 1e6)
    assert found.estimate.judging == 600.0
    unlisted = apply({"judge_model": "somebodys-own"})
    found = make_plan("m", plans.config("gemma-2-2b"), unlisted, gpus, small_job(), sequences=64)
    assert "price of somebodys-own unknown" in str(found)
    local = apply({"judge_model": "local"})
    found = make_plan("m", plans.config("gemma-2-2b"), local, gpus, small_job(), sequences=64)
    assert found.estimate is not None
    assert (found.estimate.judging, found.estimate.dollars) == (0.0, 0.0)


def test_the_advised_rate_does_let_the_cards_decide() -> None:
    gpus, job = parse_gpus("H100"), small_job(samples=20_000)
    slow = make_plan(
        "m", plans.config("gemma-2-2b"), apply({"judge_rpm": 60.0}), gpus, job, sequences=512
    )
    assert slow.estimate is not None
    assert slow.estimate.bottleneck == "judging"
    rate = float(slow.advice().partition("`judge_rpm` ")[2].partition(" would")[0].replace(",", ""))
    free = make_plan(
        "m", plans.config("gemma-2-2b"), apply({"judge_rpm": rate}), gpus, job, sequences=512
    )
    assert free.estimate is not None
    assert free.estimate.bottleneck != "judging"
    assert free.estimate.total < slow.estimate.total


def test_the_split_that_ends_first_is_taken_and_a_given_one_is_kept() -> None:
    """A 2B is not split; a 70B has to be."""
    settings, gpus = apply({"judge_model": "local"}), parse_gpus("8xA100-80")
    job = small_job(samples=100_000)
    two = make_plan("m", plans.config("gemma-2-2b"), settings, gpus, job, sequences=512)
    assert (two.layout.tensor_parallel, two.layout.replicas) == (1, 8)
    large = make_plan("m", plans.config("llama-3.1-70b"), settings, gpus, job, sequences=512)
    assert large.layout.tensor_parallel > 1
    given = make_plan(
        "m", plans.config("gemma-2-2b"), settings, gpus, job, sequences=512, splits=(4,)
    )
    assert (given.layout.tensor_parallel, given.layout.replicas) == (4, 2)
    assert two.estimate is not None
    assert given.estimate is not None
    assert two.estimate.total <= given.estimate.total


def test_what_a_job_is_comes_from_the_definitions(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    (trait,) = load_traits({"trait": folder})
    job = job_of([trait], apply({"n_examples": 7, "max_new_tokens": 9}))
    prompts = [
        len(text) + len(question)
        for pair in trait.instructions
        for text in pair
        for question in trait.questions
    ]
    assert (job.traits, job.samples, job.new_tokens) == (1, 14, 9)
    assert job.prompt_tokens == pytest.approx(sum(prompts) / len(prompts) / 4 + 16)
    assert typical_job(3, apply({"n_examples": 10})).samples == 60


def test_a_thought_is_generated_and_captured_and_not_judged() -> None:
    how = {"n_examples": 1000, "max_new_tokens": 100, "judge_model": "local"}
    brief = typical_job(1, apply(how))
    thinks = typical_job(1, apply(how | {"thinking": "on", "max_thinking_tokens": 900}))
    assert thinks.judge_tokens == brief.judge_tokens
    assert thinks.sample_tokens == brief.sample_tokens + 900
    assert thinks.tokens_per_sequence == brief.tokens_per_sequence + 900
    least = [
        make_plan(
            "m", plans.config("qwen3-8b"), apply(how), parse_gpus("H100"), job, sequences=64
        ).estimate.least  # type: ignore[union-attr]
        for job in (brief, thinks)
    ]
    assert least[1] > 5 * least[0]


# --- what is said ---


def model_folder_of(tmp_path: Path, name: str) -> Path:
    """A folder with a config and nothing else."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(plans.config(name)))
    return folder


def test_the_command_plans_from_the_config_alone(traitmill: Traitmill, tmp_path: Path) -> None:
    model = model_folder_of(tmp_path, "gemma-2-27b")
    code, said = traitmill("plan", "--gpus", "2xH100", "--gen_model", model, "--n_traits", 3)
    assert code == 0
    assert "3 traits, 600 samples of up to 150 new tokens" in said
    assert "GiB weights" in said
    assert "untested on GPU" in said
    code, said = traitmill("plan", "--gpus", "T4", "--gen_model", model)
    assert code == 10
    assert "generation does not fit" in said
    assert "the adapter's" not in said
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    parts = {f"base_model.model.q_proj.lora_{side}.weight": torch.zeros(8, 8) for side in "AB"}
    save_file(parts, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    code, said = traitmill("plan", "--gpus", "T4", "--gen_model", model, "--adapter", adapter)
    assert code == 10
    assert "of them the adapter's" in said


def test_the_command_says_how_to_plan_without_cards(
    traitmill: Traitmill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "_from_driver", list)  # whatever this machine has
    model = model_folder_of(tmp_path, "gemma-2-2b")
    code, said = traitmill("plan", "--gen_model", model)
    assert code == 2
    assert "name the cards to plan for, as --gpus 8xH100" in said


def place(ref: ModelRef, settings: RunSettings, cards: list[Gpu] | None = None) -> Placement:
    return choose_placement(
        ref.config,
        settings,
        gpu=True,
        engine=True,
        sequences=512,
        tokens_per_sequence=200,
        cards=cards,
    )


def test_machines_divide_the_samples_and_are_named(tmp_path: Path, traitmill: Traitmill) -> None:
    settings, gpus = apply({"judge_model": "local"}), parse_gpus("2xH100")
    job = small_job(samples=40_000)
    one, four = (
        make_plan(
            "m",
            plans.config("llama-3.1-70b"),
            settings,
            gpus,
            job,
            sequences=512,
            machines=machines,
        )
        for machines in (1, 4)
    )
    assert one.layout.replicas == 1
    assert four.layout.replicas == 4
    assert one.estimate is not None
    assert four.estimate is not None
    assert four.estimate.generation == pytest.approx(one.estimate.generation / 4, rel=0.01)
    model = model_folder_of(tmp_path, "gemma-2-2b")
    told = ("plan", "--gpus", "8xH100", "--machines", 4, "--gen_model", model)
    code, said = traitmill(*told)
    assert code == 0
    assert "32 replicas of 1 GPU on 4 machines, the first on GPU 0" in said
    assert "--replicas auto, --ray_address auto" in said


def test_a_run_says_its_plan_in_one_line_with_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(monkeypatch, card(0, 80), card(1, 80))
    config = plans.config("gemma-2-2b") | {"dtype": "bfloat16"}
    ref = ModelRef("fake", "fake", "r0", config)
    settings = fakes.settings(n_examples=20, sampling=replace(fakes.settings().sampling))
    runs = fakes.open_runs([fakes.make_trait(tmp_path, "one")], settings)
    foreseen = foresee(ref, settings, runs, place(ref, settings))
    said = foreseen.said
    assert foreseen.seconds
    assert 0 < foreseen.seconds < 60, "g09: too short a plan to compile for"
    assert said.startswith("plan: 1 trait, 40 samples of up to ")
    assert "\n" not in said
    assert "generation on GPU 0, capture on GPU 1 beside it" in said
    two = foresee(ref, settings, runs, place(ref, settings, parse_gpus("A100-80")), replicas=2).said
    assert "2 replicas of 1 GPU, the first on GPU 0, capture on the same beside it" in two
    on_cpu = choose_placement(
        config, settings, gpu=False, engine=True, sequences=512, tokens_per_sequence=0
    )
    foreseen = foresee(ref, settings, runs, on_cpu)
    assert "on this CPU, whose speed the first rows will show" in foreseen.said
    assert foreseen.seconds is None
    for where, replicas in ((on_cpu, 2), (None, 9)):
        said = foresee(ref, settings, runs, where, replicas).said
        place_name = "the Ray cluster" if where is None else "this CPU"
        assert f"on {place_name} in {replicas} replicas, whose" in said


def test_a_run_says_before_it_starts_that_it_asks_too_few_questions() -> None:
    """Five pairs and 20 questions: 50 a side ask each pair 10 of them."""
    (poem,) = load_traits({"poem": ROOT / "experiments" / "demo" / "poem"})
    assert (len(poem.instructions), len(poem.questions)) == (5, 20)
    said = few_questions([poem], 20)
    assert "asks 4 of the 20 questions of poem" in said
    assert said.endswith("10 are needed, which take 50 a side")
    assert "asks 9 of" in few_questions([poem], 45)
    assert few_questions([poem], 46) == ""
    assert few_questions([poem], 4) == "", "a first look"
    few = replace(poem, questions=poem.questions[:6])
    assert few_questions([few], 20) == "", "more responses would not help"


# --- what a plan says must be had ---


PHI_4 = {
    "model_type": "phi3",
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 10,
    "vocab_size": 100352,
    "dtype": "bfloat16",
    "pad_token_id": 0,
}


@pytest.mark.parametrize("cards", ["4xT4", "8xT4", "8xL4", "8xH100"])
def test_no_split_is_planned_that_a_run_refuses(cards: str) -> None:
    """Ten key-value heads cannot be dealt out over four cards, though forty heads can."""
    ref = ModelRef("phi-4", "phi-4", "r", PHI_4)
    for found in layouts(PHI_4, apply({}), parse_gpus(cards), small_job(), 64):
        if isinstance(found, ResourceError):
            assert "`tensor_parallel_size` 4" not in found.message
        else:
            check_split(ref, found.tensor_parallel)


def test_a_refusal_names_no_number_of_cards_that_cannot_share_the_model() -> None:
    with pytest.raises(ResourceError, match="at least 2 such GPUs"):
        make_plan("phi-4", PHI_4, apply({}), parse_gpus("T4"), small_job(), sequences=64)
    how = apply({"dtype": "float32", "capture_device": "cpu"})
    with pytest.raises(ResourceError, match="at least 5 such GPUs"):
        make_plan("phi-4", PHI_4, how, parse_gpus("T4"), small_job(), sequences=64)


def test_a_split_that_cannot_be_is_told_in_one_line() -> None:
    for split in (4, 3):
        with pytest.raises(UsageError, match=f"`tensor_parallel_size` {split} is more than there"):
            job, cards = small_job(), parse_gpus("2xH100")
            make_plan("phi-4", PHI_4, apply({}), cards, job, sequences=64, splits=(split,))


def test_capture_is_reckoned_in_its_own_dtype() -> None:
    config = plans.config("llama-3.1-8b")
    half, whole = (
        make_plan(
            "m",
            config,
            apply({"capture_dtype": dtype}),
            parse_gpus("H100"),
            small_job(),
            sequences=64,
        )
        for dtype in ("bfloat16", "float32")
    )
    weights = Shape.from_config(config).weight_bytes(2)
    assert whole.layout.capture - half.layout.capture >= weights
    assert half.estimate
    assert whole.estimate
    card_ = card_of(parse_gpus("H100")[0])
    assert card_
    slower = whole.estimate.capture / half.estimate.capture
    assert slower == pytest.approx(card_.flops / card_.flops32, rel=0.05)


@pytest.mark.parametrize(
    ("device", "said"),
    [("cuda:3", "shows 2 NVIDIA GPUs"), ("foo", "use auto, cpu, cuda or cuda:N")],
)
def test_a_device_that_is_not_there_is_refused(device: str, said: str) -> None:
    config, how = plans.config("llama-3.2-1b"), apply({"capture_device": device})
    with pytest.raises(UsageError, match=said):
        make_plan("m", config, how, parse_gpus("2xL4"), small_job(), sequences=64)


def test_a_card_that_is_named_for_capture_is_seen_by_the_one_replica() -> None:
    config, how = plans.config("llama-3.2-1b"), apply({"capture_device": "cuda:1"})
    found = make_plan("m", config, how, parse_gpus("2xL4"), small_job(), sequences=64)
    assert (found.layout.replicas, found.idle) == (1, 0)
    assert "capture on GPU 1" in found.where()


def test_cards_too_small_for_a_replica_are_idle() -> None:
    config = plans.config("qwen3-30b-a3b")
    cards = [Gpu(0, 80 * GIB, 80 * GIB), Gpu(1, 80 * GIB, 80 * GIB), Gpu(2, 24 * GIB, 24 * GIB)]
    job = replace(small_job(), captures=False)
    found = make_plan("m", config, apply({}), cards, job, sequences=64, splits=(1,))
    assert (found.layout.replicas, found.idle) == (2, 1)


def test_of_cards_of_two_kinds_the_larger_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """By tenths of itself a small empty card was as good as a large one, and decided the dtype."""
    smi(monkeypatch, card(0, 4, capability="7.5"), card(1, 48, capability="8.6"))
    here = gpus.emptiest_first(gpus.read_gpus())
    assert [gpu.index for gpu in here] == [1, 0]
    found = choose_placement(
        plans.config("llama-3.1-8b"),
        apply({}),
        gpu=True,
        engine=True,
        capture=False,
        sequences=64,
        tokens_per_sequence=200,
    )
    assert found.gpus[0].index == 1
    assert found.limits


def test_a_plan_takes_what_its_folder_remembers(
    traitmill: Traitmill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = finish(tmp_path / "run")
    code, said = traitmill("plan", "--gpus", "H100", *on(work))
    assert code == 0, said
    assert "on toy" in said
    quantised = json.loads((work.root / "toy/config.json").read_text())
    quantised["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (work.root / "toy/config.json").write_text(json.dumps(quantised))
    code, said = traitmill("plan", "--gpus", "H100", *on(work))
    assert code == ExitCode.USAGE
    assert "is quantised (gptq, 4 bits): capture cannot" in said


def test_what_is_stored_and_not_judged_is_in_the_price(tmp_path: Path) -> None:
    """Another judge of a whole run cost twenty-five times what was foreseen."""
    how = {"judge": JudgeSettings(model="gpt-5-mini")}
    folder = fakes.make_trait(tmp_path, "one")
    settings = fakes.settings(n_examples=20)
    asyncio.run(fakes.pipeline(fakes.open_runs([folder], settings), settings).run())
    again = fakes.settings(n_examples=21, **how)
    runs = fakes.open_runs([folder], again)
    left = len(runs[0].unjudged())
    assert left >= 36
    ref = ModelRef("fake", "fake", "r0", plans.config("gemma-2-2b"))
    said = foresee(ref, again, runs, None).said
    price = find_price("gpt-5-mini")
    assert price
    job = job_of([runs[0].trait], again)
    each = price.dollars(round(job.judge_tokens), 0, 16)
    assert "2 samples of up to" in said
    assert f"judge about ${(2 + left) * each:,.2f}" in said
    told = foresee_verdicts(again, runs)
    assert told.startswith(f"plan: {left} stored responses to judge, by gpt-5-mini; about $0.0")
