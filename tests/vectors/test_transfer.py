"""How vectors do on other traits, and the experiment's table of that."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tests.support import planted
from tests.vectors.helpers import FAST, evaluated
from traitmill.engine.errors import UsageError
from traitmill.engine.outputs import Metadata, load_activations
from traitmill.engine.storage import TraitFolder
from traitmill.engine.vectors import (
    fit_vectors,
    load_vector,
    read_evaluation,
    read_transfer,
    update_transfer,
    write_vectors,
)
from traitmill.engine.vectors import transfer as transfer_module


@pytest.fixture
def experiment(tmp_path):
    root = tmp_path / "exp"
    for name, signal, seed, direction in (("a", 8, 0, 0), ("b", 8, 1, 0), ("c", 8, 2, 3)):
        evaluated(
            planted.write_trait(
                root / name, signal=signal, seed=seed, direction=direction, n_layers=2
            )
        )
    return root


def transfer(experiment):
    """The table anew, with nothing left out."""
    update_transfer(experiment, pytest.fail)
    return read_transfer(experiment, pytest.fail)


def test_a_vector_transfers_to_the_trait_that_shares_its_direction_only(experiment):
    assert update_transfer(experiment, pytest.fail) == experiment / "evaluation.parquet"
    table = read_transfer(experiment, pytest.fail)
    value = {(r["trait"], r["target"]): r["value"] for r in table.iter_rows(named=True)}
    assert len(value) == 9
    assert value["a", "b"] > 0.95
    assert value["b", "a"] > 0.95
    assert 0.1 < value["a", "c"] < 0.9
    folder = TraitFolder(experiment / "a")
    own = read_evaluation(folder, Metadata.read(folder)).recommendation
    assert value["a", "a"] == own.auroc


def test_transfer_is_scikit_learns_auroc_of_the_stored_vector(experiment):
    table = transfer(experiment)
    (found,) = table.filter(trait="a", target="c").iter_rows(named=True)
    vector = torch.load(
        experiment / "a" / "vectors" / f"{found['method']}_layer{found['layer']}.pt",
        weights_only=True,
    )
    target = load_activations(experiment / "c")
    expected = roc_auc_score(target.labels, target.values[:, found["layer"]] @ vector.numpy())
    assert found["value"] == pytest.approx(expected, abs=1e-3)
    assert found["low"] <= found["value"] <= found["high"]


def test_pairs_that_cannot_be_measured_say_why(experiment):
    metadata = planted.read_metadata(experiment / "b")
    planted.write_metadata(experiment / "b", {**metadata, "model": "another/model"})
    table = transfer(experiment)
    (found,) = table.filter(trait="a", target="b").iter_rows(named=True)
    assert found["value"] is None
    assert found["note"] == "the two traits are of different models"


def test_a_missing_vector_of_another_trait_is_a_note(experiment):
    expected = "its vector is missing or of other activations; fit it again"
    for path in (experiment / "b" / "vectors").iterdir():
        path.unlink()
    write_vectors(
        TraitFolder(experiment / "c"), fit_vectors(load_activations(experiment / "c"), FAST)
    )
    stale = experiment / "c" / "vectors"
    for path in stale.glob("*.json"):
        path.write_text(
            path.read_text().replace('"activations_sha256": "', '"activations_sha256": "0')
        )
    update_transfer(experiment, pytest.fail)
    for row in read_transfer(experiment, pytest.fail).iter_rows(named=True):
        lost = row["trait"] in ("b", "c") and row["target"] != row["trait"]
        assert (row["value"] is None) == lost
        assert row["note"] == (expected if lost else "")


def test_a_stale_transfer_table_is_not_shown_as_current(experiment):
    update_transfer(experiment, pytest.fail)
    planted.write_trait(experiment / "b", signal=8, seed=11, n_layers=2)
    notices: list[str] = []
    table = read_transfer(experiment, notices.append)
    assert set(table["trait"]) == set(table["target"]) == {"a", "c"}
    (notice,) = notices
    assert notice.startswith(
        "the transfer table is of earlier activations of b, which are left out; fit the traits' "
    )
    for name in ("a", "c"):
        (experiment / name / "activations" / "metadata.json").unlink()
    assert read_transfer(experiment, notices.append) is None


def test_a_damaged_transfer_table_is_one_clear_line(experiment):
    path = update_transfer(experiment, pytest.fail)
    another = (experiment / "a" / "evaluation.parquet").read_bytes()
    for content, reason in ((b"PAR1 not really", "checksum differs"), (another, "another table")):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"cannot be read.*{reason}.*make it anew") as caught:
            read_transfer(experiment, pytest.fail)
        assert caught.value.step.name == "vectors"


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"revision": "0123456789abcdef"}, False),  # a local folder's fingerprint
        ({"revision": "d" * 40}, True),  # of a hub: another commit of its README, mostly
        ({"sampling": {"adapter": "mine", "adapter_revision": "0123456789abcdef"}}, False),
    ],
)
def test_a_model_of_the_same_name_may_be_another(experiment, changes, same):
    metadata = planted.read_metadata(experiment / "b")
    sampling = metadata["sampling"] | changes.pop("sampling", {})
    changed = {**metadata, **changes, "sampling": sampling}
    planted.write_metadata(experiment / "b", changed)
    table = transfer(experiment)
    (found,) = table.filter(trait="a", target="b").iter_rows(named=True)
    assert (found["note"] != "the two traits are of different models") == same


@pytest.mark.parametrize("shared", ["all", "half"])
def test_rows_that_a_vector_was_fitted_to_do_not_measure_it(experiment, shared):
    """Traits of one neutral side share its responses."""
    ours, theirs = (planted.read_metadata(experiment / name) for name in "ab")
    n_pos, ids = theirs["n_examples_pos"], list(theirs["sample_ids"])
    neg = range(n_pos, len(ids)) if shared == "all" else range(n_pos, len(ids), 2)
    for row in neg:
        ids[row] = ours["sample_ids"][row]
    planted.write_metadata(experiment / "b", {**theirs, "sample_ids": ids})
    (found,) = transfer(experiment).filter(trait="a", target="b").iter_rows(named=True)
    if shared == "all":
        assert found["value"] is None
        assert found["note"] == "the vector was fitted to these rows: the traits share them"
        return
    target = load_activations(experiment / "b")
    vector, _ = load_vector(experiment / "a", found["method"], found["layer"])
    rows = np.array([row not in set(neg) for row in range(len(ids))])
    scores = target.rows_at(found["layer"]) @ vector
    assert found["value"] == pytest.approx(
        roc_auc_score(target.labels[rows], scores[rows]), abs=1e-3
    )


def test_traits_of_another_width_are_not_measured(experiment):
    evaluated(planted.write_trait(experiment / "b", dim=20, n_layers=2))
    (found,) = transfer(experiment).filter(trait="a", target="b").iter_rows(named=True)
    assert found["note"] == "the two traits are of different models"


def test_a_trait_that_cannot_be_read_is_left_out_with_a_notice(experiment):
    (experiment / "b" / "activations" / "metadata.json").unlink()
    notices: list[str] = []
    update_transfer(experiment, notices.append)
    assert set(read_transfer(experiment, pytest.fail)["trait"]) == {"a", "c"}
    assert notices[0].startswith("b is left out of the transfer table: ")
    (experiment / "c" / "evaluation.parquet").unlink()
    assert update_transfer(experiment, notices.append) is None
    assert read_transfer(experiment, pytest.fail) is None


def test_one_tensor_is_mapped_at_a_time(experiment, monkeypatch):
    """Those of hundreds of traits would fill the memory."""
    mapped: list[weakref.ref] = []

    def load(folder, pool):
        assert not any(each() is not None for each in mapped)
        activations = load_activations(folder, pool)
        mapped.append(weakref.ref(activations.values))
        return activations

    monkeypatch.setattr(transfer_module, "load_activations", load)
    assert len(transfer(experiment)) == 9
    assert len(mapped) == 3
