"""Token-level states against the reference, in shards that stay small and survive being cut off."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from tests.capture.test_model import make_rows
from tests.capture.test_process import TinyGenerator, tiny_job
from tests.support import fakes
from tests.support.oracle import Oracle, build
from traitmill.cli.main import main
from traitmill.engine.capture import per_token
from traitmill.engine.capture.model import CaptureModel
from traitmill.engine.capture.per_token import read_index, write_per_token
from traitmill.engine.errors import ExitCode, UsageError
from traitmill.engine.models.hub import find_model
from traitmill.engine.settings import CaptureSettings
from traitmill.engine.storage import load_state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build("gemma2", tmp_path_factory.mktemp("gemma2"))


def load(folder, layers=(0, 3)):
    capture = CaptureSettings(layers=layers, include_embeddings=True)
    return CaptureModel(folder, capture, self_check="off", token_budget=64, threads=1)


def append(model, rows, folder, faults=None):
    told = [] if faults is None else faults
    written = write_per_token(model, rows, folder, revision="r0", fault=told.append)
    assert faults is not None or not told
    return written


def test_states_of_a_trait_whose_folder_was_renamed_are_not_computed_again(folder, tmp_path):
    model, oracle, rows = load(folder), Oracle(folder), make_rows()[:3]
    append(model, rows, tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    renamed = [replace(row, sample=replace(row.sample, trait="other")) for row in rows]
    assert append(model, renamed, tmp_path) == 0
    assert sorted(tmp_path.glob("*.safetensors")) == shards
    index = read_index(tmp_path)["rows"]
    for row in renamed:
        entry = index[f"other/{row.sample.id}"]
        found = load_file(tmp_path / entry["shard"])[entry["key"]]
        expected = oracle.residuals(row.token_ids)[[0, 1, 4]]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        spans = [entry[f"{part}_tokens"] for part in ("prompt", "thought", "response")]
        parts = (row.sample.prompt_token_ids, row.thought_token_ids, row.response_token_ids)
        assert spans == [len(part) for part in parts]
    assert append(model, renamed, tmp_path) == 0


def test_a_response_that_was_made_anew_is_computed_anew(folder, tmp_path):
    model, oracle, rows = load(folder), Oracle(folder), make_rows()
    for row in rows[:4]:  # a shard each
        append(model, [row], tmp_path)
    anew = replace(rows[0], response_token_ids=rows[1].response_token_ids)
    assert append(model, [anew, *rows[1:4]], tmp_path) == 1
    assert append(model, [rows[4]], tmp_path) == 1
    assert append(model, [anew, *rows[1:5]], tmp_path) == 0
    index = read_index(tmp_path)
    for row in (anew, *rows[1:5]):
        entry = index["rows"][f"trait/{row.sample.id}"]
        found = load_file(tmp_path / entry["shard"])[entry["key"]]
        assert found.shape[1] == len(row.token_ids)
        expected = oracle.residuals(row.token_ids)[[0, 1, 4]]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_states_equal_the_reference(folder, tmp_path, monkeypatch):
    model, oracle, rows = load(folder), Oracle(folder), make_rows()
    tokens = sum(
        len(row.sample.prompt_token_ids) + len(row.thought_token_ids) + len(row.response_token_ids)
        for row in rows
    )
    total = tokens * 3 * 32 * 4
    monkeypatch.setattr(per_token, "SHARD_BYTES", total // 4)
    assert append(model, rows, tmp_path) == 9
    index = read_index(tmp_path)
    assert (index["layers"], index["dim"], index["dtype"]) == ([-1, 0, 3], 32, "float32")
    shards = {path.name: load_file(path) for path in tmp_path.glob("*.safetensors")}
    assert len(shards) >= 4
    sizes = {
        name: sum(tensor.nbytes for tensor in tensors.values()) for name, tensors in shards.items()
    }
    assert sum(sizes.values()) == total
    assert max(sizes.values()) <= total // 4
    for row in rows:
        entry = index["rows"][f"trait/{row.sample.id}"]
        assert entry["prompt_tokens"] == len(row.sample.prompt_token_ids)
        assert entry["thought_tokens"] == len(row.thought_token_ids) >= 3
        assert entry["response_tokens"] == len(row.response_token_ids)
        found = shards[entry["shard"]][entry["key"]]
        ids = [*row.sample.prompt_token_ids, *row.thought_token_ids, *row.response_token_ids]
        expected = oracle.residuals(ids)[[0, 1, 4]]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_run_cut_off_goes_on(folder, tmp_path, monkeypatch):
    model, rows = load(folder), make_rows()
    monkeypatch.setattr(per_token, "SHARD_BYTES", 20_000)
    write, written = per_token.write_atomic, []

    def cut(path, data):
        if len(written) == 5:  # after two shards, each with its index, and a third without
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, data)

    monkeypatch.setattr(per_token, "write_atomic", cut)
    with pytest.raises(KeyboardInterrupt):
        append(model, rows, tmp_path)
    monkeypatch.setattr(per_token, "write_atomic", write)
    done = len(read_index(tmp_path)["rows"])
    assert 0 < done < 9
    assert append(model, rows, tmp_path) == 9 - done
    assert append(model, rows, tmp_path) == 0
    for entry in (rows_now := read_index(tmp_path)["rows"]).values():
        assert entry["key"] in load_file(tmp_path / entry["shard"])
    assert len(rows_now) == 9


def test_other_layers_do_not_mix_into_a_folder(folder, tmp_path):
    append(load(folder), make_rows(2), tmp_path)
    with pytest.raises(UsageError, match="other layers"):
        append(load(folder, layers=(1,)), make_rows(3), tmp_path)


def test_states_of_another_version_of_the_model_do_not_mix(folder, tmp_path):
    append(load(folder), make_rows(2), tmp_path)
    with pytest.raises(UsageError, match="other layers or settings"):
        write_per_token(load(folder), make_rows(3), tmp_path, revision="r1", fault=print)


def test_f30_a_row_that_is_not_finite_is_named_and_left_out(folder, tmp_path):
    model, rows = load(folder), make_rows(12)
    poison = rows[4].response_token_ids[0]
    rows = [row for row in rows if row is rows[4] or poison not in row.token_ids]
    running = []
    model._model.register_forward_pre_hook(
        lambda _module, _args, options: running.append(options["input_ids"]), with_kwargs=True
    )

    def poisoned(_block, _args, output):
        state = output.clone()
        state[running[-1] == poison] = float("nan")
        return state

    hook = model._blocks[2].register_forward_hook(poisoned, prepend=True)
    faults = []
    assert append(model, rows, tmp_path, faults) == len(rows) - 1 >= 4
    assert len(faults) == 1
    assert "sample row4: NaN or infinity at layer 3" in faults[0]
    index = read_index(tmp_path)
    assert set(index["rows"]) == {f"trait/{row.sample.id}" for row in rows} - {"trait/row4"}
    for path in tmp_path.glob("*.safetensors"):
        assert all(np.isfinite(tensor).all() for tensor in load_file(path).values())
    hook.remove()
    assert append(model, rows, tmp_path) == 1, "it is tried again"


# --- the command ---


@pytest.fixture
async def generated(tmp_path):
    """A generated, uncaptured trait on a model of its own."""
    model = build("llama", tmp_path / "model")
    job, run, _ = tiny_job(tmp_path, model, capture_rows="none")
    await fakes.pipeline([job], run, generator=TinyGenerator()).run()
    return job, model


def command(monkeypatch, capfd, root, *more):
    where = ["--experiment", "exp", "--trait", "trait", "--experiments_dir", str(root)]
    monkeypatch.setattr(
        sys,
        "argv",
        ["traitmill", "activations", *where, "--per_token", "--capture_device", "cpu", *more],
    )
    monkeypatch.chdir(root)
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        main()
    said = capfd.readouterr()
    return int(left.value.code or 0), said.out + said.err


def test_the_command_writes_what_it_estimates_once(generated, tmp_path, monkeypatch, capfd):
    job, model = generated
    code, said = command(monkeypatch, capfd, tmp_path, "--layers", "0,2")
    assert code == ExitCode.OK, said
    oracle, folder = Oracle(model), job.folder.path / "activations" / "per_token"
    index = read_index(folder)
    assert index["revision"] == find_model(model).revision
    table = [
        row
        for path in (job.folder.path / "parquet" / "responses").glob("part-*")
        for row in pq.read_table(path).to_pylist()
    ]
    assert len(table) == len(index["rows"]) == 8
    tokens = sum(len(row["prompt_token_ids"]) + len(row["response_token_ids"]) for row in table)
    assert (
        f"8 responses, {tokens:,} tokens, 2 layers: about {tokens * 2 * 32 * 4 / 2**30:.2f} GiB"
        in said
    )
    for row in table[:2]:
        entry = index["rows"][f"trait/{row['sample_id']}"]
        found = load_file(folder / entry["shard"])[entry["key"]]
        expected = oracle.residuals([*row["prompt_token_ids"], *row["response_token_ids"]])[[1, 3]]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    code, said = command(monkeypatch, capfd, tmp_path, "--layers", "0,2")
    assert code == ExitCode.OK
    assert "0 responses written" in said


def test_kept_rows_are_those_of_the_threshold_given(generated, tmp_path, monkeypatch, capfd):
    job, _ = generated
    state = load_state(job.folder)
    scores, pos = state.verdicts.score, state.side("pos")
    index = job.folder.path / "activations" / "per_token"
    for threshold in ("5", "95"):
        passing = int(np.where(pos, scores >= float(threshold), scores < float(threshold)).sum())
        more = ["--layers", "0", "--capture", "kept", "--threshold", threshold]
        code, said = command(monkeypatch, capfd, tmp_path, *more)
        assert code == ExitCode.OK, said
        assert len(read_index(index)["rows"]) == passing < len(scores)
        shutil.rmtree(index)


def test_a_shard_that_is_gone_or_cut_off_is_written_again_and_lost_responses_are_said(
    generated, tmp_path, monkeypatch, capfd
):
    job, _ = generated
    index = job.folder.path / "activations" / "per_token"
    command(monkeypatch, capfd, tmp_path, "--layers", "0")
    for spoil in (Path.unlink, lambda path: os.truncate(path, path.stat().st_size // 2)):
        [shard] = index.glob("*.safetensors")
        spoil(shard)
        code, said = command(monkeypatch, capfd, tmp_path, "--layers", "0")
        assert code == ExitCode.OK, said
        assert "8 responses written" in said
        assert len(load_file(shard)) == 8
    for part in (job.folder.path / "parquet" / "responses").glob("part-*"):
        part.write_bytes(b"PAR1 damaged")
    code, said = command(monkeypatch, capfd, tmp_path, "--layers", "0")
    assert code == ExitCode.RESOURCES, said
    assert "is damaged" in said


def test_the_command_asks_for_layers(generated, tmp_path, monkeypatch, capfd):
    code, said = command(monkeypatch, capfd, tmp_path)
    assert code == ExitCode.USAGE
    assert "states of every token need --layers" in said


def test_the_command_refuses_a_model_that_has_changed(generated, tmp_path, monkeypatch, capfd):
    job, model = generated
    build("llama", model, seed=1)
    code, said = command(monkeypatch, capfd, tmp_path, "--layers", "0,2")
    assert code == ExitCode.USAGE
    assert "has changed since the responses were generated" in said
    assert not (job.folder.path / "activations").exists()


def test_f30_the_command_ends_with_failed_samples(generated, tmp_path, monkeypatch, capfd):
    """Weights that overflow; every row is named and none is written."""
    job, _ = generated
    monkeypatch.setattr(
        CaptureModel,
        "forward",
        lambda _self, _ids, layers, take: [
            take(slot, torch.full((len(_ids), _ids.shape[1], 32), float("inf")))
            for slot in range(len(layers))
        ],
    )
    code, said = command(monkeypatch, capfd, tmp_path, "--layers", "0,2")
    assert code == ExitCode.FAILED_SAMPLES
    assert said.count("NaN or infinity at layer 0") == 8
    assert "0 responses written" in said
    assert read_index(job.folder.path / "activations" / "per_token") == {}
