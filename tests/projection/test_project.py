"""Texts along vectors: equal to an independent forward, to the training rows, and to themselves
after a kill."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from peft import PeftModel
from scipy.stats import t
from transformers import AutoModelForCausalLM

import traitmill
from tests.capture.test_process import Placed, TinyGenerator, tiny_job
from tests.support import fakes, planted, talkers
from tests.support.adapters import make_adapter
from tests.vectors.helpers import evaluated
from traitmill.engine.capture import CaptureProcess, projecting
from traitmill.engine.errors import ExitCode, UsageError
from traitmill.engine.models import (
    ModelRef,
    Turn,
    find_adapter,
    find_model,
    lazy_tokenizer,
    load_tokenizer,
    span_of,
)
from traitmill.engine.projection import commands as commands_module
from traitmill.engine.projection import reading as reading_module
from traitmill.engine.projection.directions import choose_directions
from traitmill.engine.projection.folder import take_up
from traitmill.engine.projection.reading import Reader, share_tokens
from traitmill.engine.projection.stored import StoredTexts, open_texts
from traitmill.engine.projection.table import Layout, _write_csv
from traitmill.engine.projection.texts import Text
from traitmill.engine.records import Response
from traitmill.engine.settings import Sampling, apply
from traitmill.engine.storage import CaptureFacts, RunRecord, TraitFolder
from traitmill.engine.storage.run_record import SamplingRecord
from traitmill.engine.vectors import open_vectors
from traitmill.engine.vectors.remembered import AskedVectors

METHODS = ("mean_diff", "probe")
ROWS = [
    {"prompt": "Write a poem, please.", "response": "The grey rain sings.", "source": "a", "n": 1},
    {"response": "It is Paris.", "source": None},
    {
        "messages": [
            {"role": "system", "content": "You are a poet of the sea."},
            {"role": "user", "content": "What is rain?"},
            {"role": "assistant", "content": "Water ✿ of spring."},
            {"role": "user", "content": "And the sea?"},
            {"role": "assistant", "content": "More water, please."},
        ],
        "source": "c",
        "turn": "theirs",
    },
]


@pytest.fixture(scope="module")
def talker(tmp_path_factory) -> Path:
    return Path(talkers.build_talker(tmp_path_factory.mktemp("models") / "base"))


@pytest.fixture(scope="module")
def trait(tmp_path_factory) -> Path:
    """Vectors of the tiny models' shape."""
    root = tmp_path_factory.mktemp("experiments")
    folder = planted.write_trait(
        root / "exp" / "poem", n_layers=3, dim=32, signal=(1.0, 6.0, 2.0), question_spread=0.3
    )
    evaluated(folder, METHODS)
    return folder


class Thinking(fakes.FakeGenerator):
    async def generate(self, sample) -> Response:
        thought = {"thought": "hm", "thought_token_ids": (71, 72, 73), "thought_span": (1, 2)}
        return Response(sample, "ok", "yes", (91, 92), "length", **thought)


async def test_a_stored_response_is_read_behind_its_thought(tmp_path):
    """As its states were captured; the vectors are of those."""
    folder, settings = fakes.make_trait(tmp_path), fakes.settings(4)
    made = fakes.pipeline(fakes.open_runs([folder], settings), settings, generator=Thinking())
    await made.run()
    stored = list(StoredTexts([TraitFolder(folder)]))
    responses = {r.sample.id: r for r in fakes.state(folder).read_responses(range(8))}
    reader = SimpleNamespace(
        reads={"fake@r0"}, ref=SimpleNamespace(context_length=0), tokenizer=None
    )
    for text in stored:
        found = Reader._read(reader, text)
        response = responses[text.columns["sample_id"]]
        assert found.token_ids == response.token_ids
        assert found.spans[1] == response.spans["response"]


