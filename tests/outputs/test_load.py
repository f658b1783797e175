"""Activations as stage 3 reads them: labels and groups of rows, and files that do not fit."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import planted
from traitmill.engine.errors import NothingKeptError, UsageError
from traitmill.engine.outputs import Metadata, load_activations
from traitmill.engine.outputs.load import _groups
from traitmill.engine.storage import TraitFolder


@pytest.fixture
def folder(tmp_path):
    return planted.write_trait(tmp_path / "exp" / "poem", signal=2.0)


def test_rows_carry_their_question_and_instruction_pair(folder):
    activations = load_activations(folder)
    assert activations.labels.tolist() == [True] * 40 + [False] * 40
    np.testing.assert_array_equal(activations.instructions[:8], [0, 1, 2, 3, 0, 1, 2, 3])
    np.testing.assert_array_equal(activations.questions[:40], activations.questions[40:])
    assert len(set(activations.questions)) == 10


def test_pairs_that_share_a_text_are_one_group(tmp_path):
    """Pairs 0 and 2 share their neg text, 2 and 3 their pos text.

    Held out apart, they would meet again.
    """
    folder = planted.write_trait(tmp_path / "exp" / "poem")
    metadata = planted.read_metadata(folder)
    for name, old, new in (
        ("neg", "Do not, way 2.", "Do not, way 0."),
        ("pos", "Do it, way 3.", "Do it, way 2."),
    ):
        path = folder / "responses" / f"{name}.csv"
        path.write_text(path.read_text().replace(old, new))
    planted.write_metadata(folder, metadata)
    groups = load_activations(folder).instructions
    assert groups[:8].tolist() == [0, 1, 0, 0, 0, 1, 0, 0]
    np.testing.assert_array_equal(groups[:40], groups[40:])


def test_what_is_loaded_is_what_was_written(folder):
    activations = load_activations(str(folder))
    stored = torch.load(folder / "activations" / "all_layers.pt", weights_only=True)
    np.testing.assert_array_equal(activations.values, stored.numpy())
    assert activations.metadata == Metadata.read(TraitFolder(folder))
    assert activations.sample_ids == planted.read_metadata(folder)["sample_ids"]
    tensor = (folder / "activations" / "all_layers.pt").read_bytes()
    assert activations.sha256 == hashlib.sha256(tensor).hexdigest()
    assert (activations.n_pos, activations.n_neg) == (40, 40)
    assert "array" not in repr(activations)


# --- bad input ---


def _save(folder: Path, tensor: object) -> None:
    torch.save(tensor, folder / "activations" / "all_layers.pt")
    planted.write_metadata(folder, planted.read_metadata(folder))


def _edited_csv(folder: Path) -> None:
    path = folder / "responses" / "pos.csv"
    path.write_bytes(path.read_bytes().replace(b"Answer, 3", b"Answer, 4"))


def _missing_row(folder: Path) -> None:
    values = torch.load(folder / "activations" / "all_layers.pt", weights_only=True)
    _save(folder, values[:-1].clone())


def _half_precision(folder: Path) -> None:
    values = torch.load(folder / "activations" / "all_layers.pt", weights_only=True)
    _save(folder, values.half())


def _not_a_tensor(folder: Path) -> None:
    _save(folder, {"a": torch.zeros(2)})


def _truncated(folder: Path) -> None:
    path = folder / "activations" / "all_layers.pt"
    path.write_bytes(path.read_bytes()[:5000])
    planted.write_metadata(folder, planted.read_metadata(folder))


def _set(**changes: object):
    return lambda folder: planted.write_metadata(folder, planted.read_metadata(folder) | changes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_set(instruction_index=[0, 1]), "does not give the instruction_index of every kept"),
        (_set(sample_ids=["a"]), "does not give the sample_ids of every kept response"),
        (_set(n_examples_pos=41), r"say \[80, 4, 48\] \(41 pos, 40 neg\); write them anew"),
        (_edited_csv, "pos.csv is not the file that metadata.json describes"),
        (_missing_row, r"has shape \[79, 4, 48\].*say \[80, 4, 48\]"),
        (_half_precision, "torch.float16 tensor where a float32"),
        (_not_a_tensor, "a dict where a float32 tensor"),
        (_truncated, "not a plain tensor file"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UsageError, match=message) as caught:
        load_activations(folder)
    assert "\n" not in str(caught.value)


def test_f27_a_pickled_tensor_file_is_refused_and_not_run(folder, tmp_path):
    target = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (target,))

    buffer = io.BytesIO()
    pickle.dump(Evil(), buffer)
    for content in (buffer.getvalue(), _zip_with(Evil())):
        (folder / "activations" / "all_layers.pt").write_bytes(content)
        planted.write_metadata(folder, planted.read_metadata(folder))
        with pytest.raises(UsageError, match="not a plain tensor file"):
            load_activations(folder)
    assert not target.exists()


def _zip_with(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("count", [0, 1])
def test_f29_a_side_without_rows_is_named(tmp_path, count):
    folder = planted.write_trait(tmp_path / "exp" / "poem")
    metadata = planted.read_metadata(folder)
    path = folder / "responses" / "neg.csv"
    path.write_text("question,instruction,prompt,response,trait_score\n" + 'q,i,p,"r",1\n' * count)
    planted.write_metadata(folder, metadata)
    with pytest.raises(NothingKeptError, match=f"the neg side kept {count} response"):
        load_activations(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_f30_nan_is_named_by_sample_and_layer(folder, bad):
    values = torch.load(folder / "activations" / "all_layers.pt", weights_only=True)
    values[5, 2, 11] = bad
    _save(folder, values)
    sample = planted.read_metadata(folder)["sample_ids"][5]
    with pytest.raises(UsageError, match=f"row 5 \\(sample {sample}\\) at layer 2"):
        load_activations(folder)


def test_a_pool_that_was_not_captured_names_the_step(folder):
    with pytest.raises(UsageError, match=r"all_layers.prompt_last.pt is missing") as caught:
        load_activations(folder, "prompt_last")
    assert caught.value.step == TraitFolder(folder).step("activations", pool="prompt_last")
    with pytest.raises(UsageError, match="unknown; choose from response_mean"):
        load_activations(folder, "mean")


def test_texts_of_the_same_words_are_one_group():
    said = ["How does fire burn?", "how does  fire burn", "What is 2+2?", "What is 2-2?"]
    assert _groups([0, 1, 2, 3], said).tolist() == [0, 0, 2, 3]
