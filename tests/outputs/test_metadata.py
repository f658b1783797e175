"""metadata.json: written and read whole, every fault named, no changed bit unnoticed."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from tests.support import planted
from traitmill.engine.errors import UsageError
from traitmill.engine.outputs import POOLING, Metadata
from traitmill.engine.settings import POOLS
from traitmill.engine.storage import TraitFolder

KEYS = (
    "schema_version model revision trait n_examples n_examples_pos n_examples_neg n_excluded "
    "n_layers hidden_dim layers layer_convention storage_type pooling pools threshold neg_threshold "
    "paired coherence batch_size dtype attention placement extraction_date sampling judge counts cost self_check versions "
    "files_sha256 sample_ids instruction_index question_index sha256"
)


@pytest.fixture
def folder(tmp_path) -> TraitFolder:
    return TraitFolder(planted.write_trait(tmp_path / "exp" / "poem", n_per_side=6))


def test_it_is_written_as_documented_and_read_again(folder):
    metadata = Metadata.read(folder)
    folder.metadata.unlink()
    metadata.write(folder)
    content = json.loads(folder.metadata.read_bytes())
    assert list(content) == KEYS.split()
    assert Metadata.read(folder).model_dump() == content
    digest = content.pop("sha256")
    # The checksum is nobody's secret: canonical JSON of the other keys.
    assert digest == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    assert content == {k: v for k, v in planted.read_metadata(folder.path).items() if k in content}


def test_a_pool_that_was_not_captured_has_no_digest(folder):
    metadata = Metadata.read(folder)
    tensor = folder.tensor().read_bytes()
    assert metadata.tensor_sha256("response_mean") == hashlib.sha256(tensor).hexdigest()
    assert metadata.tensor_sha256("prompt_last") is None
    assert set(POOLING) == set(POOLS)


def test_t40_no_changed_bit_is_unnoticed(folder):
    whole, content = Metadata.read(folder), folder.metadata.read_bytes()
    rng = random.Random(40)
    steps = []
    for _ in range(600):
        changed = bytearray(content)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        folder.metadata.write_bytes(changed)
        try:
            assert Metadata.read(folder) == whole  # white space, say
        except UsageError as error:
            steps.append(error.step)
    assert len(steps) > 550
    assert set(steps) == {folder.step("export")}


def test_t40_a_changed_index_is_named_as_a_change(folder):
    content = json.loads(folder.metadata.read_bytes())
    content["question_index"][3] ^= 1
    folder.metadata.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"its checksum differs.*write it anew") as caught:
        Metadata.read(folder)
    assert caught.value.exit_code == 2
    assert caught.value.step == folder.step("export")


def _set(**changes: object):
    return lambda folder: planted.write_metadata(folder, planted.read_metadata(folder) | changes)


def _drop(*keys: str):
    def spoil(folder: Path) -> None:
        metadata = planted.read_metadata(folder)
        for key in keys:
            del metadata[key]
        planted.write_metadata(folder, metadata)

    return spoil


def _write(content: bytes):
    return lambda folder: (folder / "activations" / "metadata.json").write_bytes(content)


WRONG = "holds something else than it should under"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_set(layers=3), f"{WRONG} layers; write it anew"),
        (_set(layers=["a", "b"]), f"{WRONG} layers; write it anew"),
        (_set(sample_ids=5), f"{WRONG} sample_ids"),
        (_set(counts=[1], threshold="50"), f"{WRONG} threshold, counts"),
        (_drop("counts"), "lacks counts"),
        (_drop("threshold", "model"), "lacks model, threshold"),
        (_drop("instruction_index", "question_index"), "lacks instruction_index, question_index"),
        (_set(mine=1), "holds unknown keys mine"),
        (_write(b"{"), "is not a JSON object"),
        (_write(b"\xff"), "is not a JSON object"),
        (_write(b"[1]"), "is not a JSON object"),
    ],
)
def test_every_fault_is_named_in_one_line(folder, spoil, message):
    spoil(folder.path)
    with pytest.raises(UsageError, match=message) as caught:
        Metadata.read(folder)
    assert "\n" not in str(caught.value)
    assert caught.value.step == folder.step("export")


def test_faults_of_several_kinds_are_named_together(folder):
    _drop("dtype")(folder.path)
    _set(mine=1, layers=3)(folder.path)
    with pytest.raises(UsageError) as caught:
        Metadata.read(folder)
    for said in ("lacks dtype", f"{WRONG} layers", "unknown keys mine"):
        assert said in caught.value.message


def test_what_other_tools_wrote_is_refused_in_one_sentence(tmp_path):
    """The guide's own scripts write five keys, and no records."""
    folder = TraitFolder(tmp_path / "exp" / "poem")
    folder.metadata.parent.mkdir(parents=True)
    keys = {"model": "m", "trait": "poem", "n_examples": 4, "n_layers": 2, "hidden_dim": 8}
    folder.metadata.write_text(json.dumps(keys))
    with pytest.raises(UsageError, match=r"was not written by traitmill.*another experiment") as e:
        Metadata.read(folder)
    assert "lacks" not in str(e.value)


def test_without_activations_the_next_step_depends_on_the_records(folder):
    folder.metadata.unlink()
    with pytest.raises(UsageError, match="has no activations; make them") as caught:
        Metadata.read(folder)
    assert caught.value.step == folder.step("generate")
    folder.records.mkdir()
    folder.run_record.write_text("{}")
    with pytest.raises(UsageError, match="has no activations; make them") as caught:
        Metadata.read(folder)
    assert caught.value.step == folder.step("activations")
