"""Token-level states against the reference, in shards that stay small and survive being cut off."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from engine import per_token
from engine.capture import CaptureModel
from engine.errors import UsageError
from engine.per_token import estimate_bytes, read_index, write_per_token
from engine.settings import Capture
from tests.oracle import Oracle, build
from tests.test_capture import make_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build("gemma2", tmp_path_factory.mktemp("gemma2"))


def load(folder, layers=(0, 3)):
    capture = Capture(layers=layers, include_embeddings=True)
    return CaptureModel(folder, capture, self_check="off", token_budget=64, threads=1)


def test_states_equal_the_reference(folder, tmp_path, monkeypatch):
    model, oracle, rows = load(folder), Oracle(folder), make_rows()
    tokens = sum(len(row.prompt_token_ids) + len(row.response_token_ids) for row in rows)
    total = estimate_bytes(tokens, 3, 32, 4)
    monkeypatch.setattr(per_token, "SHARD_BYTES", total // 4)
    assert write_per_token(model, rows, tmp_path) == 9
    index = read_index(tmp_path)
    assert (index["layers"], index["dim"], index["dtype"]) == ([-1, 0, 3], 32, "float32")
    shards = {path.name: load_file(path) for path in tmp_path.glob("*.safetensors")}
    assert len(shards) >= 4
    sizes = {name: sum(tensor.nbytes for tensor in tensors.values()) for name, tensors in shards.items()}
    assert sum(sizes.values()) == total
    assert max(sizes.values()) <= total // 4
    for row in rows:
        entry = index["rows"][f"trait/{row.sample_id}"]
        assert (entry["prompt_tokens"], entry["response_tokens"]) == (
            len(row.prompt_token_ids),
            len(row.response_token_ids),
        )
        found = shards[entry["shard"]][entry["key"]]
        expected = oracle.residuals([*row.prompt_token_ids, *row.response_token_ids])[[0, 1, 4]]
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
        write_per_token(model, rows, tmp_path)
    monkeypatch.setattr(per_token, "write_atomic", write)
    done = len(read_index(tmp_path)["rows"])
    assert 0 < done < 9
    assert write_per_token(model, rows, tmp_path) == 9 - done
    assert write_per_token(model, rows, tmp_path) == 0
    for entry in (rows_now := read_index(tmp_path)["rows"]).values():
        assert entry["key"] in load_file(tmp_path / entry["shard"])
    assert len(rows_now) == 9


def test_other_layers_do_not_mix_into_a_folder(folder, tmp_path):
    write_per_token(load(folder), make_rows(2), tmp_path)
    with pytest.raises(UsageError, match="other layers"):
        write_per_token(load(folder, layers=(1,)), make_rows(3), tmp_path)
