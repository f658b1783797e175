"""Weight files that are read are whole. A damaged one is met in tests/faults/test_cli.py too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from traitmill.engine.errors import AccessError
from traitmill.engine.models import ModelRef, check_weights

INDEX = "model.safetensors.index.json"


def save(path: Path) -> None:
    save_file({path.stem: np.zeros(100, np.float32)}, path)


def check(folder: Path) -> None:
    check_weights(ModelRef("mine", str(folder), "r", {}))


def test_a_single_file_is_read_whatever_an_index_says(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    check(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(AccessError, match=r"model\.safetensors is cut off or damaged"):
        check(tmp_path)


def test_files_without_an_index_are_all_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / f"{name}.safetensors")
    check(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"")
    with pytest.raises(AccessError, match=r"b\.safetensors is cut off or damaged"):
        check(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_f23_a_damaged_index_is_named(tmp_path: Path, index: str) -> None:
    save(tmp_path / "a.safetensors")
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(AccessError, match=r"index\.json is damaged; copy it again"):
        check(tmp_path)


def test_other_formats_and_models_of_the_hub_are_left_to_their_loaders(tmp_path: Path) -> None:
    check_weights(ModelRef("someone/model", "someone/model", "r", {}))
    with pytest.raises(AccessError, match="holds no weights"):
        check(tmp_path)
    (tmp_path / "pytorch_model-00001-of-00002.bin").touch()
    check(tmp_path)