def test_of_a_stored_prompt_the_words_count_alone(model_folder):
    """As of any other turn: a first token alone outweighs the rest of a prompt many times over."""
    ref = ModelRef("m", str(model_folder), "r", {})
    tokenizer = load_tokenizer(ref)
    words = "Answer in verse.\n\nWhat is rain?"
    asked = ("Answer in verse.", "What is rain?")
    for how in ({}, {"system_prompt": "Be."}, {"prompt_format": "raw"}):
        ids = lazy_tokenizer(ref)("2026-12-30T20:30:00+00:00", Sampling(**how))(*asked)
        start, stop = span_of(tokenizer, ids, words)
        assert tokenizer.decode(ids[start:stop]).strip() == words
        assert stop - start == len(tokenizer(words, add_special_tokens=False)["input_ids"])
    apart = lazy_tokenizer(ref)("2026-12-30T20:30:00+00:00", Sampling(prompt_format="system"))
    assert span_of(tokenizer, apart(*asked), words) == (0, 0)  # they stand in two turns
    assert span_of(tokenizer, (), words) == (0, 0)


def test_models_of_one_vocabulary_read_the_same_stored_tokens(talker, trait, tmp_path):
    tuned, other = tmp_path / "tuned", tmp_path / "other"
    shutil.copytree(talker, tuned)
    (tuned / "note.txt").write_text("another revision")
    talkers.build_talker(other, "gemma")
    directions = choose_directions([trait], ["probe"], [2])
    readers = [
        Reader(find_model(str(each)), each.name, directions, apply({}))
        for each in (talker, tuned, other)
    ]
    share_tokens(readers)
    same = {readers[0].tokens_of, readers[1].tokens_of}
    assert readers[0].reads == readers[1].reads == same
    assert readers[2].reads == {readers[2].tokens_of}


def test_vectors_of_another_pool_are_not_what_turns_are_read_with(trait, tmp_path):
    """Their midpoint and spread are of another place than a turn's mean."""
    folder = tmp_path / "exp" / "poem"
    shutil.copytree(trait, folder)
    asked = {"methods": METHODS, "layers": None, "pool": "prompt_last", "format": "pt"}
    AskedVectors(**asked).save(TraitFolder(folder).asked_vectors)
    assert open_vectors(trait).pool == "response_mean"
    chosen = choose_directions([folder], ["probe"], [2]).chosen
    assert np.array_equal(
        chosen[0].vector, choose_directions([trait], ["probe"], [2]).chosen[0].vector
    )


def test_a_vector_named_twice_is_refused(trait):
    for way in (trait, Path(f"{trait}/../{trait.name}")):
        with pytest.raises(UsageError, match=f"`vectors` names {trait} twice"):
            choose_directions([trait, way], ["probe"], [1])


def test_no_trait_of_a_name_hides_another(trait, tmp_path):
    """Of three of one name in experiments of one name, one took the place of another."""
    folders = [trait]
    for name in "ab":
        shutil.copytree(trait, tmp_path / name / "exp" / "poem")
        folders.append(tmp_path / name / "exp" / "poem")
    with pytest.raises(UsageError, match="several experiments of one name"):
        choose_directions(folders, ["probe"], [1])


@pytest.mark.parametrize("text", ["one\rtwo", 'a "quoted", one', "lines\n\nand more", "✿"])
def test_a_text_stays_in_its_cell(tmp_path, text):
    """Before Python 3.13 csv.writer leaves a lone carriage return bare."""
    table = pa.table({"row": [1, 2], "text": [text, None], "t": [0.5, 0.7]})
    path = tmp_path / "projections.csv"
    _write_csv(path, ["row", "text", "t"], [table])
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["row", "text", "t"],
            ["1", text, "0.5"],
            ["2", "", "0.7"],
        ]
    assert pl.read_csv(path)["text"][0] == text


@pytest.fixture
def texts(tmp_path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    return path


def states(model_folder: Path, ids) -> list[np.ndarray]:
    """What leaves each block, `[tokens, dim]`, one row alone, from transformers' own outputs."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, attn_implementation="eager")
    last: list[torch.Tensor] = []
    model.model.layers[-1].register_forward_hook(lambda _m, _a, out: last.append(out))
    with torch.no_grad():
        out = model(torch.tensor([list(ids)]), output_hidden_states=True)
    final = last[0][0] if isinstance(last[0], tuple) else last[0]
    return [state[0].numpy() for state in (*out.hidden_states[1:-1], final)]


def expected_ids(tokenizer, row) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids, and spans by the bytes of the vocabulary."""
    said = row.get("messages") or [
        {"role": "user", "content": row.get("prompt", "")},
        {"role": "assistant", "content": row["response"]},
    ]
    how = {"return_dict": False, "add_generation_prompt": True}
    ids = list(tokenizer.apply_chat_template(said[:-1], **how))
    ids += tokenizer(said[-1]["content"], add_special_tokens=False)["input_ids"]
    parts = talkers.pieces(tokenizer, ids)
    whole, ends = b"".join(parts), np.cumsum([len(part) for part in parts])
    spans = []
    for turn in said:
        start = whole.index(turn["content"].encode())
        stop = start + len(turn["content"].encode())
        inside = [i for i, end in enumerate(ends) if end > start and end - len(parts[i]) < stop]
        if inside:
            spans.append((inside[0], inside[-1] + 1))
    return ids, spans


@pytest.mark.slow
def test_projections_are_those_of_an_independent_forward(talker, trait, texts, tmp_path):
    result = traitmill.project(
        texts, trait, tmp_path / "out", methods=METHODS, layers=[0, 2], models=str(talker)
    )
    assert (result.exit_code, result.reused, result.comparison) == (ExitCode.OK, False, None)
    table = pl.read_parquet(result.table)
    vectors, tokenizer = traitmill.load_vectors(trait), talkers.tokenizer("chatml")
    rows = iter(table.iter_rows(named=True))
    for line, row in zip((1, 3, 5), ROWS, strict=True):
        ids, spans = expected_ids(tokenizer, row)
        by_layer = states(talker, ids)
        for number, (start, stop) in enumerate(spans):
            found = next(rows)
            assert (found["row"], found["turn"], found["n_tokens"]) == (line, number, stop - start)
            assert found["token_ids"] == list(ids[start:stop])
            for method in METHODS:
                for layer in (0, 2):
                    scores = vectors.score(by_layer[layer][start:stop], method, layer)
                    name = f"poem.{method}.{layer}"
                    np.testing.assert_allclose(
                        found[f"{name}.by_token"], scores, rtol=1e-3, atol=1e-3
                    )
                    assert found[name] == pytest.approx(scores.mean(), rel=1e-3, abs=1e-3)
    assert next(rows, None) is None
    assert table["source"].to_list() == ["a", "a", None, *["c"] * 5]
    assert table["n"].to_list()[:3] == ["1", "1", None]
    assert table["input.turn"].to_list()[3:] == ["theirs"] * 5
    assert table["role"].to_list()[3:] == ["system", "user", "assistant", "user", "assistant"]
    with result.csv.open(newline="") as file:
        flat = list(csv.DictReader(file))
    assert [row["text"] for row in flat] == table["text"].to_list()
    for row, value in zip(flat, table["poem.probe.2"], strict=True):
        assert float(row["poem.probe.2"]) == pytest.approx(value, rel=1e-5)
    assert not (tmp_path / "out" / "parts").exists()
    means = {(m.role, m.vector): m.value for m in result.summary.means}
    assistant = table.filter(pl.col("role") == "assistant")["poem.probe.2"].mean()
    assert means["assistant", "poem.probe.2"] == pytest.approx(assistant)


def test_a_first_token_counts_in_no_mean(talker, trait, monkeypatch):
    """Attention drains into it: it would be most of what a short text's mean is."""
    directions = choose_directions([trait], ["probe"], [1])
    layout, name = Layout((), (directions.chosen[0].name,)), directions.chosen[0].name
    bare = Reader(find_model(str(talker)), "base", directions, apply({}))
    bare.tokenizer.chat_template = None

    def sinking(_model, rows, _directions):
        for place, ids in enumerate(rows):
            yield place, np.array([[-900.0]] + [[1.0]] * (len(ids) - 1), np.float32)

    monkeypatch.setattr(projecting, "project_tokens", sinking)
    monkeypatch.setattr(Reader, "_model", None)
    said = [(Turn("assistant", "The moon is grey. " * times),) for times in (1, 2, 4)]
    asked = (Turn("user", "Say it."), Turn("assistant", "It is grey."))
    texts = [Text(row, turns, {}) for row, turns in enumerate([*said, asked], 1)]
    rows = bare.rows(texts, layout)
    expected = directions.chosen[0].scaled(np.ones(1))[0]
    assert [row[name] for row in rows] == pytest.approx([expected] * 5)
    assert [row[f"{name}.by_token"][0] is None for row in rows] == [True] * 4 + [False]
    assert [len(row[f"{name}.by_token"]) for row in rows] == [row["n_tokens"] for row in rows]
    [remark] = bare.remarks
    assert "counts in no mean" in remark
    [alone] = bare.rows([Text(1, (Turn("assistant", "g"),), {})], layout)
    assert alone["n_tokens"] == 1
    assert alone[name] < -100, "there is no other"
    templated = Reader(find_model(str(talker)), "base", directions, apply({}))
    assert [row[name] for row in templated.rows(texts, layout)] == pytest.approx([expected] * 5)
    [remark] = templated.remarks
    assert "behind an empty turn of the user" in remark


@pytest.mark.slow
async def test_training_responses_score_as_the_evaluation_scores_them(tmp_path):
    """From a run's own store, by its token ids: the pooled rows that stage 3 reads."""
    model = talkers.build_talker(tmp_path / "tiny")
    job, run, ref = tiny_job(tmp_path, model)
    worker = CaptureProcess(ref.source, ref.hub_revision, run.capture, run.execution)
    try:
        facts = await worker.start()
        work = fakes.pipeline([job], run, generator=TinyGenerator(), capturer=Placed(worker, facts))
        await work.run()
    finally:
        await worker.close()
    folder = job.folder.path
    job.state.choose(threshold=0.0)
    record = json.loads((folder / "parquet" / "run.json").read_text())
    record["source"] = str(model)
    (folder / "parquet" / "run.json").write_text(json.dumps(record))
    fakes.export_again(folder, threshold=50.0)
    activations = traitmill.load_activations(folder)
    traitmill.fit_experiment(folder.parent, methods=METHODS)
    vectors = traitmill.load_vectors(folder)
    result = traitmill.project(
        folder, folder, tmp_path / "out", methods=METHODS, layers=[0, 1, 2], models=str(model)
    )
    table = pl.read_parquet(result.table).filter(role="assistant")
    by_id = {row["sample_id"]: row for row in table.iter_rows(named=True)}
    kept = [row["sample_id"] for row in by_id.values() if row["kept"] == "true"]
    assert sorted(kept) == sorted(activations.sample_ids)
    for method, layer in vectors:
        scores = vectors.score(activations.values[:, layer], method, layer)
        found = [by_id[each][f"trait.{method}.{layer}"] for each in activations.sample_ids]
        np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-4)
        labels = activations.labels
        assert np.mean(scores[labels]) + np.mean(scores[~labels]) == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_two_models_on_the_same_texts_stand_in_one_table(talker, trait, texts, tmp_path):
    tuned = talkers.build_talker(tmp_path / "tuned", seed=1)
    result = traitmill.project(
        texts, trait, tmp_path / "out", methods=["probe"], layers=[1], models=[str(talker), tuned]
    )
    name = "poem.probe.1"
    table = pl.read_parquet(result.table)
    assert table["model"].unique(maintain_order=True).to_list() == ["base", "tuned"]
    first, second = (table.filter(model=model)[name].to_numpy() for model in ("base", "tuned"))
    joined = pl.read_csv(result.comparison)
    assert joined.columns[-3:] == [f"{name} base", f"{name} tuned", f"{name} tuned - base"]
    assert joined["text"].to_list() == table.filter(model="base")["text"].to_list()
    np.testing.assert_allclose(joined[f"{name} tuned - base"], second - first, rtol=1e-4)
    roles = table.filter(model="base")["role"].to_numpy()
    for each in result.summary.differences:
        gaps = (second - first)[roles == each.role]
        assert (each.model, each.vector, each.n) == ("tuned", name, len(gaps))
        assert each.value == pytest.approx(gaps.mean())
        if len(gaps) > 1:
            error = gaps.std(ddof=1) / math.sqrt(len(gaps))
            assert each.half_width == pytest.approx(t.ppf(0.975, each.n - 1) * error)
    alone = traitmill.project(
        texts, trait, tmp_path / "alone", methods=["probe"], layers=[1], models=tuned
    )
    np.testing.assert_allclose(pl.read_parquet(alone.table)[name], second, rtol=1e-4, atol=1e-4)


def test_a_model_without_a_template_beside_one_with_it_is_said(talker, trait, texts, tmp_path):
    bare = Path(talkers.build_talker(tmp_path / "bare", seed=1))
    (bare / "chat_template.jinja").unlink()
    said: list[str] = []
    which = {"methods": ["probe"], "layers": [1], "notice": said.append}
    for models, times in (([str(talker), str(bare)], 1), ([str(bare)], 0)):
        traitmill.project(texts, trait, tmp_path / f"out-{times}", models=models, **which)
        assert sum("bare has no chat template" in line for line in said) == times, said
        said.clear()


@pytest.fixture(scope="module")
def lora(tmp_path_factory, talker) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "lora", talker)


def adapted(talker: Path, lora: Path, to: Path) -> Path:
    """The model with the adapter in its weights, by peft."""
    model = AutoModelForCausalLM.from_pretrained(talker)
    PeftModel.from_pretrained(model, lora).merge_and_unload().save_pretrained(to)
    return to


@pytest.mark.slow
def test_a_model_is_compared_with_itself_and_an_adapter(talker, lora, trait, texts, tmp_path):
    how = {"methods": ["probe"], "layers": [2], "models": str(talker)}
    result = traitmill.project(texts, trait, tmp_path / "out", adapters=[str(lora)], **how)
    table, name = pl.read_parquet(result.table), "poem.probe.2"
    assert table["model"].unique(maintain_order=True).to_list() == ["base", "base + lora"]
    joined = pl.read_csv(result.comparison)
    assert joined[f"{name} base + lora - base"].abs().max() > 0.01
    vectors, tokenizer = traitmill.load_vectors(trait), talkers.tokenizer("chatml")
    merged = adapted(talker, lora, tmp_path / "merged")
    rows = table.filter(model="base + lora").iter_rows(named=True)
    for row in ROWS:
        ids, spans = expected_ids(tokenizer, row)
        state = states(merged, ids)[2]
        for start, stop in spans:
            scores = vectors.score(state[start:stop], "probe", 2)
            assert next(rows)[name] == pytest.approx(scores.mean(), rel=1e-3, abs=1e-3)
    with pytest.raises(UsageError, match="`adapter` goes over one model"):
        how["models"] = [str(talker), str(tmp_path / "merged")]
        traitmill.project(texts, trait, tmp_path / "no", adapters=[str(lora)], **how)


@pytest.mark.slow
def test_vectors_of_an_adapted_model_are_read_with_its_adapter(
    talker, lora, trait, texts, tmp_path
):
    folder = TraitFolder(tmp_path / "exp" / "poem")
    shutil.copytree(trait, folder.path)
    now = {
        "revision": find_model(str(talker)).revision,
        "adapter_revision": find_adapter(str(lora)).revision,
    }
    sampling = dict.fromkeys(("temperature", "top_p"), 1.0) | {"dtype": "auto"} | now
    counts = {"top_k": 0, "max_new_tokens": 9, "seed": 0, "adapter": "lora"}
    record = RunRecord(
        created="2026-01-02T03:04:05Z",
        source=str(talker),
        adapter_source=str(lora),
        sampling=SamplingRecord(model="base", **sampling, **counts),
        definition={},
        n_examples=1,
        min_kept=0,
        max_examples=0,
        versions={},
    )
    record.save(folder.run_record)
    name, how = "poem.probe.2", {"methods": ["probe"], "layers": [2]}
    tables, said = {}, {}
    for to, given in {
        "own": {},
        "with": {"models": str(talker), "adapters": str(lora)},
        "bare": {"models": str(talker)},
    }.items():
        said[to] = []
        notice = said[to].append
        result = traitmill.project(texts, folder.path, tmp_path / to, notice=notice, **how, **given)
        tables[to] = pl.read_parquet(result.table)
    assert tables["own"]["model"].unique().to_list() == ["base + lora"]
    assert not any("adapter" in line for line in said["own"])
    assert any(line.endswith("read by base without it") for line in said["bare"])
    added = tables["with"].filter(model="base + lora")[name]
    np.testing.assert_allclose(tables["own"][name], added, rtol=1e-5, atol=1e-5)
    assert np.abs(tables["own"][name] - tables["bare"][name]).max() > 0.01
    remarks = choose_directions([folder.path, trait], **how).remarks
    assert (
        "vectors of google/gemma-2-2b-it are used on what "
        f"base@{now['revision']} + lora@{now['adapter_revision']} computes" in remarks
    )
    for changed, words in (("revision", "`gen_model`"), ("adapter_revision", "`adapter`")):
        then = record.sampling.model_copy(update={changed: "another"})
        record.model_copy(update={"sampling": then}).save(folder.run_record)
        with pytest.raises(UsageError, match=rf"has changed since .*\(another -> .*{words}"):
            traitmill.project(texts, folder.path, tmp_path / "no", **how)
        result = traitmill.project(
            texts, folder.path, tmp_path / changed, models=str(talker), **how
        )
        assert result.summary.rows


def many(path: Path, count: int) -> Path:
    rows = (
        {"prompt": f"Say {i}.", "response": "rain " * (1 + i % 7) + str(i)} for i in range(count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _project(texts, trait, to, model, started) -> None:
    """In a process of its own, which is killed after its second part."""
    write = commands_module.write_rows

    def counted(path, *arguments) -> None:
        write(path, *arguments)
        if path.name.endswith("000001.parquet"):
            started.set()
            signal.pause()

    commands_module.CHUNK = 8
    commands_module.write_rows = counted
    traitmill.project(texts, trait, to, models=model)


@pytest.mark.slow
def test_killed_it_goes_on_where_it_was(talker, trait, tmp_path, monkeypatch):
    monkeypatch.setattr(commands_module, "CHUNK", 8)
    texts = many(tmp_path / "many.jsonl", 44)
    whole = traitmill.project(texts, trait, tmp_path / "whole", models=str(talker))
    context = multiprocessing.get_context("spawn")
    started, to = context.Event(), tmp_path / "cut"
    process = context.Process(target=_project, args=(texts, trait, to, str(talker), started))
    process.start()
    assert started.wait(120)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert sorted(path.name for path in (to / "parts").iterdir()) == [
        "model0-000000.parquet",
        "model0-000001.parquet",
    ]
    damaged = to / "parts" / "model0-000001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    read: list[int] = []
    rows = Reader.rows

    def counting(self, chunk, layout):
        read.append(chunk[0].row)
        return rows(self, chunk, layout)

    monkeypatch.setattr(Reader, "rows", counting)
    result = traitmill.project(texts, trait, to, models=str(talker))
    assert read == [9, 17, 25, 33, 41]
    assert pl.read_parquet(result.table).equals(pl.read_parquet(whole.table))
    assert result.csv.read_bytes() == whole.csv.read_bytes()
    again = traitmill.project(texts, trait, to, models=str(talker))
    assert (again.reused, again.summary, read[5:]) == (True, result.summary, [])
    with pytest.raises(UsageError, match="holds projections of other vectors"):
        traitmill.project(texts, trait, to, models=str(talker), methods=["probe"], layers=[0])
    with pytest.raises(UsageError, match="holds projections of other texts"):
        traitmill.project(many(texts, 45), trait, to, models=str(talker))


def test_a_table_is_of_one_dtype_though_its_parts_are_of_two_devices(
    talker, trait, tmp_path, monkeypatch
):
    monkeypatch.setattr(commands_module, "CHUNK", 4)
    texts, to = many(tmp_path / "many.jsonl", 10), tmp_path / "out"
    write = commands_module.write_rows

    def cut_off(path, *arguments):
        if path.name.endswith("000001.parquet"):
            raise KeyboardInterrupt
        write(path, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(commands_module, "write_rows", cut_off)
        with pytest.raises(KeyboardInterrupt):
            traitmill.project(texts, trait, to, models=str(talker))
    record = to / "project.json"
    noted = json.loads(record.read_bytes())
    assert noted["computed"] == ["float32 with sdpa"]
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(reading_module, "check_capture", lambda *_: ("bfloat16", "sdpa"))
        said = "begun in float32 with sdpa, and this device would go on in bfloat16 with sdpa"
        with pytest.raises(UsageError, match=said):
            traitmill.project(texts, trait, to, models=str(talker))
        assert json.loads(record.read_bytes()) == noted
    del noted["computed"]
    record.write_text(json.dumps(noted))  # of a version that did not note it
    assert not traitmill.project(texts, trait, to, models=str(talker)).reused
    record.write_text(json.dumps({**noted, "computed": ["bfloat16 with sdpa"]}))
    assert traitmill.project(texts, trait, to, models=str(talker)).reused


@pytest.mark.slow
def test_a_file_that_was_removed_is_made_from_the_table(talker, trait, tmp_path, monkeypatch):
    monkeypatch.setattr(commands_module, "CHUNK", 4)
    tuned = talkers.build_talker(tmp_path / "tuned", seed=1)
    texts, to = many(tmp_path / "many.jsonl", 10), tmp_path / "out"
    how = {"models": [str(talker), tuned], "methods": ["probe"], "layers": [1]}
    whole = traitmill.project(texts, trait, to, **how)
    paths = [whole.csv, whole.page, whole.comparison, to / "summary.json"]
    before = [path.read_bytes() for path in paths]
    with monkeypatch.context() as patched:
        patched.setattr(Reader, "rows", None)
        for removed in (paths[:2], paths[2:3], paths[3:], paths):
            for path in removed:
                path.unlink()
            again = traitmill.project(texts, trait, to, **how)
            assert (again.reused, again.summary) == (False, whole.summary)
            assert [path.read_bytes() for path in paths] == before
        assert traitmill.project(texts, trait, to, **how).reused
    whole.table.unlink()
    assert not traitmill.project(texts, trait, to, **how).reused
    assert whole.table.is_file()


def test_what_a_killed_first_write_left_is_no_other_file(tmp_path):
    to = tmp_path / "out"
    to.mkdir()
    for name in (".lock", ".project.json.77-88.tmp"):
        (to / name).write_text("{")
    take_up(to, {"texts": "a", "computed": []}, whole=False)
    assert sorted(path.name for path in to.iterdir()) == [".lock", "project.json"]
    (to / ".summary.json.77-88.tmp").write_text("{")
    take_up(to, {"texts": "a", "computed": []}, whole=False)
    assert sorted(path.name for path in to.iterdir()) == [".lock", "project.json"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".notes.tmp").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        take_up(tmp_path / "mine", {"texts": "a", "computed": []}, whole=False)
    assert (tmp_path / "mine" / ".notes.tmp").is_file()


@pytest.mark.slow
def test_a_text_that_a_model_cannot_read_is_told_and_the_others_are_read(talker, trait, tmp_path):
    texts = tmp_path / "texts.jsonl"
    long = {"prompt": "Say it.", "response": "rain " * 600}
    texts.write_text(json.dumps(long) + "\n" + json.dumps(ROWS[0]) + "\n")
    result = traitmill.project(texts, trait, tmp_path / "out", models=str(talker))
    assert result.exit_code == ExitCode.FAILED_SAMPLES
    [said] = result.summary.failed
    assert said.startswith("base, row 1: it has ")
    assert said.endswith("the model takes 512")
    table = pl.read_parquet(result.table)
    assert table["row"].to_list() == [1, 2, 2]
    assert table["error"].is_null().to_list() == [False, True, True]


def test_what_the_vectors_run_computed_in_is_kept(talker, trait, tmp_path):
    """Else a training response had another score than its row."""
    own = tmp_path / "experiments" / "exp" / "poem"
    shutil.copytree(trait, own)
    path = own / "parquet" / "activations" / "0123456789abcdef" / "facts.json"
    path.parent.mkdir(parents=True)
    captured = {"layers": None, "include_embeddings": False, "attention": "auto"}
    CaptureFacts(
        asked={**captured, "dtype": "bfloat16"},
        pools=("response_mean",),
        blocks="",
        layers=(0, 1, 2),
        n_layers=3,
        hidden_dim=32,
        dtype="bfloat16",
        attention="sdpa",
        device="cpu",
        placement="",
        batch_size="auto",
        versions={},
        begun="2026-01-02T03:04:05Z",
    ).save(path)
    texts, said = tmp_path / "texts.jsonl", []
    turn = {"role": "assistant", "content": "rain", "tool_calls": [1]}
    texts.write_text(json.dumps({"messages": [{"role": "user", "content": "q"}, turn]}))
    how = {"models": str(talker), "notice": said.append}
    first = traitmill.project(texts, own, tmp_path / "out", **how)
    assert json.loads((first.folder / "project.json").read_text())["capture_dtype"] == "bfloat16"
    kept = "kept from the vectors' run: `capture_dtype` bfloat16 (name one to change it)"
    assert kept in said
    assert "turns of these texts hold tool_calls, which no model is shown" in said
    said.clear()
    other = traitmill.project(texts, own, tmp_path / "other", capture_dtype="float32", **how)
    assert json.loads((other.folder / "project.json").read_text())["capture_dtype"] == "float32"
    assert kept not in said


def test_what_a_run_set_for_its_prompts_and_a_text_lacks_is_said(talker, trait, tmp_path):
    own = tmp_path / "experiments" / "exp" / "poem"
    shutil.copytree(trait, own)
    sampling = dict.fromkeys(("revision", "dtype"), "") | {"prefill": "Well, "}
    counts = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 8, "seed": 1}
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps(ROWS[0]))
    for prefill, expected in (("Well, ", 1), ("", 0)):
        record = RunRecord(
            created="2026-01-02T03:04:05Z",
            source=str(talker),
            sampling=SamplingRecord(model="base", **sampling | {"prefill": prefill}, **counts),
            definition={},
            n_examples=1,
            min_kept=0,
            max_examples=0,
            versions={},
        )
        folder = TraitFolder(own)
        folder.run_record.parent.mkdir(exist_ok=True)
        record.save(folder.run_record)
        said = list(commands_module._remarks(open_texts(texts), choose_directions([own]), [], {}))
        told = [line for line in said if "the vectors' run set `prefill` for its prompts" in line]
        assert len(told) == expected


def test_what_cannot_be_is_refused_before_a_model_loads(
    talker, trait, texts, tmp_path, monkeypatch
):
    def loads(*_args: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Reader, "rows", loads)
    wide = talkers.build_talker(tmp_path / "wide", layers=1)
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=r"`layers` 2: this model has layers 0 to 0"):
        traitmill.project(texts, trait, out, models=wide, methods=["probe"], layers=[2])
    with pytest.raises(UsageError, match="poem has no probe vector at layer 9"):
        traitmill.project(texts, trait, out, models=str(talker), methods=["probe"], layers=[9])
    other = planted.write_trait(tmp_path / "exp" / "other", n_layers=3, dim=48)
    evaluated(other, ("mean_diff",))
    with pytest.raises(UsageError, match="vectors are 48 wide and what base computes is 32 wide"):
        traitmill.project(texts, other, out, models=str(talker))
    with pytest.raises(UsageError, match="of models of different widths"):
        traitmill.project(texts, [trait, other], out, models=str(talker))
    with pytest.raises(UsageError, match="does not exist: give a .jsonl or .csv file"):
        traitmill.project(tmp_path / "none.jsonl", trait, out, models=str(talker))
    assert not out.exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        traitmill.project(texts, trait, tmp_path / "full", models=str(talker))
